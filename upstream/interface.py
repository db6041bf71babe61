"""What our upstreams share of s3prl's contract (its ``upstream/interfaces.py``): clips of any length, one batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.model.encoder import Encoder, EncoderOutput
from s3prl_ekd.teachers.ensemble import normalize_wave


def encode_clips(encoder: Encoder, wavs: Sequence[Tensor], states: Collection[int]) -> EncoderOutput:
    """Pad clips to one batch, normalise them where the model expects that, encode.

    Args:
        encoder: any of the family.
        wavs: 1-D float tensors at 16 kHz, in any order, on one device, from a few milliseconds up.
        states: which hidden states to keep.
    """
    shape = encoder.shape
    lengths = torch.tensor([len(wav) for wav in wavs], device=wavs[0].device)
    wave = pad_sequence(list(wavs), batch_first=True)
    if wave.shape[1] < shape.receptive_field:  # a clip below 25 ms still gets one frame
        wave = nn.functional.pad(wave, (0, shape.receptive_field - wave.shape[1]))
    if shape.normalize:
        wave = normalize_wave(wave, lengths, shape.normalize_eps)
    equal = all(len(wav) == wave.shape[1] for wav in wavs)  # Python numbers: no wait for the device
    return encoder(wave, None if equal else lengths, states=states)
