"""Clips of any length through an encoder as one batch, as s3prl asks it of an upstream (``upstream/interfaces.py``)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.model.encoder import Encoder, EncoderOutput


def encode_clips(encoder: Encoder, wavs: Sequence[Tensor], states: Collection[int] | None = None) -> EncoderOutput:
    """Pad clips to one batch, normalise them where the model expects that, encode.

    Args:
        encoder: any of the family.
        wavs: 1-D float tensors at 16 kHz, in any order, on one device, from a few milliseconds up.
        states: which hidden states to keep; None keeps all.

    Returns:
        Hidden states (B, T, D); ``mask`` (B, T) says which frames are speech, None where all clips are of one length.
    """
    shape = encoder.shape
    lengths = torch.tensor([len(wav) for wav in wavs], device=wavs[0].device)
    wave = pad_sequence(list(wavs), batch_first=True)
    if wave.shape[1] < shape.receptive_field:  # a clip below 25 ms still gets one frame
        wave = F.pad(wave, (0, shape.receptive_field - wave.shape[1]))
    if shape.normalize:
        wave = normalize_wave(wave, lengths, shape.normalize_eps)
    equal = all(len(wav) == wave.shape[1] for wav in wavs)  # Python numbers: no wait for the device
    return encoder(wave, None if equal else lengths, states=states)


def normalize_wave(wave: Tensor, lengths: Tensor | None, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance per clip over its own samples; padding stays zero. wave (B, N), lengths (B,)."""
    if lengths is None:
        return F.layer_norm(wave, wave.shape[-1:], eps=eps)
    inside = torch.arange(wave.shape[1], device=wave.device) < lengths.unsqueeze(1)
    count = lengths.unsqueeze(1).to(wave.dtype)
    mean = (wave * inside).sum(1, keepdim=True) / count
    variance = ((wave - mean).square() * inside).sum(1, keepdim=True) / count
    return (wave - mean) / (variance + eps).sqrt() * inside
