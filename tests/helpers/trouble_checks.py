"""What a pretraining run must survive, checked on any device: NaN audio, full memory, SIGKILL; and equal precisions.

Each check runs the real command through trouble_lab.py. test_gpu.py calls them on a GPU that really runs out of memory,
test_pretrain_trouble.py on the CPU, where torch's error is raised by hand.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import trouble_lab
import yaml

from s3prl_ekd.torch_file import read_torch_file


def check_nan(lab: Path, folder: Path, device: str, precision: str) -> None:
    """A NaN clip in step 3 of 8: s3prl's runner says so, the weights stay, and training goes on."""
    words = trouble_lab.arguments(
        lab, trouble_lab.configure(lab, folder, precision), "x", device, fp16=precision == "fp16"
    )
    out, _ = trouble_lab.run(folder, *words, faults="3:nan")
    assert "grad norm is NaN at global step 3" in out
    steps = {line["step"]: line for line in trouble_lab.lines(folder / "steps.jsonl", "step")}
    assert list(steps) == list(range(1, 9)) and all(line["finite"] for line in steps.values())
    kept = [step for step, line in steps.items() if not line["changed"]]
    if precision == "fp16":  # its scale may be too large at first
        assert 3 in kept and not {6, 7} & set(kept)
    else:
        assert kept == [3]
    losses = trouble_lab.losses(folder / "x")
    assert [step for step, loss in losses.items() if not math.isfinite(loss)] == [3]
    check_finite(folder / "x")


def check_out_of_memory(lab: Path, folder: Path, device: str, precision: str, accumulate: int = 1) -> None:
    """The last batch of step 3 fails on its way forward and that of step 5 on its way back; both steps begin anew."""
    model = trouble_lab.configure(lab, folder, precision)
    words = trouble_lab.arguments(
        lab, model, "x", device, fp16=precision == "fp16", gradient_accumulate_steps=accumulate
    )
    out, err = trouble_lab.run(folder, *words, faults=f"3:forward:{accumulate},5:backward:{accumulate}")
    for step in (3, 5):
        assert f"CUDA out of memory at step {step}\n" in out
        (line,) = (line for line in err.splitlines() if f"step {step}: a batch of " in line)
        assert "is skipped; set a smaller pretrain_expert.datarc.batch_seconds" in line
    batches = trouble_lab.lines(folder / "steps.jsonl", "batch")
    expected = [step for step in range(1, 9) for _ in range(accumulate * (1 + (step in (3, 5))))]
    assert [line["batch"] for line in batches] == expected
    assert all(line["graphs"] == 0 for line in batches)  # the next batch does not need the memory of two
    failed = expected.index(5) + accumulate - 1
    assert batches[failed + 1]["allocated"] <= batches[failed]["allocated"] + 2**20
    steps = trouble_lab.lines(folder / "steps.jsonl", "step")
    assert len(steps) == 8 and all(line["finite"] for line in steps)
    totals = [line["loss"] for line in steps]
    assert max(totals) < 1.3 * min(totals)  # nothing of a batch that was left out, nor of those before it
    # fp16: its scale may be too large at first; the last step has a learning rate of 0
    assert all(line["changed"] for line in steps[5 if precision == "fp16" else 0 : 7])
    assert all(map(math.isfinite, trouble_lab.losses(folder / "x").values()))
    check_finite(folder / "x")


def check_continued(lab: Path, folder: Path, device: str, precision: str = "bf16", fused: bool = False) -> None:
    """Killed after step 4 and continued with -a: the losses of a run that was never stopped.

    ``fused``: torch's own AdamW, all of it in one kernel, instead of s3prl's with its schedule.
    """
    model = trouble_lab.configure(lab, folder, precision)
    runner = yaml.safe_load((lab / "runner.yaml").read_text())
    if fused:
        runner["optimizer"] = {"name": "TorchOptim", "torch_optim_name": "AdamW", "lr": 1e-3, "fused": True}
    (folder / "runner.yaml").write_text(yaml.safe_dump(runner))

    def arguments(name: str) -> list[str]:
        words = trouble_lab.arguments(lab, model, name, device, fp16=precision == "fp16")
        words[words.index("-c") + 1] = str(folder / "runner.yaml")
        return words

    whole = trouble_lab.start(folder, *arguments("whole"))
    killed = arguments("killed")
    killed[-1] += ",,config.pretrain_expert.datarc.num_workers=0"  # workers outlive their killed process by seconds
    trouble_lab.run(folder, *killed, faults="5:kill", status=-9)
    assert sorted(trouble_lab.losses(folder / "killed")) == [1, 2, 3, 4]
    trouble_lab.run(folder, *killed, "-a")
    trouble_lab.end(whole)
    found, expected = (trouble_lab.losses(folder / name) for name in ("killed", "whole"))
    assert list(found) == list(range(1, 9)) and found == pytest.approx(expected, rel=0, abs=1e-3)
    assert abs(expected[8] - expected[4]) > 1e-3  # a run that learns nothing would show nothing


def check_precisions(lab: Path, folder: Path, device: str) -> None:
    """The same eight steps without dropout, whose draws depend on the precision."""
    off = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    runs = {}
    for precision in ("fp32", "bf16", "fp16"):
        model = trouble_lab.configure(lab, folder, precision, **off)
        words = trouble_lab.arguments(lab, model, precision, device, fp16=precision == "fp16")
        # at the lab's rate one step that fp16 leaves out, its scale too large, would be a difference of 5 %
        words[-1] += ",,config.optimizer.lr=2.0e-4"
        runs[precision] = trouble_lab.start(folder, *words)
    for run in runs.values():
        trouble_lab.end(run)
    exact, bf16, fp16 = (trouble_lab.losses(folder / name) for name in runs)
    assert list(exact) == list(range(1, 9)) and bf16 != exact
    assert bf16 == pytest.approx(exact, rel=0.02) and fp16 == pytest.approx(exact, rel=0.02)
    assert max(run[8] / run[1] for run in (exact, bf16, fp16)) < 0.97


def check_finite(expdir: Path) -> None:
    """Weights, heads and the optimizer's moments after the last step hold numbers only."""
    states = read_torch_file(next(expdir.glob("states-epoch-*.ckpt")))
    tensors = [*states["EKD"]["encoder"].values(), *states["EKD"]["heads"].values()]
    tensors += [v for of_one in states["Optimizer"]["state"].values() for v in of_one.values() if torch.is_tensor(v)]
    assert len(tensors) > 100 and all(tensor.isfinite().all() for tensor in tensors)
