"""Scores on distorted audio beside the clean ones, read from what was tested, as tables for screen, file and page.

Nothing is run here (``distorted.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from s3prl_ekd.evaluate.distorted_result import CLEAN, FOLDER, read_result
from s3prl_ekd.evaluate.kept_scores import scored_runs
from s3prl_ekd.evaluate.results import merge_folds, merge_seeds
from s3prl_ekd.evaluate.scores_file import by_seed, read_models, runs_of
from s3prl_ekd.evaluate.table import best_rows, columns_of, markdown_table, plain_table, verbatim
from s3prl_ekd.evaluate.tasks import TASKS, Task
from s3prl_ekd.whole_file import write_whole

FILE_NAME = "robustness.md"
_NOTE = (
    "Test scores in %; the heads were trained on clean audio, and every model hears the same distorted clips. A "
    "condition is shown for a task once all its folds and seeds are tested."
)
_UNLIKE = "(2): a different distortion from the first of that name, or other noise files; do not compare these rows."


@dataclass(frozen=True)
class Heard:
    """A condition as a model was tested under it."""

    name: str
    digest: str
    """Of the distortion and its files; two models can have been tested under one name and two of these."""
    series: str = field(default="", compare=False)
    """Equal for conditions that differ in their SNR alone; empty where the SNR is not one level."""
    snr: int = field(default=0, compare=False)
    """Of that level, dB."""


Tests = dict[tuple[str, int | None, str | None], dict[Heard, dict[str, Any]]]
"""Task, seed and fold of a run -> condition -> the test's result."""


@dataclass(frozen=True)
class Row:
    """A model's scores under one condition."""

    label: str
    condition: str
    place: int
    """Of the condition among all rows' ones; the clean one is 0."""
    series: str
    """As :attr:`Heard.series`."""
    record: dict[str, Any]
    """As far as a table reads one: ``tasks``."""


def rows_of(models: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[Row]:
    """Each model's clean row and, below it, a row for each condition that a task of it is fully tested under.

    Levels of one noise stand together, from the highest SNR to the lowest; what has no level goes by its name.

    Args:
        models: each one's folder and record. Models without any condition are left out.
    """
    tests = [_tests(home, record) for home, record in models]
    heard = [{condition for run in of_model.values() for condition in run} for of_model in tests]
    ordered = _in_order([one for found in heard for one in found])
    names = {one: one.name for one in ordered}
    for one in ordered:
        alike = [other for other in ordered if other.name == one.name]
        if alike.index(one):
            names[one] += f" ({alike.index(one) + 1})"
    rows = []
    for (_, record), found in zip(models, tests, strict=True):
        distorted = []
        for place, one in enumerate(ordered, start=1):
            tasks = {task.name: scores for task in TASKS.values() if (scores := _task(record, task, found, one))}
            if tasks:
                distorted.append(Row(record["label"], names[one], place, one.series, {"tasks": tasks}))
        if distorted:
            rows += [Row(record["label"], CLEAN, 0, "", dict(record)), *distorted]
    return rows


def _tests(home: Path, record: Mapping[str, Any]) -> Tests:
    """What each run of a model's scores was tested under."""
    found: Tests = {}
    for name, task in record["tasks"].items():
        for seed, fold, folder, marker in scored_runs(task, home):
            results = found[name, seed, fold] = {}
            there = marker is not None and (folder / FOLDER).is_dir()
            for one in (folder / FOLDER).iterdir() if there else ():
                result = read_result(one)
                if result is not None:
                    results[_heard(one.name, result)] = result
    return found


def _heard(name: str, result: Mapping[str, Any]) -> Heard:
    additive = result.get("settings", {}).get("additive")  # results of earlier versions do not have them
    if not additive or len(set(additive["snr"])) > 1:
        return Heard(name, result["digest"])
    rest = result["settings"] | {"additive": additive | {"snr": None}}
    return Heard(name, result["digest"], json.dumps(rest, sort_keys=True), additive["snr"][0])


def _in_order(heard: Sequence[Heard]) -> list[Heard]:
    """Each once: series by the first of their names, in one from the highest SNR to the lowest."""
    first: dict[str, list[int | str]] = {}
    for one in sorted(heard, key=lambda one: _natural(one.name)):
        first.setdefault(one.series or one.name, _natural(one.name))
    return sorted(dict.fromkeys(heard), key=lambda one: (first[one.series or one.name], -one.snr, _natural(one.name)))


def _natural(name: str) -> list[int | str]:
    """Sorts noise5 before noise10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _task(record: Mapping[str, Any], task: Task, tests: Tests, condition: Heard) -> dict[str, Any] | None:
    """A task's record under a condition, with means over folds and seeds; None where a test is missing."""
    if task.name not in record["tasks"]:
        return None
    seeds = {}
    for seed, part in by_seed(record["tasks"][task.name]).items():
        parts: dict[str | None, dict[str, Any]] = {}
        for fold, run in runs_of(part).items():
            result = tests[task.name, seed, fold].get(condition)
            if result is None:
                return None
            parts[fold] = {**run, **result, "commands": [result["command"]]}
        by_fold = {fold: one for fold, one in parts.items() if fold is not None}
        seeds[str(seed)] = merge_folds(task, by_fold) if by_fold else parts[None]
    return merge_seeds(task, seeds) if len(seeds) > 1 else next(iter(seeds.values()))


def table_lines(rows: Sequence[Row]) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """Headings behind model and condition and, for each row, its cells: their text, and whether it is the best.

    The best is that of its column among the models under one condition.
    """
    columns = columns_of([row.record for row in rows])
    lines: list[list[tuple[str, bool]]] = []
    for at, row in enumerate(rows):
        alike = [number for number, other in enumerate(rows) if other.condition == row.condition]
        place = alike.index(at)
        records = [rows[number].record for number in alike]
        lines.append([(column.cell(row.record), place in best_rows(records, column)) for column in columns])
    return [column.heading for column in columns], lines


def note(rows: Sequence[Row]) -> str:
    """What stands below the table."""
    unlike = any(" " in row.condition for row in rows)  # no name has a blank
    return f"{_NOTE} {_UNLIKE}" if unlike else _NOTE


def robustness_table(rows: Sequence[Row]) -> Table:
    """The rich table."""
    headings, lines = table_lines(rows)
    table = plain_table(caption=note(rows))
    table.add_column("test audio", no_wrap=True)
    for heading in headings:
        table.add_column(heading.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for row, cells in zip(rows, lines, strict=True):
        marked = [f"[bold green]{text}[/]" if best else text for text, best in cells]
        table.add_row(escape(row.label) if row.condition == CLEAN else "", escape(row.condition), *marked)
    return table


def write_robustness(scores: Path) -> list[Row]:
    """Write ``SCORES/robustness.md`` of what is tested now, or remove it where nothing is; returns its rows."""
    rows = rows_of(read_models(scores))
    if rows:
        write_whole(scores / FILE_NAME, robustness_markdown(rows))
    else:
        (scores / FILE_NAME).unlink(missing_ok=True)
    return rows


def robustness_markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown, with its note."""
    headings, lines = table_lines(rows)
    body = [
        [verbatim(row.label), verbatim(row.condition), *(f"**{text}**" if best else text for text, best in cells)]
        for row, cells in zip(rows, lines, strict=True)
    ]
    return f"{markdown_table([['upstream', 'test audio', *headings], *body], left=2)}\n{note(rows)}\n"
