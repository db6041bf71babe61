"""``make bench``: run the benchmarks and print a table; ``--json FILE`` keeps the numbers.

python -m benchmarks --bench step --size full --batch 2 --clip-seconds 15.6
make bench BENCH=step BENCH_JSON=step.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import common, distort, growth, kernels, memory, models, optimizer, profile, step

BENCHES = {
    "step": step.run,
    "teachers": models.run_teachers,
    "student": models.run_student,
    "data": distort.run,
    "memory": memory.run,
    "growth": growth.run,
    "profile": profile.run,
    "kernels": kernels.run,
    "optimizer": optimizer.run,
}


def main() -> int:
    formatter = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=formatter)
    parser.add_argument("--bench", default="all", choices=["all", *BENCHES])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", default=None, choices=list(common.SIZES), help="full: Base shapes (default on a GPU)")
    parser.add_argument("--batch", type=int, default=None, help="clips (24 on a GPU, 4 on a CPU)")
    parser.add_argument("--clip-seconds", type=float, default=None, help="15.6 on a GPU, 3 on a CPU")
    parser.add_argument("--precision", default=None, choices=["fp32", "bf16"], help="of our teachers; s3prl's is fp32")
    parser.add_argument("--student-precision", default=None, choices=["fp32", "bf16"], help="default: --precision")
    parser.add_argument("--pairs", type=int, default=7, help="interleaved repetitions")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    gpu = options.device.startswith("cuda")
    options.size = options.size or ("full" if gpu else "tiny")
    options.batch = options.batch or (24 if gpu else 4)
    options.clip_seconds = options.clip_seconds or (15.6 if gpu else 3.0)
    options.precision = options.precision or ("bf16" if gpu else "fp32")
    options.student_precision = options.student_precision or options.precision
    results = {name: bench(options) for name, bench in BENCHES.items() if options.bench in ("all", name)}
    for name, values in results.items():
        table = Table(title=name, show_header=False)
        for key, value in _flat(values):
            table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
        Console().print(table)
    Console().print(common.save(results, options.json, options.device, "benchmarks")["machine"])
    return 0


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}: ")
        else:
            yield f"{prefix}{key}", value


if __name__ == "__main__":
    sys.exit(main())
