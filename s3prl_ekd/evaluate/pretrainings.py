"""Means over pretrainings: rows ``NAME@SUFFIX`` of one table are one recipe, pretrained with several seeds.

The rows stay as they are. A mean stands in the ``means`` of a table's ``scores.json``, and below the last of its rows
where a table is shown. Each pretraining counts once, by its mean over the downstream seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from s3prl_ekd.evaluate.conditions import SETTINGS, overrides_of
from s3prl_ekd.evaluate.models import read_states
from s3prl_ekd.evaluate.results import mean_scores
from s3prl_ekd.evaluate.scores_file import first_part, folds
from s3prl_ekd.evaluate.tasks import TASKS

NOTE = "NAME (mean of N): the mean of the rows NAME@..., with its standard error over these pretrainings."


def recipe(label: str) -> str | None:
    """NAME of the label ``NAME@SUFFIX``; None of another one, as ``OWNER/MODEL@REVISION`` of the Hugging Face Hub.

    Nor of one that is told apart by its folder, ``NAME@SUFFIX (FOLDER)``: it may be the same pretraining twice.
    """
    name, _, suffix = label.rpartition("@")
    return name if name.strip() and suffix.strip() and "/" not in label and "(" not in suffix else None


def means(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The mean of each recipe with two or more rows of one kind, as far as a table reads a record: label, models, cost,
    tasks. Rows that read other states, or were evaluated in another way, are of another kind.

    A task's mean is of those rows that have it, ``pretrainings`` of them; one alone has no standard error. Where they
    have it of other folds, overrides or data it has none.
    """
    rows: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        name = recipe(record["label"])
        if name is not None:
            made = tuple(record.get(key) for key in ("feature", "layer", *SETTINGS))
            rows.setdefault((name, *made), []).append(record)
    found = [_mean(name, several) for (name, *_), several in rows.items() if len(several) > 1]
    return [mean for mean in found if mean["tasks"]]


def with_means(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records, and each of their :func:`means` below the last of its rows."""
    after = {mean["models"][-1]: mean for mean in means(records)}
    return [row for record in records for row in (record, after.get(record["label"])) if row is not None]


def _mean(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tasks = {}
    for task in TASKS.values():
        found = [row["tasks"][task.name] for row in rows if task.name in row["tasks"]]
        if found and all(_evaluated(one) == _evaluated(found[0]) for one in found):
            tasks[task.name] = {**mean_scores(task, found), "pretrainings": len(found)}
    first = rows[0].get("cost")
    return {
        "label": f"{', '.join([name, *read_states(rows[0])])} (mean of {len(rows)})",
        "models": [row["label"] for row in rows],
        "cost": first if all(row.get("cost") == first for row in rows) else None,
        "tasks": tasks,
    }


def _evaluated(task: Mapping[str, Any]) -> tuple[Any, ...]:
    """How a row has a task, beyond what holds for all of the row."""
    part = first_part(task)
    return sorted(folds(part)), overrides_of(part), part.get("data_sha256")
