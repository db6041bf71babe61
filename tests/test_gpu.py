"""What only a GPU can show; skipped without one (benchmarks/gpu/run.sh runs them on a host that has one)."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from export_student import LARGE
from pretrain_lab import hold_out, make_expert, write_lab
from trouble_checks import check_continued, check_nan, check_out_of_memory, check_precisions

from s3prl_ekd.bridge.adamw import step_at_once
from s3prl_ekd.compat.hub import register
from s3prl_ekd.data.batches import Batch
from s3prl_ekd.metrics_file import read_metrics
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.ensemble import FrozenTeachers

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_batch_of_nan_is_no_step(lab: Path, tmp_path: Path, precision: str) -> None:
    check_nan(lab, tmp_path, "cuda", precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_batch_that_does_not_fit_is_left_out(lab: Path, tmp_path: Path, precision: str) -> None:
    check_out_of_memory(lab, tmp_path, "cuda", precision)


@pytest.mark.parametrize(("precision", "fused"), [("bf16", False), ("fp16", False), ("fp32", True), ("fp16", True)])
def test_a_killed_run_continues_with_the_same_losses(lab: Path, tmp_path: Path, precision: str, fused: bool) -> None:
    """With the loss scale of fp16, which a fused optimizer takes into its kernel."""
    check_continued(lab, tmp_path, "cuda", precision, fused)


def test_a_run_on_a_numbered_gpu(lab: Path, tmp_path: Path) -> None:
    check_continued(lab, tmp_path, f"cuda:{torch.cuda.device_count() - 1}")


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


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 1e-2)])
@pytest.mark.parametrize("options", [
    {}, {"student_layers": [1, 0, 2], "student": {"feature_grad_mult": 0}}, {"student": LARGE, "initialise_from": None}
], ids=["paper", "layers", "large"])  # fmt: skip
def test_the_validation_loss_is_the_cpus(
    tmp_path: Path, precision: str, tolerance: float, options: dict[str, Any]
) -> None:
    lab, losses = hold_out(write_lab(tmp_path)), []
    for device in ("cpu", "cuda"):
        own = "fp32" if device == "cpu" else precision
        expert = make_expert(lab, held_out=True, precision=own, **options).train().to(device)
        expert.device = device
        folder = tmp_path / device
        folder.mkdir()
        expert.add_state_to_save({"Step": 3, "Args": Namespace(expdir=str(folder))})
        losses.append(read_metrics(folder / "validation.jsonl")[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_does_not_wait_for_the_device(lab: Path, precision: str) -> None:
    expert = make_expert(lab, precision=precision, teacher_precision=precision).train()
    expert.device = "cuda"
    expert.to("cuda")
    batch = Batch(torch.randn(2, 32_000).pin_memory(), epoch=0, index=0)
    register()
    from s3prl.optimizers import get_optimizer

    optimizer = get_optimizer([expert.model], 10, {"name": "AdamW_with_schedule", "lr": 1e-4})
    assert step_at_once(optimizer)
    for step in (1, 2):  # allocations and the choice of kernels may wait, once
        loss, _ = expert(batch, records={}, global_step=step, log_step=10)
        loss.backward()
        optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, _ = expert(batch, records={}, global_step=3, log_step=10)
        loss.backward()
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)
