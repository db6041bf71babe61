"""Does a bf16 run learn as an fp32 run does? Loss curves of both, beside the spread of fp32 runs with other seeds.

python -m benchmarks.precision --data DATA/pretrain.yaml [--steps 300] [--seeds 3] [--device cpu] [--json FILE]

DATA/pretrain.yaml is what `s3prl-ekd prepare` wrote. Each run is the pretrain task itself (three small teachers with
random weights, AdamW, warm-up and decay) in one process; everything but the precision or the seed is equal.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import common
from benchmarks.step import student_config
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.teachers.stand_ins import TINY, write_stand_ins

WINDOW = 25  # steps whose losses are averaged into one point of a curve


def curve(options: Any, precision: str, seed: int) -> list[float]:
    """The loss of every step of one run."""
    from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert

    datarc = read_yaml(options.data)["pretrain_expert"]["datarc"]
    datarc |= {"num_workers": 0, "train_batch_size": options.batch, "seed": seed}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = write_stand_ins(folder / "teachers")
        teachers = [{"name": n, "source": str(s), "layers": [2, 4, 6]} for n, s in sources.items()]
        ekd = {"teachers": teachers, "initialise_from": None, "precision": precision, "teacher_precision": precision}
        model = {"base": "config_model.yaml", "ekd": ekd, "student": student_config(TINY).model_dump(mode="json")}
        model["task"] = {"sequence_length": 48_000}
        (folder / "model.yaml").write_text(yaml.safe_dump(model))
        torch.manual_seed(seed)
        expert = UpstreamPretrainExpert(datarc, str(folder / "model.yaml"), device=options.device)
    expert.to(options.device).train()
    optimizer = torch.optim.AdamW(expert.model.parameters(), lr=1e-3)
    warm = max(options.steps * 7 // 100, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (options.steps - step) / (options.steps - warm))
    )
    losses: list[float] = []
    while len(losses) < options.steps:
        for batch in expert.get_train_dataloader():
            loss, _ = expert(batch, records={}, global_step=1, log_step=1_000_000)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(expert.model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            if len(losses) == options.steps:
                break
    return losses


def compare(fp32: list[list[float]], bf16: list[float]) -> dict[str, Any]:
    """Points of the smoothed curves: fp32 of the same seed, bf16, and the range of fp32 over seeds."""
    points = []
    for start in range(0, len(bf16) - WINDOW + 1, WINDOW):
        seeds = [statistics.fmean(run[start : start + WINDOW]) for run in fp32]
        half = statistics.fmean(bf16[start : start + WINDOW])
        points.append(
            {"step": start + WINDOW, "fp32": seeds[0], "bf16": half, "fp32_low": min(seeds), "fp32_high": max(seeds)}
        )
    return {
        "points": points,
        "largest_bf16_difference": max(abs(p["bf16"] - p["fp32"]) for p in points),
        "median_seed_range": statistics.median(p["fp32_high"] - p["fp32_low"] for p in points),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the pretrain.yaml that s3prl-ekd prepare wrote")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    fp32 = [curve(options, "fp32", seed) for seed in range(options.seeds)]
    result = compare(fp32, curve(options, "bf16", 0))
    for p in result["points"]:
        spread = f"{p['fp32_low']:.4f} to {p['fp32_high']:.4f}"
        print(f"{p['step']:5d}  fp32 {p['fp32']:.4f}  bf16 {p['bf16']:.4f}  fp32 over seeds {spread}")
    print(f"largest difference of bf16 {result['largest_bf16_difference']:.4f}, "
          f"median range over seeds {result['median_seed_range']:.4f}")  # fmt: skip
    common.save(result, options.json, options.device, "benchmarks.precision")


if __name__ == "__main__":
    main()
