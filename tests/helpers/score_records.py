"""Records of ``scores.json`` as ``s3prl-ekd evaluate`` writes them, their numbers made up."""

from __future__ import annotations

from typing import Any

from s3prl_ekd.evaluate.tasks import TASKS


def score_of_task(name: str, value: float = 50.0, **more: Any) -> dict[str, Any]:
    """One seed's score of a task, of its only run."""
    metric = TASKS[name].metric
    return {
        metric: value, "rescored": {metric: value, "agrees": True}, "dev": value, "seconds": 75.0, "lr": 0.1,
        "steps": 300, "n_utterances": 4, "folder": name, "checkpoint": f"/moved/away/runs/{name}/dev-best.ckpt",
        "commands": ["run_downstream.py -m train"], **more,
    }  # fmt: skip


def score_record(label: str = "x", tasks: dict[str, dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    """One model's record; by default of PR alone."""
    tasks = {"pr": score_of_task("pr")} if tasks is None else tasks
    return {
        "label": label, "upstream": "fbank", "checkpoint": None, "preset": "tiny", "seed": 1, "cost": None,
        "versions": {"torch": "2.11"}, "machine": {"cpu_cores": 2}, "tasks": tasks, **more,
    }  # fmt: skip
