"""One name for one thing: options of the same name take the same in every command, and letters are s3prl's."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
from score_records import score_record

import s3prl_ekd
from s3prl_ekd.cli import COMMANDS, main
from s3prl_ekd.compat.modules import s3prl_folder


def parsers() -> dict[str, argparse.ArgumentParser]:
    found = {}
    for command, (module, _) in COMMANDS.items():
        parser = argparse.ArgumentParser()
        importlib.import_module(module).add_arguments(parser)
        kinds = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        found |= {f"{command} {kind}": one for action in kinds for kind, one in action.choices.items()}
        found |= {} if kinds else {command: parser}
    return found


OPTIONS = [
    (command, action)
    for command, parser in parsers().items()
    for action in parser._actions
    if action.option_strings and action.dest != "help"
]


def dashed(name: str) -> str:
    return name.replace("_", "-")


def test_a_name_takes_the_same_everywhere() -> None:
    """Folders and numbers are read as such by all commands; LABEL=PATH and lists (of evaluate) are read later."""
    uses: dict[str, dict[object, list[str]]] = defaultdict(lambda: defaultdict(list))
    for command, action in OPTIONS:
        for name in action.option_strings:
            several = isinstance(action, argparse._AppendAction) or len(action.option_strings) > 1
            kind = "a flag" if action.nargs == 0 else "several" if several else action.type
            uses[name][kind].append(command)
    unlike = {name: dict(kinds) for name, kinds in uses.items() if len(set(kinds) - {"several"}) > 1}
    assert unlike == {}


def test_a_letter_stands_for_one_option_and_is_s3prls() -> None:
    long: dict[str, set[str]] = defaultdict(set)
    for _, action in OPTIONS:
        for letter in (name for name in action.option_strings if not name.startswith("--")):
            long[letter] |= {dashed(name) for name in action.option_strings if name.startswith("--")}
    theirs: dict[str, set[str]] = defaultdict(set)
    for program in ("run_pretrain.py", "run_downstream.py"):
        calls = [node for node in ast.walk(ast.parse((s3prl_folder() / program).read_text()))
                 if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"]  # fmt: skip
        for names in ([word.value for word in call.args] for call in calls):
            if not names[0].startswith("--"):
                theirs[names[0]] |= {dashed(name) for name in names[1:]}
    assert set(long) == {"-k", "-u", "-g", "-c", "-o"}
    for letter, names in long.items():
        assert len(names) == 1
        assert names <= theirs[letter] or (letter, names) == ("-k", {"--ckpt"})  # s3prl's is --upstream_ckpt


def test_words_are_joined_by_dashes_and_s3prls_spelling_works_too() -> None:
    for command, action in OPTIONS:
        for name in action.option_strings:
            assert "_" not in name or dashed(name) in action.option_strings, f"{command} {name}"


def test_data_is_the_prepared_folder_and_metavars_agree() -> None:
    with_data = {command for command, action in OPTIONS if "--data" in action.option_strings}
    assert with_data == {"evaluate", "doctor"}
    for letter, metavar in (("-g", "MODEL"), ("-c", "FILE"), ("--tasks", "T,T")):
        used = {action.metavar for _, action in OPTIONS if letter in action.option_strings}
        assert used == {metavar}, letter


def test_the_device_is_chosen_alike_without_the_option() -> None:
    defaults = {command: action.default for command, action in OPTIONS if "--device" in action.option_strings}
    assert defaults == {"evaluate": None, "robustness": None, "teachers": None, "targets": None, "demo": "cpu"}


def test_no_name_is_shown_as_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """rich draws :b: and :100: as pictures, in labels and paths too, unless a console is told not to."""
    folder = tmp_path / "run:b:c"
    folder.mkdir()
    (folder / "scores.json").write_text(json.dumps(score_record("lr:100:x")))
    assert main(["report", str(folder), "--out", str(folder / "r.html")]) == 0
    shown = capsys.readouterr().out
    assert "lr:100:x" in shown and str(folder / "r.html") in shown
    package = Path(s3prl_ekd.__file__).parent
    ours = [file for file in package.rglob("*.py") if re.search(r"rich\.console\b", file.read_text(encoding="utf-8"))]
    assert ours == [package / "console.py"]  # every other console is one of these
