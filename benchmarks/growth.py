"""How our training step grows with clip length, batch size and number of teachers."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks import common, step

TEACHERS = (1, 2, 3)
FACTORS = (1, 2, 4)


def run(options: Any) -> dict[str, Any]:
    """Seconds a step at 1, 2, 4 times the clip length and the batch, and with 1, 2, 3 teachers."""
    values: dict[str, Any] = {"precision": options.precision, "size": options.size}
    for factor in FACTORS:
        values[f"clip_{options.clip_seconds * factor:g}_s"] = _seconds(options, seconds=options.clip_seconds * factor)
    for factor in FACTORS:
        values[f"batch_{options.batch * factor}"] = _seconds(options, batch=options.batch * factor)
    for count in TEACHERS:
        values[f"teachers_{count}"] = _seconds(options, teachers=count)
    return values


def _seconds(options: Any, seconds: float | None = None, batch: int | None = None, teachers: int = 3) -> float:
    wave = torch.stack(common.clips(batch or options.batch, seconds or options.clip_seconds, options.device))
    work = step.ours(options.size, wave, options.precision, options.device, options.student_precision, teachers)
    work()
    return statistics.median(common.seconds(work, options.device) for _ in range(max(options.pairs // 2, 2)))
