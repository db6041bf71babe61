"""Scores on distorted audio beside the clean ones, read from what was tested, as tables for screen, file and page.

Nothing is run here (``distorted.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from s3prl_ekd.evaluate.distorted import CLEAN, FOLDER, read_result
from s3prl_ekd.evaluate.kept_scores import tested_runs
from s3prl_ekd.evaluate.results import merge_folds, merge_seeds
from s3prl_ekd.evaluate.scores_file import by_seed, runs_of
from s3prl_ekd.evaluate.table import best_rows, columns_of, markdown_table, plain_table
from s3prl_ekd.evaluate.tasks import TASKS, Task

FILE_NAME = "robustness.md"
NOTE = (
    "Test scores in %; the heads were trained on clean audio, and every model hears the same distorted clips. A "
    "condition is shown for a task once all its folds and seeds are tested."
)


@dataclass(frozen=True)
class Row:
    """A model's scores under one condition."""

    label: str
    condition: str
    record: dict[str, Any]
    """As far as a table reads one: ``tasks``."""


def conditions_of(home: Path, record: Mapping[str, Any]) -> list[str]:
    """The conditions that some run of a model was tested under, sorted, noise5 before noise10."""
    runs = [folder for task in record["tasks"].values() for _, folder, _ in tested_runs(task, home)]
    folders = [folder / FOLDER for folder in runs]
    found = {one.name for folder in folders if folder.is_dir() for one in folder.iterdir() if read_result(one)}
    return sorted(found, key=_natural)


def _natural(name: str) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def rows_of(models: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[Row]:
    """Each model's clean row and, below it, a row for each condition that a task of it is fully tested under.

    Args:
        models: each one's folder and record. Models without any condition are left out.
    """
    rows = []
    for home, record in models:
        distorted = []
        for name in conditions_of(home, record):
            tasks = {task.name: found for task in TASKS.values() if (found := _task(home, record, task, name))}
            if tasks:
                distorted.append(Row(record["label"], name, {"tasks": tasks}))
        if distorted:
            rows += [Row(record["label"], CLEAN, dict(record)), *distorted]
    return rows


def _task(home: Path, record: Mapping[str, Any], task: Task, condition: str) -> dict[str, Any] | None:
    """A task's record under a condition, with means over folds and seeds; None where a test is missing."""
    if task.name not in record["tasks"]:
        return None
    seeds = {}
    for seed, part in by_seed(record["tasks"][task.name]).items():
        parts: dict[str | None, dict[str, Any]] = {}
        for (fold, run), (_, folder, marker) in zip(runs_of(part).items(), tested_runs(part, home), strict=True):
            result = None if marker is None else read_result(folder / FOLDER / condition)
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


def robustness_table(rows: Sequence[Row]) -> Table:
    """The rich table."""
    headings, lines = table_lines(rows)
    table = plain_table(caption=NOTE)
    table.add_column("test audio", no_wrap=True)
    for heading in headings:
        table.add_column(heading.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for row, cells in zip(rows, lines, strict=True):
        marked = [f"[bold green]{text}[/]" if best else text for text, best in cells]
        table.add_row(escape(row.label) if row.condition == CLEAN else "", escape(row.condition), *marked)
    return table


def robustness_markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown, with its note."""
    headings, lines = table_lines(rows)
    body = [
        [row.label, row.condition, *(f"**{text}**" if best else text for text, best in cells)]
        for row, cells in zip(rows, lines, strict=True)
    ]
    return f"{markdown_table([['upstream', 'test audio', *headings], *body], left=2)}\n{NOTE}\n"
