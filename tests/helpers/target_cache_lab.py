"""Experts that train on a target cache, and what their teachers are called for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from s3prl_ekd.data.batches import Batch
from s3prl_ekd.teachers.ensemble import FrozenTeachers

if TYPE_CHECKING:
    from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert


def write_model(lab: Path, file: Path, cache: Path | None, sections: dict[str, Any] | None = None, **ekd: Any) -> Path:
    """The lab's model.yaml as ``file``, with a cache (None: without), other sections, and changes to ``ekd``."""
    model = yaml.safe_load((lab / "model.yaml").read_text()) | (sections or {})
    model["ekd"] |= ekd | {"cache_targets": None if cache is None else str(cache)}
    file.write_text(yaml.safe_dump(model))
    return file


def make_expert(
    lab: Path, cache: Path | None, data: dict[str, Any] | None = None, sections: dict | None = None, **ekd: Any
) -> UpstreamPretrainExpert:
    """The pretrain task with a cache (None: without), with changes to ``datarc``, to other sections and to ``ekd``."""
    from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert

    datarc = yaml.safe_load((lab / "runner.yaml").read_text())["pretrain_expert"]["datarc"]
    file = write_model(lab, lab / "cached.yaml", cache, sections, **ekd)
    torch.manual_seed(0)
    return UpstreamPretrainExpert(datarc | {"num_workers": 0} | (data or {}), str(file), device="cpu").train()


def batches(expert: Any, epochs: int) -> Iterator[Batch]:
    for _ in range(epochs):
        yield from expert.get_train_dataloader()


def train(expert: Any, data: Iterator[Batch]) -> list[float]:
    """The runner's loop; the loss of every step."""
    optimizer, losses = torch.optim.AdamW(expert.model.parameters(), lr=1e-3), []
    for step, batch in enumerate(data, start=1):
        loss, _ = expert(batch, records={}, global_step=step, log_step=10)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Clips of each call of the ensemble from here on; the fixture ``calls`` of conftest.py."""
    found: list[int] = []
    real = FrozenTeachers.forward

    def counted(self: FrozenTeachers, wave: torch.Tensor, *rest: Any) -> Any:
        found.append(len(wave))
        return real(self, wave, *rest)

    monkeypatch.setattr(FrozenTeachers, "forward", counted)
    return found
