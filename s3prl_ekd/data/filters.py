"""Distortions that are filters: reverberation by a room response, and rejection of a frequency band.

Both are convolutions by overlap-add, in blocks that stay in the processor's cache: faster than one long FFT. Neither
moves anything in time: targets are 20 ms frames.
"""

from __future__ import annotations

import numpy as np
from scipy import fft

from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.data.noise import power, same_level

_BLOCK = 8_192  # samples of an FFT at least
_TAIL = 1e-6  # a room response ends where less than this share of its energy is left: 60 dB below, RT60's own measure
_BAND_TAPS = 1025  # 64 ms; with the Kaiser window below a transition of 78 Hz and 80 dB of rejection
_KAISER = np.kaiser(_BAND_TAPS, 8.0)


def convolve(wave: np.ndarray, taps: np.ndarray, delay: int = 0) -> np.ndarray:
    """``y[n] = sum_k taps[k] wave[n + delay - k]``, as long as ``wave``.

    Args:
        wave: (samples,) float32.
        taps: (K,) filter.
        delay: which tap is time zero (K // 2 for a symmetric filter: no shift in time).

    Returns:
        (samples,) float32.
    """
    needed = len(wave) + delay
    size = fft.next_fast_len(min(max(4 * len(taps), _BLOCK), needed + len(taps) - 1), real=True)
    step = size - len(taps) + 1
    if step < len(taps) - 1:  # a clip shorter than the filter: one block
        size = fft.next_fast_len(needed + len(taps) - 1, real=True)
        step = size
    blocks = -(-needed // step)
    padded = np.zeros(blocks * step, dtype=np.float32)
    padded[: len(wave)] = wave
    spectrum = fft.rfft(padded.reshape(blocks, step), size, axis=1)
    spectrum *= fft.rfft(taps.astype(np.float32, copy=False), size)
    filtered = fft.irfft(spectrum, size, axis=1)  # (blocks, size)
    out = np.ascontiguousarray(filtered[:, :step])
    if size > step:
        out[1:, : size - step] += filtered[:-1, step:]
    return out.reshape(-1)[delay:needed]


def room_taps(response: np.ndarray) -> np.ndarray:
    """The part of a room response that speech is convolved with.

    It starts at the direct path (its largest absolute value), so that what is said stays in its frame; the delay
    before it is the distance to the microphone. It ends where all that follows holds 1e-6 of the energy. Its sign makes
    the direct path positive.

    Returns:
        (K,) float32 with K >= 1; a silent response gives [1], which changes nothing.
    """
    peak = int(np.abs(response).argmax())
    taps = response[peak:]
    if power(taps) == 0.0:
        return np.ones(1, dtype=np.float32)
    left = np.cumsum(np.square(taps[::-1], dtype=np.float64))[::-1]  # energy from each tap to the end
    taps = taps[: max(1, int(np.searchsorted(-left, -_TAIL * left[0])))]
    return (taps / taps[0]).astype(np.float32)


def reverberate(wave: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """A clip in a room: same length, same power, nothing moved in time.

    Args:
        wave: (samples,) float32.
        taps: (K,) of :func:`room_taps`.

    Returns:
        (samples,) float32.
    """
    return same_level(convolve(wave, taps), wave)


def hertz_to_mel(hertz: float) -> float:
    """The mel scale that WavAugment's band rejection draws on: 2595 log10(1 + f / 700)."""
    return 2595.0 * float(np.log10(1.0 + hertz / 700.0))


def mel_to_hertz(mel: float) -> float:
    """Inverse of :func:`hertz_to_mel`."""
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def band_taps(low: float, high: float) -> np.ndarray:
    """A symmetric band-reject filter: ideal response times a Kaiser window, half amplitude at ``low`` and ``high`` Hz.

    Returns:
        (1025,) float32.
    """
    n = np.arange(_BAND_TAPS) - _BAND_TAPS // 2
    lower, upper = 2.0 * low / SAMPLE_RATE, 2.0 * min(high, SAMPLE_RATE / 2) / SAMPLE_RATE
    taps = (lower * np.sinc(lower * n) - upper * np.sinc(upper * n)) * _KAISER
    taps[_BAND_TAPS // 2] += 1.0
    return taps.astype(np.float32)


def reject_band(wave: np.ndarray, low: float, high: float) -> np.ndarray:
    """Take the band from ``low`` to ``high`` Hz out of a clip (80 dB once 40 Hz inside), with zero phase.

    The level of what remains is left as it is.

    Returns:
        (samples,) float32.
    """
    return convolve(wave, band_taps(low, high), delay=_BAND_TAPS // 2)
