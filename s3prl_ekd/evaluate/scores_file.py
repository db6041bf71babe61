"""``scores.json``, written and read: the scores of one model as one record, with what made them.

Percent everywhere. The number under a task's metric is the runner's; ``rescored`` holds ours from the prediction files.
ER's is the mean over its folds, as published ER scores are. With several learning rates a task holds its ``grid``: the
dev score of each, and which was picked and so tested. With several seeds a task's numbers are means, ``standard_error``
holds what the name says, and ``seeds`` a whole record for each. Several models: one such file in each model's folder,
and above them one with the list ``models``. What goes into a record is computed in ``results.py`` and ``records.py``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.inputs import changed_input
from s3prl_ekd.evaluate.marker import MARKER, read_marker
from s3prl_ekd.evaluate.results import by_seed
from s3prl_ekd.evaluate.tasks import TASKS
from s3prl_ekd.whole_file import whole_file

FILE_NAME = "scores.json"
log = logging.getLogger(__name__)


def write_scores(record: Mapping[str, Any], out: Path) -> Path:
    """Write ``OUT/scores.json`` whole or not at all; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / FILE_NAME
    with whole_file(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    return path


def read_scores(path: Path) -> dict[str, Any]:
    """Read a ``scores.json`` of one model (or of the folder that holds it).

    Raises:
        EkdError: not such a file, or one of several models.
    """
    path = path / FILE_NAME if path.is_dir() else path
    record = _read(path)
    if isinstance(record, dict) and isinstance(record.get("models"), list):
        folders = ", ".join(str(path.parent / one["folder"]) for one in record["models"])
        raise EkdError(f"{path}: holds several models; expected one of {folders}")
    return _checked(path, record)


def read_models(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Read every model of a ``scores.json`` (or of the folder that holds it), each with its own folder.

    Raises:
        EkdError: not such a file.
    """
    path = path / FILE_NAME if path.is_dir() else path
    record = _read(path)
    if not isinstance(record, dict) or not isinstance(record.get("models"), list):
        return [(path.parent, _checked(path, record))]
    return [(path.parent / str(_checked(path, one).get("folder", "")), one) for one in record["models"]]


def earlier_record(made_by: Mapping[str, Any], out: Path, without: Collection[str] = ()) -> dict[str, Any] | None:
    """The record that an earlier call left in ``out/scores.json``, where it is of the same model and settings.

    Without the tasks ``without``, and those whose runs have read other things than are there now; None where no task
    is left.

    Args:
        made_by: model and settings (``provenance.py``).
    """
    path = out / FILE_NAME
    earlier = _read(path) if path.is_file() else None
    if not isinstance(earlier, dict) or any(earlier.get(key) != value for key, value in made_by.items()):
        return None
    tasks = {name: task for name, task in earlier["tasks"].items() if name not in without and not _outdated(task, out)}
    return {**earlier, "tasks": tasks} if tasks else None


def with_earlier_tasks(record: dict[str, Any], made_by: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """``record`` and the tasks that an earlier call with the same model and settings left in ``out/scores.json``.

    So tasks may be run in several calls. What was made otherwise is not mixed in: it is replaced.
    """
    earlier = earlier_record(made_by, out, without=record["tasks"])
    if earlier is None:
        return record
    tasks = {**earlier["tasks"], **record["tasks"]}
    return {**record, "tasks": {name: tasks[name] for name in TASKS if name in tasks}}


def _outdated(task: Mapping[str, Any], out: Path) -> bool:
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


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EkdError(f"{path}: not a scores.json of s3prl-ekd evaluate: {error}") from error


def _checked(path: Path, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict) or not isinstance(record.get("tasks"), dict) or "label" not in record:
        raise EkdError(f"{path}: not a scores.json of s3prl-ekd evaluate: expected the keys label and tasks")
    return record
