"""The frozen ensemble: waveforms in, every teacher's wanted hidden states out.

It stays in eval mode whatever the runner calls, holds no gradients, and lives beside the trained model, not under it:
s3prl's runner clips, optimises and saves everything under ``.model``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from s3prl_ekd.config import TeacherPrecision
from s3prl_ekd.distill.targets import TeacherStates
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.arithmetic import tf32
from s3prl_ekd.model.clips import heard
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.model.position import PositionalConv
from s3prl_ekd.teachers.adapter import S3prlUpstream

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


TeacherEncoder = Encoder | S3prlUpstream
"""What a teacher is made of: ``shape`` (layers, width, hop) and ``forward(wave, lengths, states)``."""


class FrozenTeachers(nn.Module):
    """Several encoders that are only ever read.

    Args:
        encoders: teacher name -> encoder with weights.
        layers: teacher name -> hidden states to return; layers above the highest are never computed.
        precision: arithmetic of the teachers. Their norms stay fp32. bf16 halves memory and is several times faster
            on a GPU; on random weights every hidden state keeps cosine 0.9999 with fp32's.
        tap: hidden gives hidden states; ffn the output of each layer's feed-forward block, before its residual and
            norm (data2vec's targets, arXiv 2202.03555; in distillation USAD, arXiv 2506.18843).
    """

    def __init__(
        self,
        encoders: Mapping[str, TeacherEncoder],
        layers: Mapping[str, Sequence[int]],
        precision: TeacherPrecision = "fp32",
        tap: Literal["hidden", "ffn"] = "hidden",
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self._shares_with = _share_front_ends(self.encoders)
        self.wanted = {name: tuple(layers[name]) for name in encoders}
        self.precision = precision
        self.requires_grad_(False)
        self.to(DTYPES[precision])
        super().train(False)
        self._tapped: dict[int, Tensor] = {}
        self.tap = tap
        for module in self.modules():
            if isinstance(module, PositionalConv):
                module.frozen = True
        for name, encoder in self.encoders.items() if tap == "ffn" else ():
            if not isinstance(encoder, Encoder):
                raise EkdError(f"ekd.targets.tap: ffn cannot look into s3prl's upstream behind {name!r}")
            if 0 in self.wanted[name]:
                raise EkdError(f"ekd.targets.tap: ffn has no state 0, which teacher {name!r} is asked for")
            for layer in self.wanted[name]:
                ffn_out = encoder.layers[layer - 1].ffn_out
                ffn_out.register_forward_hook(self._keep(layer))  # type: ignore[union-attr]  # a Linear

    def train(self, mode: bool = True) -> FrozenTeachers:
        """Keep eval mode: s3prl's runner calls ``upstream.train()``, which would turn the teachers' dropout on."""
        return self

    @torch.no_grad()
    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> TeacherStates:
        """wave (B, N) 16 kHz, lengths (B,) or None -> teacher -> layer -> (B, T, D) in the teachers' precision."""
        states: TeacherStates = {}
        shared: dict[str | None, Tensor] = {}  # conv features that several teachers read
        # an fp16 run of s3prl's runner must not reach in here: precision is the ensemble's own
        with torch.autocast(wave.device.type, enabled=False), tf32(wave.is_cuda and self.precision == "fp32"):
            for name, encoder in self.encoders.items():
                if isinstance(encoder, Encoder):
                    own = heard(encoder.shape, wave, lengths)
                    first = self._shares_with.get(name)
                    conv = shared.get(first)
                    if conv is None:
                        conv = encoder.frontend(own)
                    if first is not None:
                        shared[first] = conv
                    states[name] = encoder(own, lengths, self.wanted[name], conv_features=conv).states
                else:  # an expert normalises its waveforms itself
                    states[name] = encoder(wave, lengths, self.wanted[name]).states
                if self.tap == "ffn":
                    states[name] = {layer: self._tapped.pop(layer) for layer in self.wanted[name]}
        return states

    def _keep(self, layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._tapped[layer] = output

        return hook


def _share_front_ends(encoders: nn.ModuleDict) -> dict[str, str]:
    """Let teachers with equal conv stacks use one of them: each of these -> the first that has its stack.

    A third of a Base teacher is its conv stack, and a teacher tuned from another one with a frozen front end has the
    same. Weights are compared bit by bit; the waveform normalisation must agree too.
    """
    shares_with: dict[str, str] = {}
    own: dict[str, Encoder] = {}  # those with a stack of their own
    for name, encoder in encoders.items():
        if not isinstance(encoder, Encoder):
            continue
        first = next((first for first, other in own.items() if _same_front_end(encoder, other)), None)
        if first is None:
            own[name] = encoder
            continue
        shares_with[first] = shares_with[name] = first
        encoder.frontend = own[first].frontend
        logger.info("[ekd] teacher %s has the conv stack of %s: computed once for both", name, first)
    return shares_with


def _same_front_end(one: Encoder, other: Encoder) -> bool:
    fields = ("conv_layers", "conv_norm", "conv_bias", "normalize", "normalize_eps")
    if any(getattr(one.shape, field) != getattr(other.shape, field) for field in fields):
        return False
    theirs = other.frontend.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.frontend.state_dict().items())
