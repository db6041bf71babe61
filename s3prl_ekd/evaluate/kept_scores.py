"""What earlier calls have measured and this one keeps: other tasks, seeds and rates of a model, other rows of a table.

A score is kept while its model and settings are the call's (``conditions.py``) and what its run read is still there.
What this call would replace is refused before it starts (``earlier_scores.py``); what is left out here all the same,
under ``--overwrite`` or for changed data, is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_ekd.evaluate.conditions import MODEL, SETTINGS, folds, other, other_override
from s3prl_ekd.evaluate.inputs import changed_input
from s3prl_ekd.evaluate.marker import MARKER, read_marker
from s3prl_ekd.evaluate.results import by_seed, merge_grids
from s3prl_ekd.evaluate.scores_file import FILE_NAME, own_record, read_models

Part = dict[str, Any]  # one seed's record of a task

log = logging.getLogger(__name__)


def earlier_record(made_by: Mapping[str, Any], out: Path) -> dict[str, Any] | None:
    """The record that an earlier call left in ``out/scores.json``, where it is of the same model and settings.

    Without the tasks whose runs have read other things than are there now; None where no task is left.

    Args:
        made_by: model and settings (``provenance.py``).
    """
    earlier = own_record(out)
    if earlier is None:
        return None
    key = other(earlier, made_by, (*MODEL, *SETTINGS))
    if key is not None:
        log.warning(
            "%s: the scores of %s (%s) are left out: their %s was %s", out / FILE_NAME, earlier["label"],
            ", ".join(earlier["tasks"]), key, earlier.get(key),
        )  # fmt: skip
        return None
    tasks = {name: task for name, task in earlier["tasks"].items() if not outdated(task, out)}
    return {**earlier, "tasks": tasks} if tasks else None


def with_earlier_seeds(name: str, earlier: Mapping[str, Any] | None, new: Mapping[int, Part]) -> dict[int, Part]:
    """Seed -> part of a task: those of this call and, before them, those that an earlier one left of the task.

    Args:
        name: of the task.
        earlier: the earlier record of the same model and settings, or None.
        new: what this call has measured, by seed.
    """
    task = None if earlier is None else earlier["tasks"].get(name)
    if earlier is None or task is None:
        return dict(new)
    first = next(iter(new.values()))
    parts: dict[int, Part] = {}
    for seed, part in by_seed(task, earlier.get("seed")).items():
        assert seed is not None
        why = other_override(part, first["overrides"]) or (set(folds(part)) != set(folds(first)) and "other folds")
        if seed in new:
            parts[seed] = new[seed] if why else merge_grids(part, new[seed])
        elif why:
            log.warning("%s, seed %s: left out of %s: was made with %s", name, seed, FILE_NAME, why)
        else:
            parts[seed] = part
    return {**parts, **{seed: part for seed, part in new.items() if seed not in parts}}


def outdated(task: Mapping[str, Any], out: Path) -> bool:
    """Whether an earlier score's run is being done again, or what it read has changed since; logs which."""
    for part in by_seed(task).values():
        for run in part.get("folds", {None: part}).values():
            folder = out / "runs" / run["folder"]
            marker = read_marker(folder)
            if marker is None:
                continue
            if marker.state != "finished":
                log.warning("%s: left out of %s: the run is being done again", folder / MARKER, FILE_NAME)
                return True
            changed = changed_input(marker.inputs)
            if changed is not None:
                log.warning("%s: left out of %s: %s has changed since", folder / MARKER, FILE_NAME, changed)
                return True
    return False


def table_rows(out: Path) -> list[tuple[str, dict[str, Any]]]:
    """Folder and record of each row of the table in ``out``, as the rows' own folders have them now; none without one.

    A row whose folder is gone has been removed by the user.
    """
    rows = []
    for folder, listed in read_models(out) if (out / FILE_NAME).is_file() else []:
        if "folder" not in listed:
            return []  # the scores of one model
        record = own_record(folder)
        if record is None:
            log.warning("%s: %s is left out: %s is gone", out / FILE_NAME, listed["label"], folder / FILE_NAME)
            continue
        rows.append((str(listed["folder"]), record))
    return rows


def with_earlier_rows(
    rows: Sequence[tuple[str, dict[str, Any]]], called: Mapping[str, dict[str, Any] | None]
) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a table after a call: the earlier ones at their places, then those that are new.

    Args:
        rows: the earlier ones (:func:`table_rows`).
        called: folder -> record of each model of this call, None where none of its tasks is finished.
    """
    merged = {**dict(rows), **called}
    return [(folder, record) for folder, record in merged.items() if record is not None]
