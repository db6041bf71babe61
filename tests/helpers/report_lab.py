"""Folders of a pretraining and of an evaluation as a report reads them, their numbers made up."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from score_records import score_of_task, score_record


def write_pretraining(folder: Path) -> Path:
    """Four log steps of six heads, two of them done twice, and configuration files; no held-out speech."""
    folder.mkdir()
    lines = []
    for step in (10, 20, 30, 20, 30, 40):  # 20 and 30 again: the run was resumed from step 10
        heads = {
            f"{teacher}.{layer}": {"l1": 1 / step + layer / 100, "cosine": 0.5, "target_norm": 1.0}
            for teacher in ("wavlm", "hubert") for layer in (12, 4, 8)
        }  # fmt: skip
        lines.append({"step": step, "loss": 100.0 / step, "lr": 1e-4, "heads": heads})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config_model.yaml").write_text("ekd: {mode: multi_head}  # </pre><script>\n")
    (folder / "args_1.yaml").write_text("expname: x\n")
    return folder


def write_evaluation(folder: Path) -> Path:
    """What evaluate leaves of PR and of two folds of ER, its numbers made up; the checkpoints' places have moved."""
    weights = {"pr": [0.0, 0.0, math.log(2)], "er-fold1": [0.0, 0.0, 0.0], "er-fold2": [math.log(4), 0.0, 0.0]}

    def part(task, name, value, **rescored):
        run = folder / "runs" / name
        run.mkdir(parents=True)
        state = {"Featurizer": {"weights": torch.tensor(weights[name])}, "Args": argparse.Namespace(x=1), "Step": 5}
        torch.save(state, run / "dev-best.ckpt")
        score = score_of_task(task, value, folder=name, checkpoint=f"/moved/away/runs/{name}/dev-best.ckpt")
        return {**score, "rescored": {**score["rescored"], **rescored}}

    folds = {fold: part("er", f"er-{fold}", 50.0, majority=40.0) for fold in ("fold1", "fold2")}
    er = score_of_task("er", 50.0, dev=1.0, seconds=1.0, folds=folds, commands=[], chance=40.0)
    tasks = {"pr": {**part("pr", "pr", 12.5), "chance": None}, "er": er}
    record = score_record("student & co", tasks, upstream="ekd_student")
    (folder / "scores.json").write_text(json.dumps(record))
    return folder
