"""How far the differences of evaluated models are chance: read from prediction files, by bootstrap.

Nothing is run here. The arithmetic is in ``bootstrap.py``, the tables in ``compare_table.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.bootstrap import Floats, Part, drawn_rates, interval, mean_rates, share_below
from s3prl_ekd.evaluate.distorted_result import FOLDER, read_result
from s3prl_ekd.evaluate.kept_scores import scored_runs
from s3prl_ekd.evaluate.marker import MARKER
from s3prl_ekd.evaluate.score import Outcome, outcomes
from s3prl_ekd.evaluate.tasks import Task, tasks_among

Model = tuple[Path, Mapping[str, Any]]  # a model's folder and its record (``scores_file.read_models``)


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
class OnTask:
    """The models on one task."""

    task: Task
    rows: list[Row]
    utterances: int
    blocks: list[int]
    """Of each fold, or of the whole test set."""


@dataclass(frozen=True)
class Comparison:
    """The models on every task of the baseline, or on some."""

    baseline: str
    settings: Settings
    tasks: list[OnTask]


Outcomes = dict[str | None, dict[str, Outcome]]
"""Fold -> utterance -> outcome; the fold of a task without folds is None."""


def compare(
    models: Sequence[Model], settings: Settings, baseline: str | None = None, tasks: str | None = None
) -> Comparison:
    """Score every model, with intervals, and its difference to the baseline.

    Args:
        models: each label once.
        baseline: a label; None: the first model.
        tasks: names with commas between, as ``--tasks``; None: all on which the baseline was tested.

    Raises:
        EkdError: no such baseline or task, predictions are gone, or models were tested on different utterances,
            references, folds or distortions.
    """
    there = {str(record["label"]): record["tasks"] for _, record in models}
    baseline = next(iter(there)) if baseline is None else baseline
    if baseline not in there:
        raise EkdError(f"--baseline {baseline}: no such model; there are {', '.join(there) or 'none'}")
    otherwise = f"{baseline} was not tested on it, but on {', '.join(there[baseline])}"
    chosen = tasks_among(tasks, there[baseline], otherwise)
    return Comparison(baseline, settings, [_on_task(models, task, baseline, settings) for task in chosen])


def _on_task(models: Sequence[Model], task: Task, baseline: str, settings: Settings) -> OnTask:
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
    return OnTask(task, rows, sum(map(len, first.values())), [len(part.tokens) for part in parts])


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
            raise EkdError(f"{folder}: not tested under {condition}; run s3prl-ekd robustness, or choose other --tasks")
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
        raise EkdError(f"{where} were tested on different folds, so they cannot be compared")
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
