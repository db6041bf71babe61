"""Nothing in a training step reads a value back from the device, but on log steps.

The step runs on torch's meta device, whose tensors hold no values: ``item()``, ``bool(tensor)``, ``tolist()``,
``cpu()``, ``nonzero()`` and indexing by a mask, for each of which a GPU would be waited for, raise there. So does an
operation that mixes devices, as with a buffer that did not follow ``.to(device)``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from export_student import LARGE
from pretrain_lab import make_expert

from s3prl_ekd.config import MaskConfig
from s3prl_ekd.data.batches import Batch
from s3prl_ekd.distill import objective
from s3prl_ekd.distill.losses import HeadLosses, mean_over_heads
from s3prl_ekd.model.masking import SpanMask

if TYPE_CHECKING:
    from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert

OPTIONS = {
    "paper": {},
    "average": {"mode": "layerwise_average"},
    "concat": {"mode": "layerwise_concat"},
    "standardise": {"targets": {"normalise": "standardise"}},
    "phi_s": {"targets": {"normalise": "phi_s", "fit_batches": 2}},
    "ffn": {"targets": {"tap": "ffn"}},
    "dropping": {"weights": {"hubert": 2.0}, "teacher_dropping": {}},
    "balance": {"balance": {}, "teacher_dropping": {"probability": 1.0}},
    "residual": {"residual_heads": [["wavlm", "hubert"]], "targets": {"normalise": "standardise"}},
    "layers": {"student_layers": [1, 0, 2], "student": {"feature_grad_mult": 0}},
    "large": {"student": LARGE, "initialise_from": None},
    "half": {"precision": "bf16", "teacher_precision": "bf16"},
}


def on_meta(lab: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> tuple[UpstreamPretrainExpert, Batch]:
    """The whole pretrain task on the meta device, and a batch of two seconds; autocast does not know that device."""
    expert = make_expert(lab, **changes).train()
    expert.model.mask = SpanMask(expert.model.encoder.shape.width, MaskConfig())
    expert.device = "meta"
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    return expert.to("meta"), Batch(torch.zeros(2, 32_000, device="meta"), epoch=0, index=0)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_waits_for_the_device_on_log_steps_only(lab: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expert, batch = on_meta(lab, monkeypatch, **OPTIONS[name])
    for step in (1, 2, 3):  # phi_s computes its rotation in the second
        loss, records = expert(batch, records={}, global_step=step, log_step=10)
        loss.backward()
        assert not records and loss.device.type == "meta"
    assert all(p.grad is not None for p in expert.model.encoder.layers.parameters())
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # the log values, in one go
        expert(batch, records={}, global_step=10, log_step=10)


@pytest.mark.parametrize("read", ["item", "cpu", "tolist", "__bool__", "nonzero"])
def test_the_test_above_notices(lab: Path, monkeypatch: pytest.MonkeyPatch, read: str) -> None:
    """A value read in the loss, whichever way, stops the step on the meta device."""

    def nosy(losses: dict[str, HeadLosses], *weights: float) -> torch.Tensor:
        loss = mean_over_heads(losses, *weights)
        getattr(loss, read)()
        return loss

    expert, batch = on_meta(lab, monkeypatch)
    monkeypatch.setattr(objective, "mean_over_heads", nosy)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta|Meta"):
        expert(batch, records={}, global_step=1, log_step=10)


def test_a_log_step_reads_the_device_as_often_whatever_the_number_of_heads(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    for name in ("cpu", "item", "tolist", "__float__"):
        original = getattr(torch.Tensor, name)

        def counted(
            self: torch.Tensor,
            *args: object,
            name: str = name,
            original: Callable[..., object] = original,
            **kwargs: object,
        ) -> object:
            reads.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    found = {}
    for mode in ("multi_head", "layerwise_average"):
        expert = make_expert(lab, mode=mode).train()
        batch = next(iter(expert.loader))
        reads.clear()
        expert(batch, records={}, global_step=10, log_step=10)
        found[mode] = sorted(reads)
    # every head's values in one copy, and the loss
    assert found["multi_head"] == found["layerwise_average"] == ["__float__", "tolist"]
