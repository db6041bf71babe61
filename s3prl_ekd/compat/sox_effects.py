"""``torchaudio.sox_effects`` without SoX: the effects that s3prl's tasks call, on NumPy and soxr.

torchaudio 2.9 removed the module; s3prl's datasets of KS, ASV, QbE and others read every clip through it. Each effect
does what SoX 14.4.2 does (its manual, sox.1), and samples are cut off at full scale after each, as SoX's are. ``gain``
rounds as SoX does, to 32-bit integers: on silence a log-mel filterbank shows the difference of one such step. Here are
the functions; when they take torchaudio's place is decided in ``shims.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from s3prl_ekd.compat import torchaudio_io
from s3prl_ekd.errors import EkdError

_STEPS = 2**31  # of a SoX sample, a 32-bit integer, up to full scale
_FLOAT_STEP = 128  # of them: what SoX rounds to where it gives floats


class Sound(NamedTuple):
    """``wave``: float64 (channels, samples), full scale is 1; ``rate`` in Hz."""

    wave: np.ndarray
    rate: int


def apply_effects_file(
    path: str | os.PathLike[str],
    effects: Sequence[Sequence[str]],
    normalize: bool = True,
    channels_first: bool = True,
    format: str | None = None,
) -> tuple[torch.Tensor, int]:
    """Read a file and apply effects, as torchaudio 2.8 did.

    Args:
        path: an audio file.
        effects: each a name and its arguments, e.g. ``[["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]``.
        normalize: float32 in -1..1, the only form that is given.
        channels_first: True gives (channels, samples), False (samples, channels).
        format: taken for compatibility; libsndfile recognises the format itself.

    Returns:
        (waveform, sample rate in Hz).

    Raises:
        AudioError: the file is missing or not audio.
        EkdError: an effect that is not here, or arguments that it does not take.
    """
    if not normalize:
        raise EkdError("sox effects: normalize=False is not supported")
    wave, rate = torchaudio_io.load(path)
    return apply_effects_tensor(wave if channels_first else wave.T, rate, effects, channels_first)


def apply_effects_tensor(
    tensor: torch.Tensor, sample_rate: int, effects: Sequence[Sequence[str]], channels_first: bool = True
) -> tuple[torch.Tensor, int]:
    """Apply effects to a float waveform; arguments, result and errors as of :func:`apply_effects_file`."""
    given = (tensor if channels_first else tensor.T).double().cpu().numpy()
    sound = Sound(np.trunc(given * _STEPS) / _STEPS, sample_rate)  # as torchaudio, which cuts floats to integers
    for name, *arguments in effects:
        sound = _apply(sound, name, arguments)
    floats = np.floor(sound.wave * (_STEPS // _FLOAT_STEP) + 0.5) * (_FLOAT_STEP / _STEPS)
    wave = torch.from_numpy(np.ascontiguousarray(floats, dtype=np.float32))
    return (wave if channels_first else wave.T), sound.rate


def effect_names() -> list[str]:
    """The effects that are here."""
    return sorted(_EFFECTS)


def _apply(sound: Sound, name: str, arguments: Sequence[Any]) -> Sound:
    if name not in _EFFECTS:
        raise EkdError(f"sox effects: {name!r} is not supported; there are {', '.join(effect_names())}")
    try:
        wave, rate = _EFFECTS[name](sound, *map(str, arguments))
    except (TypeError, ValueError) as error:
        raise EkdError(f"sox effects: {' '.join([name, *map(str, arguments)])}: {error}") from error
    return Sound(np.clip(wave, -1.0, 1.0), rate)


def _channels(sound: Sound, count: str) -> Sound:
    if int(count) != 1:
        raise ValueError("mixes to one channel only")
    return sound if len(sound.wave) == 1 else Sound(sound.wave.mean(axis=0, keepdims=True), sound.rate)


def _rate(sound: Sound, rate: str) -> Sound:
    import soxr

    target = int(rate)
    if target == sound.rate:
        return sound
    wave = sound.wave.T.astype(np.float32)
    return Sound(soxr.resample(wave, sound.rate, target, quality="HQ").T, target)  # SoX's own default, rate -h


def _gain(sound: Sound, decibels: str) -> Sound:
    return _scaled(sound, _factor(decibels))


def _norm(sound: Sound, decibels: str = "0") -> Sound:
    peak = max(sound.wave.max(initial=0) / (1 - 1 / _STEPS), -sound.wave.min(initial=0))  # each of its largest integer
    return _scaled(sound, _factor(decibels) / peak) if peak else sound


def _factor(decibels: str) -> float:
    return float(10 ** (float(decibels) / 20))


def _scaled(sound: Sound, factor: float) -> Sound:
    """In whole steps, halves away from zero."""
    steps = sound.wave * _STEPS * factor
    return Sound(np.trunc(steps + np.copysign(0.5, steps)) / _STEPS, sound.rate)


def _pad(sound: Sound, before: str, after: str = "0") -> Sound:
    edges = [round(float(seconds) * sound.rate) for seconds in (before, after)]
    return Sound(np.pad(sound.wave, ((0, 0), edges)), sound.rate)


def _reverse(sound: Sound) -> Sound:
    return Sound(sound.wave[:, ::-1], sound.rate)


def _silence(sound: Sound, *arguments: str) -> Sound:
    """``silence 1 DURATION THRESHOLD% -1 DURATION THRESHOLD%``: what is quiet is left out, wherever it stands.

    Sound begins where the level stays above the threshold for DURATION, and ends where it stays below for DURATION.
    The level is the RMS of the last 20 ms; after a cut it is measured anew, of what has come since.
    """
    periods, begin, above, ends, end, below = arguments
    if (periods, ends) != ("1", "-1") or not (above.endswith("%") and below.endswith("%")) or len(sound.wave) != 1:
        raise ValueError("is supported as `1 DURATION THRESHOLD% -1 DURATION THRESHOLD%`, on one channel")
    begin_samples, end_samples = (round(float(seconds) * sound.rate) for seconds in (begin, end))
    window = sound.rate // 50
    wave = sound.wave[0]
    energy = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])

    def loud(start: int, percent: str) -> np.ndarray:
        """Of each sample from ``start``, where the measuring began, whether the level there is above the threshold."""
        stop = np.arange(start, len(wave)) + 1
        mean = (energy[stop] - energy[np.maximum(start, stop - window)]) / window
        return np.sqrt(np.maximum(mean, 0)) * 100 > float(percent.rstrip("%"))

    kept, position = [wave[:0]], 0
    while position < len(wave):
        first = _first_run(loud(position, above), begin_samples)
        if first is None:
            break
        level = loud(position, below)[first:]
        quiet = _first_run(~level[begin_samples:], end_samples)
        start = position + first
        if quiet is None:
            kept.append(wave[start:])
            break
        stop = start + begin_samples + quiet
        kept.append(wave[start:stop])
        position = stop + end_samples
    return Sound(np.concatenate(kept)[None], sound.rate)


def _first_run(mask: np.ndarray, length: int) -> int | None:
    """Where the first ``length`` neighbours of ``mask`` that are all true begin; None: nowhere."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    long = np.flatnonzero(ends - starts >= max(length, 1))
    return int(starts[long[0]]) if len(long) else None


_EFFECTS: dict[str, Callable[..., Sound]] = {
    "channels": _channels,
    "rate": _rate,
    "gain": _gain,
    "norm": _norm,
    "pad": _pad,
    "reverse": _reverse,
    "silence": _silence,
}
