"""How far the differences of evaluated models are chance: read from prediction files, by bootstrap; as tables.

Nothing is run here. The arithmetic is in ``bootstrap.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.bootstrap import Floats, Part, drawn_rates, interval, mean_rates, share_below
from s3prl_ekd.evaluate.distorted import FOLDER, read_result
from s3prl_ekd.evaluate.kept_scores import scored_runs
from s3prl_ekd.evaluate.marker import MARKER
from s3prl_ekd.evaluate.score import Outcome, outcomes
from s3prl_ekd.evaluate.table import MISSING, cell, markdown_table
from s3prl_ekd.evaluate.tasks import Task, shown

Model = tuple[Path, Mapping[str, Any]]  # a model's folder and its record (``scores_file.read_models``)

_HEADINGS = ("score", "95 %", "Δ", "95 % of Δ", "better")
_FEW = 10  # utterances or blocks in a test set or a fold: the bootstrap takes what is there for all there could be


@dataclass(frozen=True)
class Settings:
    """How it is drawn, and what from."""

    draws: int = 10_000
    seed: int = 0
    blocks: re.Pattern[str] | None = None
    """Its first group is the name of an utterance's block; None: each utterance is one."""
    condition: str | None = None
    """Of ``s3prl-ekd robustness``; None: clean audio."""


@dataclass(frozen=True)
class Difference:
    """A model against the baseline, in percentage points."""

    value: float
    interval: tuple[float, float]
    better: float
    """Share of the draws in which the model is the better one."""
    is_better: bool | None
    """None where the interval holds zero."""


@dataclass(frozen=True)
class Row:
    """A model on one task, in percent."""

    label: str
    score: float
    interval: tuple[float, float]
    difference: Difference | None
    """None for the baseline."""


@dataclass(frozen=True)
class Comparison:
    """The models on one task."""

    task: Task
    rows: list[Row]
    utterances: int
    blocks: list[int]
    """Of each fold, or of the whole test set."""


Outcomes = dict[str | None, dict[str, Outcome]]
"""Fold -> utterance -> outcome; the fold of a task without folds is None."""


def compare(models: Sequence[Model], task: Task, baseline: str, settings: Settings) -> Comparison:
    """Score every model that has the task, with intervals, and its difference to the baseline.

    Args:
        models: with their labels, each once; the baseline is among those that have the task.

    Raises:
        EkdError: predictions are gone, or models were tested on different utterances, references, folds or distortions.
    """
    models = [one for one in models if task.name in one[1]["tasks"]]
    labels = [str(record["label"]) for _, record in models]
    tested = [_tested(home, record, task, settings.condition) for home, record in models]
    if len({digest for of_model in tested for _, _, digest in of_model}) > 1:
        raise EkdError(f"{task.name}: --condition {settings.condition}: was not the same distortion for all models")
    tables = [_outcomes(task, label, of_model) for label, of_model in zip(labels, tested, strict=True)]
    first, *others = tables
    for label, other in zip(labels[1:], others, strict=True):
        _check_same(task, labels[0], first, label, other)
    parts = [_part([table[fold] for table in tables], settings.blocks) for fold in first]
    point = _scores(task, mean_rates(parts))
    drawn = _scores(task, drawn_rates(parts, settings.draws, settings.seed))
    at = labels.index(baseline)
    rows = []
    for number, label in enumerate(labels):
        values, change = drawn[:, number], float(point[number] - point[at])
        difference = None if number == at else _difference(task, change, values, drawn[:, at])
        rows.append(Row(label, float(point[number]), interval(values), difference))
    return Comparison(task, rows, sum(map(len, first.values())), [len(part.tokens) for part in parts])


def _tested(
    home: Path, record: Mapping[str, Any], task: Task, condition: str | None
) -> list[tuple[str | None, Path, str | None]]:
    """Fold, folder of predictions, and digest of what ``condition`` was, of each run of a model's score."""
    found: list[tuple[str | None, Path, str | None]] = []
    for _, fold, folder, marker in scored_runs(record["tasks"][task.name], home):
        if marker is None or marker.result is None:
            raise EkdError(f"{folder / MARKER}: is gone or not finished; evaluate {record['label']} again")
        if condition is None:
            found.append((fold, folder, None))
            continue
        folder = folder / FOLDER / condition
        result = read_result(folder)
        if result is None:
            raise EkdError(f"{folder}: no test under {condition}; s3prl-ekd robustness does them")
        found.append((fold, folder, result["digest"]))
    return found


def _outcomes(task: Task, label: str, tested: Sequence[tuple[str | None, Path, str | None]]) -> Outcomes:
    """A model's outcomes, whose errors are means over seeds."""
    found: dict[str | None, list[dict[str, Outcome]]] = {}
    for fold, folder, _ in tested:
        found.setdefault(fold, []).append(outcomes(task, folder, fold))
    merged: Outcomes = {}
    for fold, seeds in found.items():
        for other in seeds[1:]:
            _check_same(task, label, {fold: seeds[0]}, label, {fold: other})
        merged[fold] = {
            name: Outcome(float(np.mean([one[name].errors for one in seeds])), outcome.tokens, outcome.reference)
            for name, outcome in seeds[0].items()
        }
    return merged


def _check_same(task: Task, label: str, one: Outcomes, other_label: str, other: Outcomes) -> None:
    where = f"{task.name}: {label} and {other_label}"
    if one.keys() != other.keys():
        raise EkdError(f"{where} were tested on other folds, so that their difference is not the models' alone")
    for fold in one:
        ours, theirs = ({(name, found.reference) for name, found in table[fold].items()} for table in (one, other))
        odd = sorted(name for name, _ in ours ^ theirs)
        if odd:
            raise EkdError(
                f"{where} were tested on other utterances or references, as {odd[0]}: they cannot be compared"
            )


def _part(tables: Sequence[Mapping[str, Outcome]], blocks: re.Pattern[str] | None) -> Part:
    names = list(tables[0])
    keys = names if blocks is None else [_block(name, blocks) for name in names]
    place = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    where = [place[key] for key in keys]
    errors = [np.bincount(where, [table[name].errors for name in names]) for table in tables]
    return Part(np.stack(errors), np.bincount(where, [tables[0][name].tokens for name in names]).astype(float))


def _block(name: str, blocks: re.Pattern[str]) -> str:
    found = blocks.search(name)
    if found is None or found[1] is None:
        raise EkdError(f"--blocks {blocks.pattern}: finds nothing in the utterance {name}")
    return found[1]


def _scores(task: Task, rates: Floats) -> Floats:
    """Error rates as the task's scores in percent; rounded, so that equal means over folds have equal last bits."""
    return np.round(100 * rates if task.lower_is_better else 100 - 100 * rates, 9)


def _difference(task: Task, value: float, scores: Floats, of_baseline: Floats) -> Difference:
    low, high = interval(scores - of_baseline)
    below = share_below(scores, of_baseline)
    is_better = None if low <= 0 <= high else (high < 0) == task.lower_is_better
    return Difference(value, (low, high), below if task.lower_is_better else 1 - below, is_better)


def note(comparisons: Sequence[Comparison], baseline: str, settings: Settings) -> str:
    """What stands below the table."""
    sizes = ", ".join(
        f"{one.task.name.upper()} {one.utterances:,}"
        + (f" in {sum(one.blocks):,} blocks" if settings.blocks is not None else "")
        for one in comparisons
    )
    few = [f"{one.task.name.upper()} ({min(one.blocks)})" for one in comparisons if min(one.blocks) < _FEW]
    unsure = f" Too few to draw from for an interval that can be relied on: {', '.join(few)}." if few else ""
    audio = "" if settings.condition is None else f" Test audio: {settings.condition}."
    return (
        "Test scores in %, with 95 % intervals by paired bootstrap over the test utterances "
        f"({sizes}; {settings.draws:,} draws).{unsure}{audio} Δ: points against {baseline}; better: share of the draws "
        "in which the row is the better one. The intervals hold the chance of the test set alone, not that of training "
        "(--seeds of evaluate), and each row is a test of its own: of twenty models that differ in nothing, one is "
        "expected to show a difference."
    )


def _lines(comparisons: Sequence[Comparison]) -> Iterator[tuple[str, str, bool | None, list[str]]]:
    """Task, label, whether the model is better than the baseline (None: not known), and the other cells of each row."""
    for one in comparisons:
        for row in one.rows:
            cells = [cell(row.score), " – ".join(map(cell, row.interval)), MISSING, MISSING, MISSING]
            found, is_better = row.difference, None
            if found is not None:
                is_better = found.is_better
                cells[2:] = [
                    f"{found.value:+.2f}", " – ".join(f"{bound:+.2f}" for bound in found.interval),
                    f"{100 * found.better:.1f} %",
                ]  # fmt: skip
            yield f"{one.task.name.upper()} {shown(one.task.metric)}", row.label, is_better, cells


def comparison_table(comparisons: Sequence[Comparison], caption: str) -> Table:
    """The rich table: a difference whose interval is on one side of zero is green or red."""
    table = Table(caption=escape(caption), caption_justify="left", caption_style="dim", box=None, pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("upstream", overflow="fold", min_width=12)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    above = None
    for task, label, is_better, cells in _lines(comparisons):
        if is_better is not None:
            cells[2:] = [f"[{'green' if is_better else 'red'}]{text}[/]" for text in cells[2:]]
        table.add_row("" if task == above else task, escape(label), *cells)
        above = task
    return table


def comparison_markdown(comparisons: Sequence[Comparison], caption: str) -> str:
    """The table in Markdown, with its note; a difference whose interval is on one side of zero is bold."""
    lines = [["task", "upstream", *_HEADINGS]]
    for task, label, is_better, cells in _lines(comparisons):
        if is_better is not None:
            cells[2] = f"**{cells[2]}**"
        lines.append([task, label, *cells])
    return f"{markdown_table(lines, left=2)}\n{caption}\n"
