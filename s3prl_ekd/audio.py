"""Finding and reading audio: any format libsndfile knows (FLAC, WAV, Ogg/Opus, MP3), as 16 kHz mono float32.

Everything in the project that opens an audio file for training goes through here. s3prl's own datasets read through
``torchaudio.load``; where torchaudio cannot read, ``compat/torchaudio_io.py`` takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from math import ceil, gcd
from pathlib import Path

import numpy as np
import soundfile

from s3prl_ekd.errors import EkdError

SAMPLE_RATE = 16_000  # Hz; every model of the wav2vec2 family takes 16 kHz
_INT16 = np.float32(2.0**-15)
AUDIO_SUFFIXES = {".flac", ".wav", ".ogg", ".opus", ".mp3", ".aiff", ".aif"}
# audio that is not looked for: libsndfile decodes none of it, or some variants only (.sph)
OTHER_SUFFIXES = {
    ".m4a", ".m4b", ".mp4", ".aac", ".webm", ".mka", ".mkv", ".wma", ".amr", ".3gp", ".ac3", ".ape", ".wv", ".shn",
    ".sph",
}  # fmt: skip


UNREADABLE = (soundfile.LibsndfileError, RuntimeError, OSError, TypeError)
"""What soundfile raises for a file that it cannot read; TypeError: its name ends in .raw, whose rate nobody knows."""


class AudioError(EkdError):
    """An audio file that is missing, empty, or that libsndfile cannot decode."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says.

    ``samples``: length after conversion to 16 kHz; ``rate``: the file's own rate in Hz; ``channels``: its channels.
    """

    samples: int
    rate: int
    channels: int

    @property
    def is_16k_mono(self) -> bool:
        return self.rate == SAMPLE_RATE and self.channels == 1


def find_audio(folder: Path, suffixes: Collection[str] = AUDIO_SUFFIXES) -> list[Path]:
    """Every audio file below a folder, in a fixed order: links to folders are followed, hidden files and folders not.

    A folder that can be reached in several ways is entered once.

    Args:
        suffixes: endings that count, in lower case with their dot; a file's own may be in upper case.

    Raises:
        EkdError: no such folder, or no audio in it.
    """
    if not folder.is_dir():
        raise EkdError(f"{folder}: no such folder")
    found = audio_below(folder, suffixes)
    if not found:
        raise EkdError(f"{folder}: no audio files in it ({', '.join(sorted(suffixes))})")
    return found


def count_other_audio(folder: Path) -> tuple[int, list[str]]:
    """How many audio files :func:`find_audio` passes over for their type, and those types (``[".m4a", ".webm"]``)."""
    found = audio_below(folder, OTHER_SUFFIXES)
    return len(found), sorted({file.suffix.lower() for file in found})


def audio_below(folder: Path, suffixes: Collection[str] = AUDIO_SUFFIXES) -> list[Path]:
    """:func:`find_audio` where there may be none; an empty list without the folder, too."""
    found: list[Path] = []
    seen: set[str] = set()
    for base, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:  # a link back up, or a second way to the same folder
            folders.clear()
            continue
        seen.add(real)
        # .snapshot and .Trash hold copies. Of two ways to one folder, the one without a link is taken where it can be.
        visible = [name for name in folders if name[0] != "."]
        folders[:] = sorted(visible, key=lambda name: (os.path.islink(os.path.join(base, name)), name))
        # macOS leaves "._name" companions in unpacked archives.
        found += [Path(base, name) for name in names if name[0] != "." and Path(name).suffix.lower() in suffixes]
    return sorted(found)


def audio_info(path: str | Path) -> AudioInfo:
    """Read a file's header only.

    Raises:
        AudioError: the file is missing, empty or not audio.
    """
    try:
        info = soundfile.info(os.fsencode(path))  # as bytes: an old corpus may have names that are no UTF-8
    except UNREADABLE as error:
        raise AudioError(_reason(path, error)) from error
    if info.frames <= 0:
        raise AudioError(f"{path}: the audio file holds no samples")
    return AudioInfo(ceil(info.frames * SAMPLE_RATE / info.samplerate), info.samplerate, info.channels)


def read_audio(path: str | Path, start: int = 0, samples: int | None = None, first_channel: bool = False) -> np.ndarray:
    """Read a clip as 16 kHz mono: channels are averaged, other rates resampled (polyphase).

    Args:
        path: any file libsndfile reads.
        start: first sample to return, counted at 16 kHz.
        samples: how many samples to return at most, counted at 16 kHz; None reads to the end.
        first_channel: take channel 0 instead of the average (room responses: an average would be a comb filter).

    Returns:
        float32 array of shape (samples,), about -1..1.

    Raises:
        AudioError: the file is missing, empty, corrupt, or ends before ``start``.
    """
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            rate = file.samplerate
            first = min(start * rate // SAMPLE_RATE, file.frames)
            if first:  # a FLAC decoder also goes through the file for a seek to where it is
                file.seek(first)
            frames = -1 if samples is None else ceil(samples * rate / SAMPLE_RATE)
            if file.subtype == "PCM_16" and file.format in ("WAV", "WAVEX"):
                # the same numbers as libsndfile's own conversion, in half its time
                wave = np.multiply(file.read(frames, dtype="int16", always_2d=True), _INT16, dtype=np.float32)
            else:
                wave = file.read(frames, dtype="float32", always_2d=True)  # (frames, channels)
    except UNREADABLE as error:
        raise AudioError(_reason(path, error)) from error
    if wave.shape[0] == 0:
        raise AudioError(f"{path}: the audio file {'ends before the part asked for' if start else 'holds no samples'}")
    mono = wave[:, 0] if first_channel or wave.shape[1] == 1 else wave.mean(axis=1)
    if rate != SAMPLE_RATE:
        mono = resample(mono, rate)
    if not np.isfinite(mono).all():
        raise AudioError(f"{path}: the audio file holds NaN or infinite samples")
    return np.ascontiguousarray(mono[:samples] if samples is not None else mono)


def _reason(path: str | Path, error: Exception) -> str:
    path = Path(path)
    if not path.exists():
        return f"{path}: no such audio file"
    if path.stat().st_size == 0:
        return f"{path}: the audio file is empty (0 bytes)"
    return f"{path}: cannot be read as audio ({decoder_reason(error)})"


def decoder_reason(error: Exception) -> str:
    """What libsndfile says is wrong, without the path and the words before it."""
    return str(error).strip().rstrip(".").split(": ")[-1] or type(error).__name__


def resample(wave: np.ndarray, rate: int) -> np.ndarray:
    """Polyphase resampling to 16 kHz.

    Args:
        wave: (samples,) float32.
        rate: its sampling rate in Hz.

    Returns:
        float32 (ceil(samples * 16000 / rate),).
    """
    from scipy.signal import resample_poly  # here, since it takes seconds to import and most corpora are at 16 kHz

    common = gcd(rate, SAMPLE_RATE)
    return resample_poly(wave, SAMPLE_RATE // common, rate // common).astype(np.float32)
