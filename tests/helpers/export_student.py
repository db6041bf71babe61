"""A student checkpoint as `run_pretrain.py -u ekd` writes it, never trained; its export and scores for its card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from score_records import score_of_task, score_record

from s3prl_ekd.cli import main
from s3prl_ekd.config import load_model_config
from s3prl_ekd.distill.targets import TeacherLayers, plan_targets
from s3prl_ekd.evaluate.inputs import content
from s3prl_ekd.model.student import Student
from s3prl_ekd.student_part import student_state
from s3prl_ekd.teachers.stand_ins import TINY
from s3prl_ekd.variants import packaged

SMALL = {
    "width": TINY.width, "ffn_width": TINY.ffn_width, "heads": TINY.heads,
    "conv_layers": [list(layer) for layer in TINY.conv_layers],
    "pos_conv_kernel": TINY.pos_conv_kernel, "pos_conv_groups": TINY.pos_conv_groups,
}  # fmt: skip

LARGE = {"conv_norm": "layer", "conv_bias": True, "pre_norm": True, "normalize": True}
"""The norms of a student of XLS-R's kind."""


def write_student(
    file: Path,
    teacher_width: int = TINY.width,
    full_size: bool = False,
    seed: int = 1,
    student: Mapping[str, Any] | None = None,
) -> Path:
    """A checkpoint of three teachers' heads with random weights, whose norms are not at their trivial start.

    ``student`` are numbers in place of the small one's.
    """
    values = load_model_config(packaged("config_model.yaml")).model_dump(mode="json")
    small = {"student": values["student"] | SMALL | dict(student or {})}
    config = load_model_config(values | ({} if full_size else small))
    layers = [TeacherLayers(t.name, tuple(t.layers), teacher_width) for t in config.ekd.teachers]
    targets = plan_targets(config.ekd.mode, layers)
    torch.manual_seed(seed)
    model = Student(config.student, targets)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"EKD": student_state(model, config, targets), "Step": 10}, file)
    return file


def export_hf(ckpt: Path, out: Path, *words: str) -> int:
    """The status of ``s3prl-ekd export hf``."""
    return main(["export", "hf", "--ckpt", str(ckpt), "--out", str(out), *words])


def student_record(checkpoint: Path) -> dict[str, Any]:
    """Scores of a checkpoint as ``s3prl-ekd evaluate`` writes them."""
    tasks = {"pr": score_of_task("pr", 51.25, n_utterances=7, steps=300, lr=0.01)}
    return score_record(
        "mine", tasks, upstream="ekd_student", checkpoint=str(checkpoint), checkpoint_sha256=content(checkpoint),
        cache_states=True, preset="quick",
    )  # fmt: skip
