"""Where one of our training steps spends its time: the operators or kernels that take most of it.

On a GPU these are kernels, by their own time on the device; on a CPU operators, by their own time. What the device does
not do while it waits for Python shows as ``idle_share``.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import common, step

SHOWN = 12
STEPS = 3


def run(options: Any) -> dict[str, Any]:
    """``options``: device, size, batch, clip_seconds, precision, student_precision."""
    logging.disable(logging.INFO)
    gpu = options.device.startswith("cuda")
    wave = torch.stack(common.clips(options.batch, options.clip_seconds, options.device))
    work = step.ours(options.size, wave, options.precision, options.device, options.student_precision)
    for _ in range(2):
        work()
    wall = common.seconds(lambda: [work() for _ in range(STEPS)], options.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities, acc_events=True) as seen:
        for _ in range(STEPS):
            work()
        common.synchronize(options.device)
    rows = [(row.key, _own_time(row, gpu), row.count) for row in seen.key_averages() if _counts(row, gpu)]
    rows.sort(key=lambda row: -row[1])
    total = sum(time for _, time, _ in rows)
    values: dict[str, Any] = {
        "size": options.size,
        "precision": options.precision,
        "student_precision": options.student_precision,
        "step_s": wall / STEPS,
        "top": {
            name[:80]: {"share": time / total, "ms_a_step": time / 1e3 / STEPS, "calls_a_step": count / STEPS}
            for name, time, count in rows[:SHOWN]
        },
    }
    if gpu:
        values["idle_share"] = max(0.0, 1 - total / 1e6 / wall)
    return values


def _counts(row: Any, gpu: bool) -> bool:
    """Whether a row is work of the device that is measured, not the call that started it."""
    return not gpu or (row.device_type == torch.autograd.DeviceType.CUDA and not row.is_user_annotation)


def _own_time(row: Any, gpu: bool) -> float:
    """Microseconds."""
    return float(row.self_device_time_total if gpu else row.self_cpu_time_total)
