"""The optimizer's step on the default student and its heads: s3prl's AdamW_with_schedule, and ours (adamw.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks import common
from s3prl_ekd.bridge.adamw import step_at_once
from s3prl_ekd.compat.hub import register
from s3prl_ekd.config import load_model_config
from s3prl_ekd.distill.targets import TeacherLayers, plan_targets
from s3prl_ekd.model.student import Student
from s3prl_ekd.variants import packaged


def run(options: Any) -> dict[str, Any]:
    """Milliseconds of a step in both ways, their ratio, and the largest difference of a weight after all of them."""
    register()
    from s3prl.optimizers import get_optimizer

    width = common.SIZES[options.size].width
    config = load_model_config(packaged("config_model.yaml"))
    teachers = [TeacherLayers(teacher.name, tuple(teacher.layers), width) for teacher in config.ekd.teachers]
    students: list[nn.Module] = []
    steps = []
    for at_once in (True, False):
        torch.manual_seed(0)
        student = Student(config.student, plan_targets(config.ekd.mode, teachers)).to(options.device)
        optimizer = get_optimizer([student], 1_000, {"name": "AdamW_with_schedule", "lr": 2e-4})
        if at_once:
            step_at_once(optimizer)
        for weight in student.parameters():
            weight.grad = 1e-3 * torch.randn_like(weight)
        students.append(student)
        steps.append(optimizer.step)
    ours, s3prls = steps
    result = common.interleaved(ours, s3prls, options.device, options.pairs)
    pairs = zip(*(student.parameters() for student in students), strict=True)
    return {
        "weights": len(list(students[0].parameters())),
        "ours_ms": 1e3 * result["first_s"],
        "s3prl_ms": 1e3 * result["second_s"],
        "ratio": result["ratio"],
        "largest_difference": max(float((one - other).detach().abs().max()) for one, other in pairs),
    }
