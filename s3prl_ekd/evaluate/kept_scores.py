"""What earlier calls have measured and this one keeps: other tasks, seeds and rates of a model, other rows of a table.

A score is kept while its model and settings are the call's (``conditions.py``) and what its run read is still there.
What this call would replace is refused before it starts (``refusals.py``); what is left out here all the same,
under ``--overwrite`` or for changed data, is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.conditions import MODEL, SETTINGS, other, other_override
from s3prl_ekd.evaluate.inputs import changed_input
from s3prl_ekd.evaluate.marker import MARKER, Marker, read_marker
from s3prl_ekd.evaluate.models import folder_name
from s3prl_ekd.evaluate.results import merge_grids
from s3prl_ekd.evaluate.scores_file import (
    FILE_NAME,
    by_seed,
    folds,
    holds_table,
    own_record,
    rates,
    read_models,
    run_folder,
    runs_of,
    told_apart,
)

Part = dict[str, Any]  # one seed's record of a task

log = logging.getLogger(__name__)


def earlier_record(made_by: Mapping[str, Any], out: Path, called: Collection[str] = ()) -> dict[str, Any] | None:
    """The record that an earlier call left in ``out/scores.json``, where it is of the same model and settings.

    Without the tasks whose runs have read other things than are there now; None where no task is left.

    Args:
        made_by: model and settings (``provenance.py``).
        called: names of the tasks of this call; for other tasks, data that are gone do not outdate a score.
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
    tasks = {name: task for name, task in earlier["tasks"].items() if not outdated(task, out, name in called)}
    return {**earlier, "tasks": tasks} if tasks else None


def with_earlier_seeds(name: str, earlier: Mapping[str, Any] | None, new: Mapping[int, Part]) -> dict[int, Part]:
    """Seed -> part of a task: those of this call and, before them, those that an earlier one left of the task.

    Args:
        name: of the task.
        earlier: the earlier record of the same model and settings, or None.
        new: what this call has measured, by seed.
    """
    task = None if earlier is None else earlier["tasks"].get(name)
    if task is None:
        return dict(new)
    first = next(iter(new.values()))
    parts: dict[int, Part] = {}
    for seed, part in by_seed(task).items():
        assert seed is not None
        other_folds = "other folds" if set(folds(part)) != set(folds(first)) else None
        why = other_override(part, first["overrides"]) or other_folds
        if seed in new:
            merged = None if why else merge_grids(part, new[seed])
            if merged is None and not set(folds(part)) < set(folds(first)):
                how = why or f"other runs, at learning rates {', '.join(map(str, rates(part)))}"
                log.warning("%s, seed %s: replaced in %s: was made with %s", name, seed, FILE_NAME, how)
            parts[seed] = merged or new[seed]
        elif why:
            log.warning("%s, seed %s: left out of %s: was made with %s", name, seed, FILE_NAME, why)
        else:
            parts[seed] = part
    return {**parts, **{seed: part for seed, part in new.items() if seed not in parts}}


class ScoredRun(NamedTuple):
    """A run that an earlier score is from."""

    seed: int | None
    fold: str | None
    folder: Path
    marker: Marker | None
    """None where the folder is gone, or another seed's by now."""


def scored_runs(task: Mapping[str, Any], out: Path) -> Iterator[ScoredRun]:
    """Each run that a task's record is made of, where ``out`` is the folder of the model's."""
    for seed, part in by_seed(task).items():
        for fold, run in runs_of(part).items():
            folder = run_folder(out, run)
            marker = read_marker(folder)
            own = marker if marker and seed in (None, marker.settings.get("seed")) else None
            yield ScoredRun(seed, fold, folder, own)


def outdated(task: Mapping[str, Any], out: Path, called: bool = False) -> bool:
    """Whether an earlier score's run is being done again, or what it read has changed since; logs which."""
    for _, _, folder, marker in scored_runs(task, out):
        if marker is None:
            continue
        if marker.state != "finished":
            log.warning("%s: left out of %s: the run is being done again", folder / MARKER, FILE_NAME)
            return True
        changed = changed_input(marker.inputs, or_gone=called)
        if changed is not None:
            log.warning("%s: left out of %s: %s has changed since", folder / MARKER, FILE_NAME, changed)
            return True
    return False


def table_rows(out: Path) -> list[tuple[str, dict[str, Any]]]:
    """Folder and record of each row of the table in ``out``: of all folders that hold a record under their own name.

    The table's file says their order, and which are rows under another name. It may lack some: a call may have been
    killed before it was written. Empty where ``out`` holds the scores of one model.
    """
    if own_record(out) is not None or not out.is_dir():
        return []
    listed = [folder for folder, _ in read_models(out)] if (out / FILE_NAME).is_file() else []
    rows = [(folder.name, record) for folder in listed if (record := own_record(folder)) is not None]
    for folder in sorted(path.parent for path in out.glob(f"*/{FILE_NAME}")):
        if folder not in listed:
            try:
                record = own_record(folder)
            except EkdError:
                continue  # a file of somebody else's
            if record is not None and folder.name == folder_name(record["label"]):
                rows.append((folder.name, record))
    return rows


def rows_removed(out: Path) -> list[tuple[str, Path]]:
    """Label and missing file of each row that the table's file names and the user has removed."""
    listed = read_models(out) if holds_table(out) else []
    return [(record["label"], folder / FILE_NAME) for folder, record in listed if own_record(folder) is None]


def with_earlier_rows(
    rows: Sequence[tuple[str, dict[str, Any]]], called: Mapping[str, dict[str, Any] | None]
) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a table after a call: the earlier ones at their places, then those that are new.

    Args:
        rows: the earlier ones (:func:`table_rows`).
        called: folder -> record of each model of this call, None where none of its tasks is finished.
    """
    merged = {folder: record for folder, record in {**dict(rows), **called}.items() if record is not None}
    return told_apart(list(merged.items()))  # a row may have got another's label in its own folder
