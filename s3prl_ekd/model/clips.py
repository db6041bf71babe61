"""Clips of any length through an encoder as one batch, as s3prl asks it of an upstream (``upstream/interfaces.py``)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.encoder import Encoder, EncoderOutput
from s3prl_ekd.shape import EncoderShape


def encode_clips(encoder: Encoder, wavs: Sequence[Tensor], states: Collection[int] | None = None) -> EncoderOutput:
    """Pad clips to one batch, normalise them where the model expects that, encode.

    Args:
        encoder: any of the family.
        wavs: 1-D float tensors, 16 kHz mono within -1 and 1, in any order, on one device, from a few milliseconds up.
        states: which hidden states to keep; None keeps all.

    Returns:
        ``states``: layer -> (B, T, D), 0 the input of layer 1; ``features`` (B, T, D): the projected conv features,
        state 0 of s3prl's ``ekd_student``; ``mask`` (B, T): which frames are speech, None where all clips are of one
        length. Where a GroupNorm follows the first convolution, as in HuBERT Base, the padding reaches the shorter
        clips' states: a clip that is encoded alone has others.

    Raises:
        EkdError: no encoder, no clips, or a clip that is no 1-D float tensor.
    """
    _check(encoder, wavs)
    shape = encoder.shape
    wave = pad_sequence(list(wavs), batch_first=True)
    if wave.shape[1] < shape.receptive_field:  # a clip below 25 ms still gets one frame
        wave = F.pad(wave, (0, shape.receptive_field - wave.shape[1]))
    lengths = None
    if any(len(wav) != wave.shape[1] for wav in wavs):  # else no wait for the device, which a copy to it is
        lengths = torch.tensor([len(wav) for wav in wavs], device=wave.device)
    return encoder(heard(shape, wave, lengths), lengths, states=states)


def _check(encoder: Any, wavs: Any) -> None:
    """Say what is wrong with the arguments before torch does, by what is known without waiting for the device."""
    if not isinstance(getattr(encoder, "shape", None), EncoderShape):  # a compiled Encoder is no Encoder by its class
        hint = "; its .encoder is one" if hasattr(encoder, "encoder") else ""
        raise EkdError(f"encode_clips: the first argument is a {type(encoder).__name__}, no Encoder{hint}")
    if isinstance(wavs, Tensor) and wavs.dim() == 1:
        raise EkdError("encode_clips: expected a list of clips, found one clip: [wave]")
    if len(wavs) == 0:
        raise EkdError("encode_clips: the list of clips is empty")
    for index, wave in enumerate(wavs):
        what = f"encode_clips: clip {index}"
        if not isinstance(wave, Tensor):
            hint = "; torch.from_numpy makes one" if type(wave).__module__ == "numpy" else ""
            raise EkdError(f"{what}: expected a tensor, found a {type(wave).__name__}{hint}")
        if wave.dim() != 1:
            hint = "channels are to be mixed to one, or encoded as a clip each"
            raise EkdError(f"{what}: expected (samples,), found the shape {tuple(wave.shape)}; {hint}")
        if not wave.is_floating_point():
            raise EkdError(f"{what}: expected floats within -1 and 1, found {wave.dtype}; divide int16 by 32768")


def heard(shape: EncoderShape, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
    """wave (B, N) as a model of this shape expects it: :func:`normalize_wave` where it is one of those."""
    return normalize_wave(wave, lengths, shape.normalize_eps) if shape.normalize else wave


def normalize_wave(wave: Tensor, lengths: Tensor | None, eps: float) -> Tensor:
    """Zero mean and unit variance per clip over its own samples; padding stays zero. wave (B, N), lengths (B,)."""
    if lengths is None:
        return F.layer_norm(wave, wave.shape[-1:], eps=eps)
    inside = torch.arange(wave.shape[1], device=wave.device) < lengths.unsqueeze(1)
    count = lengths.clamp(min=1).unsqueeze(1).to(wave.dtype)
    mean = (wave * inside).sum(1, keepdim=True) / count
    variance = ((wave - mean).square() * inside).sum(1, keepdim=True) / count
    return (wave - mean) / (variance + eps).sqrt() * inside


def with_frames(states: Tensor, frames: int) -> Tensor:
    """states (B, T, D) -> (B, frames, D): frames too many are cut off, the last one stands in for those that lack."""
    missing = frames - states.shape[1]
    if missing > 0:
        states = torch.cat([states, states[:, -1:].expand(-1, missing, -1)], dim=1)
    return states[:, :frames]
