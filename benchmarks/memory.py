"""Peak memory of the training step, each side in a process of its own.

On a GPU what torch allocated at most; on a CPU the process's peak resident set, libraries and all.
"""

from __future__ import annotations

import multiprocessing
import resource
from typing import Any

import torch

from benchmarks import common, step


def run(options: Any) -> dict[str, Any]:
    """GiB of two steps of ours and of the s3prl way."""
    context = multiprocessing.get_context("spawn")
    values: dict[str, Any] = {"precision": options.precision, "size": options.size, "batch": options.batch}
    for side in ("ours", "s3prl"):
        with context.Pool(1) as pool:
            values[f"{side}_gib"] = pool.apply(_peak, (side, vars(options)))
    values["ratio"] = values["s3prl_gib"] / values["ours_gib"]
    return values


def _peak(side: str, options: dict[str, Any]) -> float:
    device = options["device"]
    clips = common.clips(options["batch"], options["clip_seconds"], device)
    if side == "ours":
        work = step.ours(
            options["size"], torch.stack(clips), options["precision"], device, options["student_precision"]
        )
    else:
        work = step.s3prl_way(options["size"], clips, device)
    work(), work()
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kibibytes on Linux
