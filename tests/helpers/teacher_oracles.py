"""Our hidden states of a teacher beside another implementation's, on clips of unequal length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.model.frontend import frame_mask
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.ensemble import FrozenTeachers

LENGTHS = (8_000, 6_123, 3_200)
TOLERANCE = 1e-5  # relative


def waves(lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def check_states(source: Path | str, wavs: list[Tensor], expected: Sequence[Tensor], first: int = 0) -> EncoderShape:
    """Our states ``first``.. equal the expected ones on every frame that belongs to a clip; the teacher's shape."""
    described = sources.describe(str(source))
    layers = range(first, described.shape.layers + 1)
    assert len(expected) == len(layers)
    teachers = FrozenTeachers({"t": sources.load(described)}, {"t": layers})
    wave, lengths = pad_sequence(wavs, batch_first=True), torch.tensor([len(wav) for wav in wavs])
    states = teachers(wave, lengths)["t"]
    mask = frame_mask(lengths, wave.shape[1], states[first].shape[1], described.encoder_shape)
    for layer, theirs in zip(layers, expected, strict=True):
        assert relative(states[layer][mask], theirs[mask]) < TOLERANCE, layer
    return described.encoder_shape
