"""``torchaudio.load`` and ``torchaudio.info`` over soundfile, for stacks whose torchaudio cannot read audio itself.

Here are the two functions and the metadata they return; when they take torchaudio's place is decided in ``shims.py``.
Unlike :func:`s3prl_ekd.audio.read_audio` they keep the file's own rate and channels, as torchaudio's callers expect.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import torch

from s3prl_ekd.audio import UNREADABLE, AudioError, decoder_reason

_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "FLOAT": 32, "DOUBLE": 64}
_INTEGER = {"PCM_16": "int16", "PCM_24": "int32", "PCM_32": "int32"}
"""soundfile's type of a PCM file's own integers (``normalize=False``)."""


@dataclass(frozen=True)
class AudioMetaData:
    """The fields of torchaudio's own AudioMetaData: rate in Hz, length in frames (samples a channel), channels."""

    sample_rate: int
    num_frames: int
    num_channels: int
    bits_per_sample: int
    encoding: str


def load(
    uri: str | os.PathLike[str] | BinaryIO,
    frame_offset: int = 0,
    num_frames: int = -1,
    normalize: bool = True,
    channels_first: bool = True,
    format: str | None = None,
    buffer_size: int = 4096,
    backend: str | None = None,
) -> tuple[torch.Tensor, int]:
    """Read a file as torchaudio 2.8 did.

    Args:
        uri: a path, or an open binary file.
        frame_offset: samples to skip.
        num_frames: samples to read at most; -1 reads to the end.
        normalize: True gives float32 in -1..1; False gives a PCM file's own integers.
        channels_first: True gives (channels, samples), False (samples, channels).
        format, buffer_size, backend: taken for compatibility; libsndfile recognises the format itself.

    Returns:
        (waveform, sample rate in Hz).

    Raises:
        AudioError: the file is missing or not audio.
    """
    try:
        with soundfile.SoundFile(_target(uri)) as file:
            rate = file.samplerate
            dtype = "float32" if normalize else _INTEGER.get(file.subtype, "float32")
            if frame_offset:
                file.seek(min(frame_offset, file.frames))
            wave = file.read(num_frames, dtype=dtype, always_2d=True)  # (samples, channels)
    except UNREADABLE as error:
        raise _reason(uri, error) from error
    array = np.ascontiguousarray(wave.T if channels_first else wave)
    return torch.from_numpy(array), rate


def info(
    uri: str | os.PathLike[str] | BinaryIO,
    format: str | None = None,
    buffer_size: int = 4096,
    backend: str | None = None,
) -> AudioMetaData:
    """Read a file's header.

    Raises:
        AudioError: the file is missing or not audio.
    """
    try:
        found = soundfile.info(_target(uri))
    except UNREADABLE as error:
        raise _reason(uri, error) from error
    return AudioMetaData(
        sample_rate=found.samplerate,
        num_frames=found.frames,
        num_channels=found.channels,
        bits_per_sample=_BITS.get(found.subtype, 0),
        encoding=found.subtype,
    )


def _target(uri: Any) -> Any:
    return os.fsencode(uri) if isinstance(uri, (str, os.PathLike)) else uri


def _reason(uri: Any, error: Exception) -> AudioError:
    if isinstance(uri, (str, os.PathLike)) and not Path(uri).exists():
        return AudioError(f"{os.fspath(uri)}: no such audio file")
    return AudioError(f"{uri}: cannot be read as audio ({decoder_reason(error)})")
