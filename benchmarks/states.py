"""What ``runner.cache_states`` saves: one task trained by the real command without it, filling it, and from a full one.

python -m benchmarks.states --data DATA --ckpt CKPT [--task pr] [--steps 300] [--device cpu] [--json FILE]

DATA is what `s3prl-ekd prepare` wrote, CKPT a student. Processor seconds are those of the command and of its children,
so that a busy machine matters less; about ten of them are imports. A short run goes before, and does not count.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import common
from s3prl_ekd.evaluate.models import choose_models
from s3prl_ekd.evaluate.plan import make_plan
from s3prl_ekd.evaluate.presets import preset
from s3prl_ekd.evaluate.tasks import TASKS

WARM_UP = 10  # steps


def spent(command: list[str], log: Path) -> tuple[float, float]:
    """Wall-clock and processor seconds of a command."""
    before, start = common.children_seconds(), time.perf_counter()
    with log.open("w") as stream:
        subprocess.run(command, stdout=stream, stderr=stream, check=True)
    return time.perf_counter() - start, common.children_seconds() - before


def measure(options: Any, folder: Path) -> dict[str, dict[str, float]]:
    """Seconds of the three runs, in the preset for small corpora with ``options.steps`` steps and one test on dev."""
    chosen = preset("small")
    model = choose_models([("ckpt", str(options.ckpt))], None, None)[0]
    folds = ["fold1"] if options.task == "er" else None

    def train(name: str, steps: int, cache: Path | None) -> dict[str, float]:
        items = {f"config.runner.{key}": str(steps) for key in ("total_steps", "eval_step", "save_step")}
        run = make_plan(
            [TASKS[options.task]], options.data.resolve(), folder / name, model,
            {options.task: {**chosen.tasks[options.task], **items}}, folds=folds,
            normalize=chosen.normalize, cache=cache,
        )[0]  # fmt: skip
        command = replace(run, device=options.device).train_command()
        wall, processor = spent(command, folder / f"{name}.log")
        return {"wall_s": wall, "processor_s": processor}

    train("warm-up", min(WARM_UP, options.steps), None)  # else the first run alone pays for compiling and a cold disk
    result = {}
    for name, cache in (("without", None), ("filling", folder / "states"), ("full", folder / "states")):
        result[name] = train(name, options.steps, cache)
        wall, processor = result[name].values()
        print(f"{name:8} {wall:7.1f} s by the clock, {processor:7.1f} s of processor time", flush=True)
    size = sum(file.stat().st_size for file in (folder / "states").rglob("*.npy"))
    print(f"{size / 1e6:.0f} MB of states; a full folder: {_ratio(result):.1f} times less processor time")
    return result | {"states": {"megabytes": size / 1e6}}


def _ratio(result: dict[str, dict[str, float]]) -> float:
    return result["without"]["processor_s"] / result["full"]["processor_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what s3prl-ekd prepare wrote")
    parser.add_argument("--ckpt", type=Path, required=True, help="a student")
    parser.add_argument("--task", choices=tuple(TASKS), default="pr")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = dict(measure(options, Path(folder)))
    common.save(result, options.json, options.device, "benchmarks.states")


if __name__ == "__main__":
    main()
