"""What only a GPU can show; skipped without one (benchmarks/gpu/run.sh runs them on a host that has one)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import test_pretrain_expert as pretraining
import torch
import trouble_lab

from s3prl_ekd.data.batches import Batch
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.ensemble import FrozenTeachers
from s3prl_ekd.torch_file import read_torch_file

pytestmark = pytest.mark.gpu

lab = pretraining.lab


def check_nan(lab: Path, folder: Path, device: str, precision: str) -> None:
    """A NaN clip in step 3 of 8: s3prl's runner says so, the weights stay, and training goes on."""
    words = trouble_lab.arguments(
        lab, trouble_lab.configure(lab, folder, precision), "x", device, fp16=precision == "fp16"
    )
    out, _ = trouble_lab.end(trouble_lab.start(folder, *words, faults="3:nan"))
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
    """A batch of step 3 fails on its way forward and one of step 5 on its way back; each step has another batch."""
    model = trouble_lab.configure(lab, folder, precision)
    words = trouble_lab.arguments(
        lab, model, "x", device, fp16=precision == "fp16", gradient_accumulate_steps=accumulate
    )
    out, err = trouble_lab.end(trouble_lab.start(folder, *words, faults="3:forward,5:backward"))
    for step in (3, 5):
        assert f"CUDA out of memory at step {step}\n" in out
        (line,) = (line for line in err.splitlines() if f"step {step}: a batch of " in line)
        assert "is left out; set a smaller pretrain_expert.datarc.batch_seconds" in line
    batches = trouble_lab.lines(folder / "steps.jsonl", "batch")
    expected = [step for step in range(1, 9) for _ in range(accumulate + (step in (3, 5)))]
    assert [line["batch"] for line in batches] == expected
    assert all(line["graphs"] == 0 for line in batches)  # the next batch does not need the memory of two
    failed = expected.index(5)
    assert batches[failed + 1]["allocated"] <= batches[failed]["allocated"] + 2**20
    steps = trouble_lab.lines(folder / "steps.jsonl", "step")
    assert len(steps) == 8 and all(line["finite"] for line in steps)
    # fp16: its scale may be too large at first; the last step has a learning rate of 0
    assert all(line["changed"] for line in steps[5 if precision == "fp16" else 0 : 7])
    assert all(map(math.isfinite, trouble_lab.losses(folder / "x").values()))
    check_finite(folder / "x")


def check_continued(lab: Path, folder: Path, device: str) -> None:
    """Killed after step 4 and continued with -a: the losses of a run that was never stopped."""
    model = trouble_lab.configure(lab, folder, "bf16")
    whole = trouble_lab.start(folder, *trouble_lab.arguments(lab, model, "whole", device))
    killed = trouble_lab.arguments(lab, model, "killed", device)
    killed[-1] += ",,config.pretrain_expert.datarc.num_workers=0"  # workers outlive their killed process by seconds
    trouble_lab.end(trouble_lab.start(folder, *killed, faults="5:kill"), status=-9)
    assert sorted(trouble_lab.losses(folder / "killed")) == [1, 2, 3, 4]
    trouble_lab.end(trouble_lab.start(folder, *killed, "-a"))
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


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_batch_of_nan_is_no_step(lab: Path, tmp_path: Path, precision: str) -> None:
    check_nan(lab, tmp_path, "cuda", precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_batch_that_does_not_fit_is_left_out(lab: Path, tmp_path: Path, precision: str) -> None:
    check_out_of_memory(lab, tmp_path, "cuda", precision)


def test_a_killed_run_continues_with_the_same_losses(lab: Path, tmp_path: Path) -> None:
    check_continued(lab, tmp_path, "cuda")


def test_losses_of_all_precisions_agree(lab: Path, tmp_path: Path) -> None:
    check_precisions(lab, tmp_path, "cuda")


@pytest.mark.parametrize("name", ["tiny_hubert", "tiny_wavlm"])
@pytest.mark.parametrize(("precision", "cosine"), [("fp32", 0.9999), ("bf16", 0.999), ("fp16", 0.999)])
def test_states_agree_with_the_cpu(name: str, precision: str, cosine: float) -> None:
    """fp32 on a GPU multiplies in TF32 (10 bits of mantissa)."""
    wave = 0.1 * torch.randn(3, 32_000, generator=torch.Generator().manual_seed(0))

    def states(device: str, precision: str) -> dict[int, torch.Tensor]:
        encoder = sources.load(sources.describe(f"embedded:{name}"))
        teachers = FrozenTeachers({"t": encoder}, {"t": range(7)}, precision).to(device)
        return {layer: state.float().cpu() for layer, state in teachers(wave.to(device))["t"].items()}

    exact, found = states("cpu", "fp32"), states("cuda", precision)
    for layer, state in exact.items():
        assert torch.cosine_similarity(state, found[layer], dim=-1).mean() > cosine, layer


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_does_not_wait_for_the_device(lab: Path, precision: str) -> None:
    expert = pretraining.make_expert(lab, precision=precision, teacher_precision=precision).train()
    expert.device = "cuda"
    expert.to("cuda")
    batch = Batch(torch.randn(2, 32_000).pin_memory(), epoch=0, index=0)
    for step in (1, 2):  # allocations and the choice of kernels may wait, once
        loss, _ = expert(batch, records={}, global_step=step, log_step=10)
        loss.backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, _ = expert(batch, records={}, global_step=3, log_step=10)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)
