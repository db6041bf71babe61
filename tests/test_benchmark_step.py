"""The benchmark of a step: of which ceiling its time is a fraction, with stand-ins for both steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks import common, step


@pytest.mark.parametrize(
    ("device", "precision", "student", "ceiling"),
    [
        ("cpu", "fp32", "fp32", torch.float32),
        ("cpu", "bf16", "fp32", None),
        ("cuda", "bf16", "bf16", torch.bfloat16),
        ("cuda", "fp32", "bf16", None),  # benchmarks/gpu/run.sh: step-default
        ("cuda", "fp32", "fp32", None),
    ],
)
def test_a_fraction_of_one_ceiling(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, student: str, ceiling: torch.dtype | None
) -> None:
    """A step whose products are of two kinds has none: it was set against the slower one, on a GPU beyond 100 %."""
    asked: list[torch.dtype] = []

    def matmul_ceiling(device: str, dtype: torch.dtype) -> float:
        asked.append(dtype)
        return 1e12

    monkeypatch.setattr(common, "matmul_ceiling", matmul_ceiling)
    monkeypatch.setattr(common, "clips", lambda *_: [torch.zeros(1)])
    monkeypatch.setattr(step, "ours", lambda *_: None)
    monkeypatch.setattr(step, "s3prl_way", lambda *_: None)
    times = {"ratio": 2.0, "ratio_low": 1.0, "ratio_high": 3.0, "first_s": 1.0, "second_s": 2.0}
    monkeypatch.setattr(common, "interleaved", lambda *_: times)
    options = SimpleNamespace(
        device=device, size="tiny", batch=1, clip_seconds=1.0, precision=precision, student_precision=student, pairs=1
    )
    found = step.run(options)
    assert asked == ([] if ceiling is None else [ceiling])
    assert ("matmul_fraction" in found) == ("matmul_ceiling_flops" in found) == (ceiling is not None)
