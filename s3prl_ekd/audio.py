"""Reading audio: any format libsndfile knows (FLAC, WAV, Ogg/Opus, MP3), as 16 kHz mono float32.

Everything in the project that opens an audio file for training goes through here; s3prl's own datasets read through
``torchaudio.load``, which the bridge points at the same reader where torchaudio has none of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, gcd
from pathlib import Path

import numpy as np
import soundfile

from s3prl_ekd.errors import EkdError

SAMPLE_RATE = 16_000  # Hz; every model of the wav2vec2 family takes 16 kHz
_INT16 = np.float32(2.0**-15)
AUDIO_SUFFIXES = {".flac", ".wav", ".ogg", ".opus", ".mp3", ".aiff", ".aif"}


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


def audio_info(path: str | Path) -> AudioInfo:
    """Read a file's header only.

    Raises:
        AudioError: the file is missing, empty or not audio.
    """
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
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
        with soundfile.SoundFile(str(path)) as file:
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
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise AudioError(_reason(path, error)) from error
    if wave.shape[0] == 0:
        raise AudioError(f"{path}: the audio file holds no samples" + (f" after sample {start}" if start else ""))
    mono = wave[:, 0] if first_channel or wave.shape[1] == 1 else wave.mean(axis=1)
    if rate != SAMPLE_RATE:
        from scipy.signal import resample_poly  # here, since it takes seconds to import and most corpora are at 16 kHz

        common = gcd(rate, SAMPLE_RATE)
        mono = resample_poly(mono, SAMPLE_RATE // common, rate // common).astype(np.float32)
    if not np.isfinite(mono).all():
        raise AudioError(f"{path}: the audio file holds NaN or infinite samples")
    return np.ascontiguousarray(mono[:samples] if samples is not None else mono)


def _reason(path: str | Path, error: Exception) -> str:
    path = Path(path)
    if not path.exists():
        return f"{path}: no such audio file"
    if path.stat().st_size == 0:
        return f"{path}: the audio file is empty (0 bytes)"
    text = str(error).strip().rstrip(".").split(": ")[-1] or type(error).__name__
    return f"{path}: cannot be read as audio ({text})"
