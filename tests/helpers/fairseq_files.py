"""Files as fairseq writes them, and what is compared when they are read; for the tests of teachers only."""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
from pathlib import Path
from typing import Any, Optional

import pytest
import torch

from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.teachers import mapping, sources
from s3prl_ekd.teachers.stand_ins import TINY
from s3prl_ekd.teachers.writers import fairseq_config

FAIRSEQ_SHAPE = TINY.with_(padding_rule="fairseq", layers=2)


def same(one: Encoder, other: Encoder) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return sorted(ours) == sorted(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def load(source: Path | str) -> Encoder:
    return sources.load(sources.describe(str(source)))


def stub_fairseq(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Classes as fairseq pickles them, importable only while a file is written."""
    dictionary, meters, dataclass_module = (
        types.ModuleType(f"fairseq.{name}") for name in ("data.dictionary", "meters", "dataclass")
    )
    for package in ("fairseq", "fairseq.data"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))

    class Dictionary:
        def __init__(self) -> None:
            self.symbols, self.indices = ["<s>", "0"], {"<s>": 0, "0": 1}

    class Meter(dict):
        pass

    class Choice(enum.Enum):
        layer_norm = "layer_norm"  # as fairseq makes its enums: every name is its value

    @dataclasses.dataclass
    class HubertConfig:
        _name: str = "hubert"
        extractor_mode: Choice = Choice.layer_norm
        encoder_layers: int = 2
        untie_final_proj: Optional[bool] = None  # noqa: UP045 - pickles as fairseq's do
        label_rate: Any = "${task.label_rate}"

    for module, classes in ((dictionary, [Dictionary]), (meters, [Meter]), (dataclass_module, [Choice, HubertConfig])):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for cls in classes:
            cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
            setattr(module, cls.__name__, cls)
    dataclass_module.Optional, dataclass_module.Any = Optional, Any
    return types.SimpleNamespace(Dictionary=Dictionary, Meter=Meter, Choice=Choice, HubertConfig=HubertConfig)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on importing fairseq or omegaconf fails, as where neither is installed."""
    for name in list(sys.modules):
        if name.split(".")[0] in {"fairseq", "omegaconf"}:
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "omegaconf", None)


def model_config(encoder: Encoder) -> dict[str, Any]:
    return {"_name": "hubert", **fairseq_config(encoder.shape)}


def fairseq_content(encoder: Encoder, stubs: types.SimpleNamespace | None) -> dict[str, Any]:
    weights = mapping.from_ours(encoder.state_dict(), mapping.FAIRSEQ, encoder.shape.conv_norm)
    weights |= {"mask_emb": torch.zeros(4), "label_embs_concat": torch.zeros(5, 4), "final_proj.weight": torch.ones(1)}
    content: dict[str, Any] = {
        "model": weights,
        "optimizer_history": [{"optimizer_name": "FP16Optimizer", "num_updates": 400_000}],
        "last_optimizer_state": None,
    }
    if stubs is not None:
        meter = stubs.Meter(loss=2.78)
        content |= {"extra_state": {"metrics": meter}, "task_state": {"dictionaries": [stubs.Dictionary()]}}
    return content


LARGE = FAIRSEQ_SHAPE.with_(conv_norm="layer", pre_norm=True, normalize=True)
