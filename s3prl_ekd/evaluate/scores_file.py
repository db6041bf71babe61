"""``scores.json``, written and read: the scores of one model as one record, with what made them.

Percent everywhere. The number under a task's metric is the runner's; ``rescored`` holds ours from the prediction files.
ER's is the mean over its folds, as published ER scores are. With several learning rates a task holds its ``grid``: the
dev score of each, and which was picked and so tested. With several seeds a task's numbers are means, ``standard_error``
holds what the name says, and ``seeds`` a whole record for each. A table: one such file in each model's folder,
and above them one with the list ``models``, and ``means`` where rows are pretrainings of one recipe
(``pretrainings.py``). What goes into a record is computed in ``results.py`` and ``records.py``.

Below, a *part* is one seed's record of a task; with folds it holds one of each run, else it is its only run's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.scores_format import NOT_SCORES, check_record
from s3prl_ekd.whole_file import write_whole

FILE_NAME = "scores.json"
Folder = TypeVar("Folder", str, Path)


def write_scores(record: Mapping[str, Any], out: Path) -> Path:
    """Write ``OUT/scores.json`` whole or not at all; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / FILE_NAME
    write_whole(path, json.dumps(record, indent=1) + "\n")
    return path


def read_scores(path: Path) -> dict[str, Any]:
    """Read a ``scores.json`` of one model (or of the folder that holds it).

    Raises:
        EkdError: not such a file, or one of several models.
    """
    path = path / FILE_NAME if path.is_dir() else path
    record = _read(path)
    if _is_table(record):
        folders = ", ".join(str(folder) for folder, _ in _rows(path, record))
        raise EkdError(f"{path}: holds a table of models; expected one of {folders}")
    return _checked(path, record)


def read_models(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Read every model of a ``scores.json`` (or of the folder that holds it), each with its own folder.

    Raises:
        EkdError: not such a file.
    """
    path = path / FILE_NAME if path.is_dir() else path
    record = _read(path)
    if not _is_table(record):
        return [(path.parent, _checked(path, record))]
    return _rows(path, record)


def told_apart(models: Sequence[tuple[Folder, Mapping[str, Any]]]) -> list[tuple[Folder, dict[str, Any]]]:
    """Folders and records of models; to a label that another model has too, its folder is added."""
    labels = Counter(record["label"] for _, record in models)

    def unique(label: str, folder: str | Path) -> str:
        return f"{label} ({folder})" if labels[label] > 1 else label

    return [(folder, {**record, "label": unique(record["label"], folder)}) for folder, record in models]


def own_record(folder: Path) -> dict[str, Any] | None:
    """The record in a model's own folder; None where there is none yet, or the table of several models.

    Raises:
        EkdError: not such a file.
    """
    path = folder / FILE_NAME
    record = _read(path) if path.is_file() else None
    return None if record is None or _is_table(record) else _checked(path, record)


def holds_table(folder: Path) -> bool:
    """Whether a folder's ``scores.json`` is the table of several models; False where there is none.

    Raises:
        EkdError: not such a file.
    """
    path = folder / FILE_NAME
    return path.is_file() and _is_table(_read(path))


def by_seed(task: Mapping[str, Any]) -> dict[int | None, dict[str, Any]]:
    """Seed -> part of a task's record; None: a seed that is not known."""
    if "seeds" not in task:
        return {task.get("seed"): dict(task)}
    return {int(name): part for name, part in task["seeds"].items()}


def first_part(task: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a task's first seed, for what all seeds share."""
    return next(iter(by_seed(task).values()))


def runs_of(part: Mapping[str, Any]) -> dict[str | None, Mapping[str, Any]]:
    """Fold -> what a part says of the run that was tested on it; None: the only run of a task without folds."""
    return part.get("folds", {None: part})


def run_folder(home: Path, run: Mapping[str, Any]) -> Path:
    """Where a run of a model's record lies; a record from elsewhere leads nowhere else.

    Args:
        home: the folder of the record.
        run: of :func:`runs_of`.
    """
    return home / "runs" / Path(run["folder"]).name


def folds(part: Mapping[str, Any]) -> list[str]:
    """The folds of a part; none where the task has no folds."""
    return list(part.get("folds", ()))


def rates(part: Mapping[str, Any]) -> list[Any]:
    """The learning rates that a part has tried, in the order they were given."""
    return [one["lr"] for one in part["grid"]] if "grid" in part else [part.get("lr")]


def _is_table(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("models"), list)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise EkdError(f"{path}: not there; s3prl-ekd evaluate writes it with its first scores") from None
    except (OSError, ValueError) as error:
        raise EkdError(f"{path}: {NOT_SCORES}: {error}") from error


def _rows(path: Path, table: Mapping[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """The models of a table, each with its own folder."""
    models = [_checked(path, one, f"models[{place}]") for place, one in enumerate(table["models"])]
    return [(path.parent / one.get("folder", ""), one) for one in models]


def _checked(path: Path, record: Any, prefix: str = "") -> dict[str, Any]:
    found = check_record(path, record, prefix)
    for task in found["tasks"].values():
        if "seeds" not in task and task.get("seed") is None:
            task["seed"] = found["seed"]  # older versions named it for the whole record alone
    return found
