"""Forward passes alone: each teacher family, and the student at inference, ours against the class it comes from.

Random weights of the real shapes. The other side is s3prl's own class where s3prl has one of its own (HuBERT, WavLM),
transformers' elsewhere; transformers' HubertModel with two layers stands beside the student.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.shape import DISTILHUBERT, EncoderShape
from s3prl_ekd.teachers.ensemble import FrozenTeachers
from s3prl_ekd.teachers.writers import write_converted, write_transformers

FAMILIES = {
    "hubert": {"padding_rule": "fairseq"},
    "wavlm": {"padding_rule": "fairseq", "attention": "gated_relative"},
    "wav2vec2": {},
}
STUDENT_BATCHES = (1, 24)


def run_teachers(options: Any) -> dict[str, Any]:
    """Seconds of one forward pass that returns three layers, fp32 on their side, ours in ``options.precision``."""
    logging.disable(logging.INFO)
    base, layers = common.SIZES[options.size], common.LAYERS[options.size]
    clips = common.clips(options.batch, options.clip_seconds, options.device)
    values: dict[str, Any] = {"precision": options.precision, "batch": options.batch, "size": options.size}
    for family, changes in FAMILIES.items():
        torch.manual_seed(0)
        encoder = Encoder(base.with_(**changes)).eval()
        theirs = _transformers(encoder, "wav2vec2") if family == "wav2vec2" else s3prl_expert(encoder, family)
        theirs = theirs.eval().requires_grad_(False).to(options.device)
        ours = FrozenTeachers({family: encoder}, {family: layers}, options.precision).to(options.device)
        result = common.interleaved(
            _frozen(ours, torch.stack(clips)),
            _frozen(theirs, clips if family != "wav2vec2" else torch.stack(clips)),
            options.device,
            options.pairs,
        )
        values[family] = _summary(result, options.batch * options.clip_seconds)
    return values


def run_student(options: Any) -> dict[str, Any]:
    """Seconds of the student's forward pass at batch 1 and 24, against transformers' HubertModel of two layers."""
    logging.disable(logging.INFO)
    shape = DISTILHUBERT if options.size == "full" else common.SIZES["tiny"].with_(layers=2, feature_norm=False)
    torch.manual_seed(0)
    ours = Encoder(shape).eval().to(options.device)
    theirs = _transformers(ours, "hubert").to(options.device)
    values: dict[str, Any] = {"precision": "fp32", "size": options.size, "clip_seconds": options.clip_seconds}
    for batch in STUDENT_BATCHES:
        wave = torch.stack(common.clips(batch, options.clip_seconds, options.device))
        result = common.interleaved(_frozen(ours, wave), _frozen(theirs, wave), options.device, options.pairs)
        values[f"batch_{batch}"] = _summary(result, batch * options.clip_seconds)
    return values


def s3prl_expert(encoder: Encoder, family: str) -> nn.Module:
    """s3prl's own upstream with an encoder's weights."""
    import s3prl_ekd

    s3prl_ekd.register()
    from s3prl import hub

    load = hub.wavlm_local if family == "wavlm" else hub.hubert_local
    with tempfile.TemporaryDirectory() as folder:
        return load(ckpt=str(write_converted(encoder, Path(folder) / f"{family}.pt")))


def _transformers(encoder: Encoder, family: str) -> nn.Module:
    from transformers import AutoModel

    shape: EncoderShape = encoder.shape
    plain = Encoder(shape).eval()
    plain.load_state_dict(encoder.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModel.from_pretrained(write_transformers(plain, Path(folder), family))
    return _AllStates(model.eval())


class _AllStates(nn.Module):
    """A transformers model that returns its hidden states, as a distillation needs them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, wave: Tensor) -> Any:
        return self.model(wave, output_hidden_states=True).hidden_states


def _frozen(model: nn.Module, clips: Any) -> Callable[[], object]:
    def work() -> object:
        with torch.no_grad():
            return model(clips)

    return work


def _summary(result: dict[str, float], audio: float) -> dict[str, float]:
    return {
        "ratio": result["ratio"],
        "ours_s": result["first_s"],
        "theirs_s": result["second_s"],
        "audio_seconds_per_second": audio / result["first_s"],
    }
