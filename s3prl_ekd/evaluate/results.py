"""``scores.json``: the results of all runs of one upstream as one record, with what made them.

Percent everywhere. The number under a task's metric is the runner's; ``rescored`` holds ours from the prediction files.
ER's is the mean over its folds, as published ER scores are.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from statistics import fmean
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.plan import Run, Upstream, load_task_config
from s3prl_ekd.evaluate.tasks import TASKS, Task
from s3prl_ekd.version import __version__

FILE_NAME = "scores.json"


def collect(upstream: Upstream, runs: list[Run], results: dict[str, dict[str, Any]], preset: str) -> dict[str, Any]:
    """The record of one evaluation: scores by task, and where, when and with what they were made."""
    tasks: dict[str, Any] = {}
    for task in TASKS.values():
        mine = [run for run in runs if run.task is task]
        if mine:
            folds = {run.fold: results[run.key] for run in mine if run.fold is not None}
            tasks[task.name] = merge_folds(task, folds) if folds else dict(results[mine[0].key])
            tasks[task.name]["chance"] = chance(task, mine[0], tasks[task.name])
    return {
        "label": upstream.label,
        "upstream": upstream.name,
        "checkpoint": str(upstream.checkpoint) if upstream.checkpoint else None,
        "model_config": str(upstream.model_config) if upstream.model_config else None,
        "preset": preset,
        "normalize": runs[0].normalize,
        "seed": runs[0].seed,
        "data": str(runs[0].config.parent),
        "tasks": tasks,
        "versions": versions(),
        "machine": machine(runs[0].device),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


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
        return record["rescored"]["majority"]
    if task.name != "sid":
        return None
    split_file = Path(load_task_config(run.config)["downstream_expert"]["datarc"]["meta_data"])
    try:
        speakers = {line.split()[1].split("/")[0] for line in split_file.read_text().splitlines() if line.split()[1:]}
    except OSError as error:
        raise EkdError(f"{run.config}: downstream_expert.datarc.meta_data: {split_file}: {error.strerror}") from error
    return 100.0 / len(speakers) if speakers else None


def write_scores(record: dict[str, Any], out: Path) -> Path:
    """Write ``OUT/scores.json`` whole or not at all; returns its path."""
    path = out / FILE_NAME
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)
    return path


def read_scores(path: Path) -> dict[str, Any]:
    """A ``scores.json`` (or the folder that holds it); :class:`EkdError` when it is not one."""
    path = path / FILE_NAME if path.is_dir() else path
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EkdError(f"{path}: not a scores.json of s3prl-ekd evaluate: {error}") from error
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


def machine(device: str) -> dict[str, Any]:
    """The machine a run was on: cores, system, device (a GPU by its name)."""
    facts: dict[str, Any] = {"system": platform.platform(), "cpu_cores": os.cpu_count(), "device": device}
    if device.startswith("cuda"):
        import torch  # only where there is a GPU to name

        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name(device)
    return facts
