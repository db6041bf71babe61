"""How far the differences of evaluated models are chance: read from prediction files, by bootstrap; as tables.

Nothing is run here. The arithmetic is in ``bootstrap.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.bootstrap import Part, drawn_rates, interval, mean_rates, share_below
from s3prl_ekd.evaluate.distorted import FOLDER, read_result
from s3prl_ekd.evaluate.kept_scores import tested_runs
from s3prl_ekd.evaluate.marker import MARKER
from s3prl_ekd.evaluate.score import Outcome, outcomes
from s3prl_ekd.evaluate.scores_file import by_seed, runs_of
from s3prl_ekd.evaluate.table import MISSING, cell, markdown_table
from s3prl_ekd.evaluate.tasks import Task, shown

Model = tuple[Path, Mapping[str, Any]]  # a model's folder and its record (``scores_file.read_models``)

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
    low: float
    high: float
    better: float
    """Share of the draws in which the model is the better one."""
    is_better: bool
    is_worse: bool
    """Whether the interval lies on one side of zero."""


@dataclass(frozen=True)
class Row:
    """A model on one task, in percent."""

    task: Task
    label: str
    score: float
    low: float
    high: float
    difference: Difference | None
    """None for the baseline."""


@dataclass(frozen=True)
class Comparison:
    """The models of one task."""

    rows: list[Row]
    utterances: int
    blocks: list[int]
    """Of each fold, or of the whole test set."""


def compare(models: Sequence[Model], task: Task, baseline: str, settings: Settings) -> Comparison:
    """Score every model that has the task, with intervals, and its difference to the baseline.

    Args:
        models: with their labels, each once; the baseline is among those that have the task.

    Raises:
        EkdError: predictions are gone, or models were tested on different utterances, references or folds.
    """
    models = [one for one in models if task.name in one[1]["tasks"]]
    labels = [str(record["label"]) for _, record in models]
    distortions: set[str] = set()
    tables = [_outcomes(home, record, task, settings.condition, distortions) for home, record in models]
    if len(distortions) > 1:
        raise EkdError(f"{task.name}: --condition {settings.condition}: was not the same distortion for all models")
    first, *others = tables
    for label, other in zip(labels[1:], others, strict=True):
        _check_same(task, labels[0], first, label, other)
    parts = [_part([table[fold] for table in tables], settings.blocks) for fold in first]
    point, drawn = mean_rates(parts), drawn_rates(parts, settings.draws, settings.seed)
    at = labels.index(baseline)
    rows = []
    for number, label in enumerate(labels):
        low, high = _percent(task, interval(drawn[:, number]))
        [score] = _percent(task, (point[number],))
        difference = (
            None if number == at else _difference(task, point[number] - point[at], drawn[:, number], drawn[:, at])
        )
        rows.append(Row(task, label, score, low, high, difference))
    return Comparison(rows, sum(map(len, first.values())), [len(part.tokens) for part in parts])


def _outcomes(
    home: Path, record: Mapping[str, Any], task: Task, condition: str | None, distortions: set[str]
) -> dict[str | None, dict[str, Outcome]]:
    """Fold -> utterance -> outcome, its errors the mean over seeds; the fold of a task without folds is None.

    Args:
        distortions: receives the digest of what ``condition`` was.
    """
    entry = record["tasks"][task.name]
    found: dict[str | None, list[dict[str, Outcome]]] = {}
    names = [fold for part in by_seed(entry).values() for fold in runs_of(part)]
    for fold, (_, folder, marker) in zip(names, tested_runs(entry, home), strict=True):
        if marker is None or marker.result is None:
            raise EkdError(f"{folder / MARKER}: is gone or not finished; evaluate {record['label']} again")
        if condition is not None:
            folder = folder / FOLDER / condition
            result = read_result(folder)
            if result is None:
                raise EkdError(f"{folder}: no test under {condition}; s3prl-ekd robustness does them")
            distortions.add(result["digest"])
        found.setdefault(fold, []).append(outcomes(task, folder, fold))
    merged: dict[str | None, dict[str, Outcome]] = {}
    for fold, seeds in found.items():
        for other in seeds[1:]:
            _check_same(task, record["label"], {fold: seeds[0]}, record["label"], {fold: other})
        merged[fold] = {
            name: Outcome(float(np.mean([one[name].errors for one in seeds])), outcome.tokens, outcome.reference)
            for name, outcome in seeds[0].items()
        }
    return merged


def _check_same(
    task: Task, label: str, one: Mapping[str | None, Mapping[str, Outcome]], other_label: str,
    other: Mapping[str | None, Mapping[str, Outcome]],
) -> None:  # fmt: skip
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


def _percent(task: Task, rates: Sequence[float]) -> list[float]:
    """Error rates as the task's scores, the lowest first."""
    return sorted(100 * float(rate) if task.lower_is_better else 100 - 100 * float(rate) for rate in rates)


def _difference(task: Task, rate: float, drawn: np.ndarray, of_baseline: np.ndarray) -> Difference:
    sign = 100 if task.lower_is_better else -100
    low, high = sorted(sign * bound + 0.0 for bound in interval(drawn - of_baseline))  # + 0.0: no minus before a zero
    better, worse = (high < 0, low > 0) if task.lower_is_better else (low > 0, high < 0)
    return Difference(sign * float(rate) + 0.0, low, high, share_below(drawn, of_baseline), better, worse)


def note(comparisons: Sequence[Comparison], baseline: str, settings: Settings) -> str:
    """What stands below the table."""
    sizes = ", ".join(
        f"{one.rows[0].task.name.upper()} {one.utterances:,}"
        + (f" in {sum(one.blocks):,} blocks" if settings.blocks is not None else "")
        for one in comparisons
    )
    few = [f"{one.rows[0].task.name.upper()} ({min(one.blocks)})" for one in comparisons if min(one.blocks) < _FEW]
    unsure = f" Too few to draw from for an interval that can be relied on: {', '.join(few)}." if few else ""
    audio = "" if settings.condition is None else f" Test audio: {settings.condition}."
    return (
        "Test scores in %, with 95 % intervals by paired bootstrap over the test utterances "
        f"({sizes}; {settings.draws:,} draws).{unsure}{audio} Δ: points against {baseline}; better: share of the draws "
        "in which the row is the better one. The intervals hold the chance of the test set alone, not that of training "
        "(--seeds of evaluate), and each row is a test of its own: of twenty models that differ in nothing, one is "
        "expected to show a difference."
    )


def _cells(row: Row) -> list[str]:
    found = row.difference
    spread = f"{cell(row.low)} – {cell(row.high)}"
    if found is None:
        return [cell(row.score), spread, MISSING, MISSING, MISSING]
    return [
        cell(row.score), spread, f"{found.value:+.2f}", f"{found.low:+.2f} – {found.high:+.2f}",
        f"{100 * found.better:.1f} %",
    ]  # fmt: skip


def comparison_table(comparisons: Sequence[Comparison], caption: str) -> Table:
    """The rich table: a difference whose interval is on one side of zero is green or red."""
    table = Table(caption=escape(caption), caption_justify="left", caption_style="dim", box=None, pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("upstream", overflow="fold", min_width=12)
    for heading in ("score", "95 %", "Δ", "95 % of Δ", "better"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in comparisons:
        for number, row in enumerate(one.rows):
            head = f"{row.task.name.upper()} {shown(row.task.metric)}" if number == 0 else ""
            cells = _cells(row)
            if row.difference is not None and (row.difference.is_better or row.difference.is_worse):
                colour = "green" if row.difference.is_better else "red"
                cells[2:] = [f"[{colour}]{text}[/]" for text in cells[2:]]
            table.add_row(head, escape(row.label), *cells, end_section=number == len(one.rows) - 1)
    return table


def comparison_markdown(comparisons: Sequence[Comparison], caption: str) -> str:
    """The table in Markdown, with its note; a difference whose interval is on one side of zero is bold."""
    lines = [["task", "upstream", "score", "95 %", "Δ", "95 % of Δ", "better"]]
    for one in comparisons:
        for row in one.rows:
            cells = _cells(row)
            if row.difference is not None and (row.difference.is_better or row.difference.is_worse):
                cells[2] = f"**{cells[2]}**"
            lines.append([f"{row.task.name.upper()} {shown(row.task.metric)}", row.label, *cells])
    return f"{markdown_table(lines, left=2)}\n{caption}\n"
