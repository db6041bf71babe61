"""What every benchmark shares: interleaved timing, the matmul ceiling, the machine."""

from __future__ import annotations

import json
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from s3prl_ekd.environment import versions
from s3prl_ekd.model import onednn
from s3prl_ekd.shape import HUBERT_BASE, EncoderShape
from s3prl_ekd.teachers.sources import describe

_TINY = describe("embedded:tiny_hubert").shape  # the embedded teachers', and so the demo's
assert isinstance(_TINY, EncoderShape)
SIZES = {"full": HUBERT_BASE, "tiny": _TINY}
LAYERS = {"full": (4, 8, 12), "tiny": (2, 4, 6)}


def clips(count: int, seconds: float, device: str) -> list[torch.Tensor]:
    """Clips of one length, the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    samples = int(seconds * 16_000)
    return [0.1 * torch.randn(samples, generator=generator).to(device) for _ in range(count)]


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall-clock seconds of one call, device work included."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def interleaved(first: Callable[[], object], second: Callable[[], object], device: str, pairs: int) -> dict[str, float]:
    """Run two candidates in turns and compare pair by pair, so that a busy machine slows both alike.

    Returns:
        median seconds of each, the median of the pairs' ratios second/first, and its spread (quartiles).
    """
    first(), second()  # warm-up: allocations, algorithm choice, compilation
    times = [(seconds(first, device), seconds(second, device)) for _ in range(pairs)]
    ratios = sorted(b / a for a, b in times)
    quartile = len(ratios) // 4
    return {
        "first_s": statistics.median(a for a, _ in times),
        "second_s": statistics.median(b for _, b in times),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[quartile],
        "ratio_high": ratios[-1 - quartile],
        "pairs": pairs,
    }


def matmul_ceiling(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product on random data: the ceiling that a step is measured against.

    By the faster of a CPU's two libraries.
    """
    size = 8192 if device.startswith("cuda") else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    multiply = onednn.product if onednn.supports(a, b) else torch.mm
    multiply(a, b)
    return 2 * size**3 / min(seconds(lambda: multiply(a, b), device) for _ in range(5))


def machine(device: str) -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "load_average": _load(),
    }


def children_seconds() -> float:
    """Processor time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def save(result: dict[str, Any], file: Path | None, device: str, module: str) -> dict[str, Any]:
    """The result with where it comes from (machine, versions, the command of ``module``); written, where to a file."""
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    result = result | {"machine": machine(device), "versions": versions(), "command": command}
    if file:
        file.write_text(json.dumps(result, indent=2) + "\n")
    return result


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return f"{names[0]} x {len(names)}"
    except (OSError, IndexError):
        return f"{platform.processor() or platform.machine()} ({sys.platform})"


def _load() -> float | None:
    try:
        with open("/proc/loadavg") as file:
            return float(file.read().split()[0])
    except OSError:
        return None
