"""The documentation names only what exists: links, anchors, commands, options, and the configuration's keys."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from conftest import REPO

from s3prl_ekd.cli import COMMANDS
from s3prl_ekd.compat.modules import s3prl_folder
from s3prl_ekd.config.reference import reference
from s3prl_ekd.version import __version__

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
PROGRAMS = r"(?:s3prl-ekd|run_pretrain\.py|run_downstream\.py)"


def text_outside_code(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text_outside_code(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(program, its words) of every command line in a page's shell and plain blocks and in its inline code."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    shell = [block.replace("\\\n", " ") for language, block in blocks if language in ("sh", "")]
    lines = [line for block in shell for line in block.splitlines()]
    lines += re.findall(rf"`((?:python3 )?{PROGRAMS} [^`]*)`", text_outside_code(page))
    for line in lines:
        if line.startswith("error:"):
            continue
        for program, rest in re.findall(rf"({PROGRAMS})\)? +([^;&|>]*)", re.split(r"\s#\s", line)[0]):
            words = re.sub(r"\"[^\"]*\"", "VALUE", rest).split()
            yield program, words


@cache
def options(program: str, command: str = "", kind: str = "") -> frozenset[str]:
    """The option names that a program (and its subcommand) takes, by its own parser."""
    if program != "s3prl-ekd":  # s3prl's own parsers, read from their source: importing all of s3prl takes long
        source = ast.parse((s3prl_folder() / program).read_text())
        calls = [node for node in ast.walk(source) if isinstance(node, ast.Call)]
        added = [call for call in calls if getattr(call.func, "attr", "") == "add_argument"]
        return frozenset(argument.value for call in added for argument in call.args)
    parser = argparse.ArgumentParser()
    importlib.import_module(COMMANDS[command][0]).add_arguments(parser)
    if kind:
        (kinds,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        assert kind in kinds.choices, f"s3prl-ekd {command} {kind}"
        parser = kinds.choices[kind]
    return frozenset(name for action in parser._actions for name in action.option_strings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text_outside_code(page)):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options(page: Path) -> None:
    for program, words in commands(page):
        line = f"{page.name}: {program} {' '.join(words)}"
        command = kind = ""
        if program == "s3prl-ekd":
            command = words[0]
            assert command in COMMANDS, line
            kind = words[1] if command == "export" and len(words) > 1 else ""
        known = options(program, command, kind)
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.partition("=")[0] in known, f"{line}: no option {word}"


def test_every_page_is_in_the_index_and_the_readme_points_to_it() -> None:
    index = (REPO / "docs/README.md").read_text()
    assert [page.name for page in PAGES[1:] if page.name != "README.md" and f"({page.name})" not in index] == []
    assert "(docs/README.md)" in (REPO / "README.md").read_text()


def test_the_configuration_reference_is_what_the_classes_say() -> None:
    assert (REPO / "docs/configuration.md").read_text() == reference(), (
        "config classes changed: python -m s3prl_ekd.config.reference > docs/configuration.md"
    )


def test_the_citation_is_of_this_version_and_this_paper() -> None:
    """CITATION.cff is what GitHub and Zenodo read; the README's entry is for people."""
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    paper = citation["preferred-citation"]
    assert citation["version"] == __version__
    entry = re.sub(r"\s+", " ", (REPO / "README.md").read_text().partition("```bibtex")[2])
    assert f"= {{{paper['title']}}}" in entry and f"= {{{paper['year']}}}" in entry
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"= {{{names}}}" in entry and paper["identifiers"][0]["value"] in entry


def test_the_tutorials_scores_are_those_that_were_kept() -> None:
    lines = (REPO / "README.md").read_text().splitlines()
    for row, name in (("student after", "student"), ("the same student", "untrained"), ("log-mel", "fbank")):
        tasks = json.loads((REPO / f"benchmarks/results/tutorial/{name}.json").read_text())["tasks"]
        scores = [tasks["pr"]["rescored"]["per"], tasks["sid"]["rescored"]["acc"], tasks["er"]["acc"]]
        [line] = [line for line in lines if line.startswith(f"| {row}")]
        assert line.endswith("".join(f"| {score:.1f} " for score in scores) + "|")


def test_the_scores_on_distorted_audio_are_those_that_were_kept() -> None:
    kept = REPO / "benchmarks/results/distortions"
    cells = {tuple(row[:2]): row[2:] for row in _rows((kept / "robustness.md").read_text())}
    page = [row for row in _rows((REPO / "docs/distortions.md").read_text()) if len(row) == 7]
    for condition in ("clean", "noise20", "noise10", "noise0", "rooms"):
        scores, differences = (row[1:] for row in page if row[0] == condition)
        models = ("clean", "tiny_hubert", "tiny_robust_hubert")
        tables = [[cells[model, condition][task].split(" ±")[0].strip("*") for model in models] for task in (0, 1)]
        best = min(tables[0], key=float), max(tables[1], key=float)
        assert scores == [f"**{x}**" if x == one else x for table, one in zip(tables, best, strict=True) for x in table]
        compared = {(row[0][:2], row[1]): row[4] for row in _rows((kept / f"compare-{condition}.md").read_text())}
        setups = ("distorted", "same", "independent")
        assert differences == [compared[task, one].replace("-", "−") for task in ("PR", "ER") for one in setups]


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_a_wrong_option_and_a_wrong_link_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nA=1 s3prl-ekd macs X --jsn   # --json is meant\n```\n[there](nowhere.md)\n")
    assert list(commands(page)) == [("s3prl-ekd", ["macs", "X", "--jsn"])]
    with pytest.raises(AssertionError, match="no option --jsn"):
        test_commands_and_options(page)
    with pytest.raises(AssertionError, match="nowhere.md"):
        test_links(page)
