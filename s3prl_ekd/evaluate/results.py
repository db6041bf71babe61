"""``scores.json``: the results of all runs of one upstream as one record, with what made them.

Percent everywhere. The number under a task's metric is the runner's; ``rescored`` holds ours from the prediction files.
ER's is the mean over its folds, as published ER scores are. With several learning rates a task holds its ``grid``: the
dev score of each, and which was picked and so tested. With several seeds a task's numbers are means, ``standard_error``
holds what the name says, and ``seeds`` a whole record for each. Several models: one such file in each model's folder,
and above them one with the list ``models``.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import logging
import math
import os
import platform
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from s3prl_ekd.corpora.split_file import read_split_file, speaker_of
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.grid import Search, searches
from s3prl_ekd.evaluate.inputs import changed_input, model_digest
from s3prl_ekd.evaluate.models import Upstream
from s3prl_ekd.evaluate.plan import MARKER, Run, read_marker
from s3prl_ekd.evaluate.score import read_predictions
from s3prl_ekd.evaluate.tasks import TASKS, Task
from s3prl_ekd.version import __version__
from s3prl_ekd.whole_file import whole_file

FILE_NAME = "scores.json"
# what tasks of several calls must share to stand in one record (made_by)
MADE_BY = ("label", "upstream", "checkpoint", "checkpoint_sha256", "model_config", "preset", "normalize",
           "cache_states", "seeds", "data")  # fmt: skip
log = logging.getLogger(__name__)


def collect(
    upstream: Upstream,
    runs: list[Run],
    results: Mapping[str, Mapping[str, Any]],
    preset: str,
    cost: Mapping[str, int] | None = None,
    devices: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The record of one model's evaluation: scores by task, and where, when and with what they were made.

    Args:
        runs: this model's runs; ``results`` may hold others' too.
        cost: the upstream's ``params`` and ``macs`` (``cost.py``).
        devices: where runs went, if not each to its own.
    """
    tasks: dict[str, Any] = {}
    for task in TASKS.values():
        mine = [search for search in searches(runs) if search.task is task]
        if mine:
            seeds = {str(search.seed): search_record(search, results) for search in mine}
            tasks[task.name] = merge_seeds(task, seeds) if len(seeds) > 1 else next(iter(seeds.values()))
            tasks[task.name]["chance"] = chance(task, mine[0].runs[0], tasks[task.name])
    return {
        **made_by(upstream, runs, preset),
        "cost": dict(cost) if cost else None,
        "seed": runs[0].seed,
        "tasks": tasks,
        "versions": versions(),
        "machine": machine(devices or [runs[0].device]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def made_by(upstream: Upstream, runs: Sequence[Run], preset: str) -> dict[str, Any]:
    """What a record's tasks have in common: the model and its settings. Tasks of other ones do not go into it."""
    return {
        "label": upstream.label,
        "upstream": upstream.name,
        "checkpoint": str(upstream.checkpoint) if upstream.checkpoint else None,
        "checkpoint_sha256": model_digest(upstream),
        "model_config": str(upstream.model_config) if upstream.model_config else None,
        "preset": preset,
        "normalize": runs[0].normalize,
        "cache_states": runs[0].cache is not None,
        "seeds": list(dict.fromkeys(run.seed for run in runs)),
        "data": str(runs[0].config.parent),
    }


def earlier_record(common: Mapping[str, Any], out: Path, but: Collection[str] = ()) -> dict[str, Any] | None:
    """What an earlier call left in ``out/scores.json``, where it is of the same model and settings (:func:`made_by`).

    Without the tasks ``but``, and those whose runs have read other things than are there now; None where no task is
    left.
    """
    path = out / FILE_NAME
    earlier = _read(path) if path.is_file() else None
    if not isinstance(earlier, dict):
        return None
    if any(earlier.get(key) != value for key, value in common.items()):
        return None
    tasks = {name: task for name, task in earlier["tasks"].items() if name not in but and not _outdated(task, out)}
    return {**earlier, "tasks": tasks} if tasks else None


def with_earlier_tasks(record: dict[str, Any], out: Path) -> dict[str, Any]:
    """``record`` and the tasks that an earlier call with the same model and settings left in ``out/scores.json``.

    So tasks may be run in several calls. What was made otherwise is not mixed in: it is replaced.
    """
    common = {key: record[key] for key in MADE_BY}
    earlier = earlier_record(common, out, but=record["tasks"])
    if earlier is None:
        return record
    tasks = {**earlier["tasks"], **record["tasks"]}
    return {**record, "tasks": {name: tasks[name] for name in TASKS if name in tasks}}


def _outdated(task: Mapping[str, Any], out: Path) -> bool:
    """Whether an earlier score's run is being done again, or what it read has changed since.

    It is said, since the score is left out then.
    """
    for part in by_seed(task).values():
        for run in part.get("folds", {None: part}).values():
            folder = out / "runs" / run["folder"]
            marker = read_marker(folder)
            if marker is not None and marker.get("state") != "finished":
                log.warning("%s: left out of %s: the run is being done again", folder / MARKER, FILE_NAME)
                return True
            changed = None if marker is None else changed_input(marker.get("inputs", {}))
            if changed is not None:
                log.warning("%s: left out of %s: %s has changed since", folder / MARKER, FILE_NAME, changed)
                return True
    return False


def search_record(search: Search, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One task at one seed: the picked rate's scores and, where there was a choice, the whole grid.

    ``seconds`` counts every training, picked or not.
    """
    task, rate = search.task, search.picked(results)
    picked = search.at(rate)
    parts = {run.fold: {**results[run.key], "folder": run.expdir.name} for run in picked}
    folded = picked[0].fold is not None
    record = merge_folds(task, parts) if folded else dict(parts[None])
    record["seconds"] = round(sum(results[run.key]["seconds"] for run in search.runs), 1)
    if len(search.rates) > 1:
        record["grid"] = [
            {
                "lr": one,
                "dev": search.dev(one, results),
                "picked": one == rate,
                **({"folds": {run.fold: results[run.key]["dev"] for run in search.at(one)}} if folded else {}),
            }
            for one in search.rates
        ]
    return record


def merge_seeds(task: Task, seeds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One record for a task at several seeds: means, their standard error, and every seed's own record."""
    parts = list(seeds.values())
    ours = [key for key in parts[0]["rescored"] if key in (task.metric, "cer", "majority")]
    rescored: dict[str, Any] = {key: fmean(part["rescored"][key] for part in parts) for key in ours}
    rescored["agrees"] = all(part["rescored"]["agrees"] for part in parts)
    errors = {task.metric: standard_error([part[task.metric] for part in parts])}
    if "cer" in rescored:
        errors["cer"] = standard_error([part["rescored"]["cer"] for part in parts])
    dev = [part["dev"] for part in parts if part["dev"] is not None]
    rates = {part["lr"] for part in parts}
    return {
        task.metric: fmean(part[task.metric] for part in parts),
        "standard_error": errors,
        "rescored": rescored,
        "dev": fmean(dev) if dev else None,
        "seconds": round(sum(part["seconds"] for part in parts), 1),
        "steps": parts[0]["steps"],
        "lr": rates.pop() if len(rates) == 1 else None,  # None: not the same for all seeds
        "n_utterances": parts[0]["n_utterances"],
        "seeds": seeds,
        "commands": [command for part in parts for command in part["commands"]],
    }


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of ``values``: their sample standard deviation over the square root of their number."""
    return stdev(values) / math.sqrt(len(values))


def by_seed(task: Mapping[str, Any], seed: int | None = None) -> dict[int | None, dict[str, Any]]:
    """A task's record for each seed; under ``seed`` (the file's own) where there is one seed only."""
    if "seeds" not in task:
        return {seed: dict(task)}
    return {int(name): part for name, part in task["seeds"].items()}


def merge_folds(task: Task, folds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One record for a task with folds: means of the scores, sums of seconds and utterances, every fold kept."""
    parts = list(folds.values())
    dev = [part["dev"] for part in parts if part["dev"] is not None]
    return {
        task.metric: fmean(part[task.metric] for part in parts),
        "rescored": {
            task.metric: fmean(part["rescored"][task.metric] for part in parts),
            "majority": fmean(part["rescored"]["majority"] for part in parts),
            "agrees": all(part["rescored"]["agrees"] for part in parts),
        },
        "dev": fmean(dev) if dev else None,
        "seconds": round(sum(part["seconds"] for part in parts), 1),
        "steps": parts[0]["steps"],
        "lr": parts[0]["lr"],
        "n_utterances": sum(part["n_utterances"] for part in parts),
        "folds": folds,
        "commands": [command for part in parts for command in part["commands"]],
    }


def chance(task: Task, run: Run, record: dict[str, Any]) -> float | None:
    """What knowing nothing scores, in percent: SID one in the number of speakers, ER the commonest emotion."""
    if task.name == "er":
        return _commonest_emotion(task, run.expdir.parent, record)
    if task.name != "sid":
        return None
    split_file = Path(run.effective_config()["downstream_expert"]["datarc"]["meta_data"])
    try:
        return 100.0 / len({speaker_of(path) for _, path in read_split_file(split_file)})
    except EkdError as error:
        raise EkdError(f"{run.config}: downstream_expert.datarc.meta_data: {error}") from error


def _commonest_emotion(task: Task, runs: Path, record: Mapping[str, Any]) -> float | None:
    """What the commonest emotion of ALL folds scores, in percent, as the mean of the folds.

    (``majority`` is what each test fold's own commonest one would: nobody knows that one beforehand.)
    """
    folds: Mapping[str, Any] = next(iter(by_seed(record).values()))["folds"]
    try:
        counts = [
            Counter(read_predictions(runs / part["folder"] / task.reference.format(fold=fold)).values())
            for fold, part in folds.items()
        ]
    except EkdError:
        return None  # of a finished run, whose files may have been cleared away
    commonest = sum(counts, Counter()).most_common(1)[0][0]
    return 100.0 * fmean(count[commonest] / count.total() for count in counts)


def write_scores(record: Mapping[str, Any], out: Path) -> Path:
    """Write ``OUT/scores.json`` whole or not at all; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / FILE_NAME
    with whole_file(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    return path


def read_scores(path: Path) -> dict[str, Any]:
    """A ``scores.json`` of one model (or the folder that holds it); :class:`EkdError` when it is not one."""
    path = path / FILE_NAME if path.is_dir() else path
    record = _read(path)
    if isinstance(record, dict) and isinstance(record.get("models"), list):
        folders = ", ".join(str(path.parent / one["folder"]) for one in record["models"])
        raise EkdError(f"{path}: holds several models; expected one of {folders}")
    return _checked(path, record)


def read_models(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every model of a ``scores.json`` (or the folder that holds it), each with its own folder."""
    path = path / FILE_NAME if path.is_dir() else path
    record = _read(path)
    if not isinstance(record, dict) or not isinstance(record.get("models"), list):
        return [(path.parent, _checked(path, record))]
    return [(path.parent / str(_checked(path, one).get("folder", "")), one) for one in record["models"]]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EkdError(f"{path}: not a scores.json of s3prl-ekd evaluate: {error}") from error


def _checked(path: Path, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict) or not isinstance(record.get("tasks"), dict) or "label" not in record:
        raise EkdError(f"{path}: not a scores.json of s3prl-ekd evaluate: expected the keys label and tasks")
    return record


def versions() -> dict[str, str]:
    """Versions of what a score depends on."""
    found = {"s3prl-ekd": __version__, "python": platform.python_version()}
    for name in ("s3prl", "torch", "torchaudio", "transformers", "numpy", "jiwer"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "a checkout"
    return found


def machine(devices: Sequence[str]) -> dict[str, Any]:
    """The machine that runs were on: cores, system, devices (GPUs by their names)."""
    facts: dict[str, Any] = {"system": platform.platform(), "cpu_cores": os.cpu_count(), "device": ", ".join(devices)}
    if any(device.startswith("cuda") for device in devices):
        import torch  # only where there is a GPU to name

        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(device) for device in devices if device.startswith("cuda")]
            facts["gpu"] = ", ".join(dict.fromkeys(names))
    return facts
