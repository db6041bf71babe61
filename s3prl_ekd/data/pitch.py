"""Pitch shift that keeps length and timing: a phase vocoder whose frames are resampled in the frequency domain.

Shapes: K frames, N samples a frame in, M samples a frame out, F frequency bins.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import fft

from s3prl_ekd.data.noise import same_level

_HOP = 256  # 16 ms at 16 kHz
_BLOCK = 64  # frames at a time: what they need stays in the processor's cache (twice as fast as all at once)
_FRAME = (900, 1152)  # N, 56 to 72 ms: resolves the harmonics of a low voice
_ONSET = 4.0  # a frame with this many times the energy of the one before takes its phases from the input again


def pitch_shift(wave: np.ndarray, cents: float) -> np.ndarray:
    """Raise the pitch by ``cents`` hundredths of a semitone; formants move along, time does not.

    Every 16 ms a frame of N samples is taken, and its spectrum is read back as M = N / ratio samples, which multiplies
    its frequencies by the ratio (what would pass 8 kHz is cut off, not folded). Frames stay where they were. So that a
    partial runs on from frame to frame, its phase must advance by ratio * omega * hop, which is what the input itself
    advances over ratio * hop samples. That is measured with a second frame, so no phase needs unwrapping:

        Y[k] = |A[k]| u[k],  u[k] = u[k-1] unit(A[k] conj(B[k])),  or unit(A[k]) at an onset,

    A[k] the spectrum at frame k, B[k] the one ratio * hop samples earlier. The power stays that of the input. The
    ratio is met within 5 cents (1 on average): see :func:`_frame_sizes`.

    Args:
        wave: (samples,) float32.
        cents: -700 to 700; further up, three frames no longer overlap and tones beat.

    Returns:
        (samples,) float32; ``wave`` itself where the shift is less than 1 cent.
    """
    if abs(cents) < 1.0 or not len(wave):
        return wave
    n, m = _frame_sizes(round(cents))
    ratio = n / m
    back = int(ratio * _HOP)
    side = -(-max(n, m) // (2 * _HOP))  # frames before time zero and after the end, so that overlaps are complete
    frames = -(-len(wave) // _HOP) + 2 * side + 1
    first = back + side * _HOP + n // 2  # zeros before the clip
    padded = np.zeros(max(back + (frames - 1) * _HOP + n, first + len(wave)), dtype=np.float32)
    padded[first : first + len(wave)] = wave
    every = np.lib.stride_tricks.sliding_window_view(padded, n)
    vocoder = _Vocoder(n, m, part=(ratio * _HOP - back) / n)
    out = np.zeros((frames + -(-m // _HOP) - 1, _HOP), dtype=np.float32)
    for k in range(0, frames, _BLOCK):
        block = slice(k * _HOP, min(k + _BLOCK, frames) * _HOP, _HOP)
        _overlap_add(vocoder(every[back:][block], every[block]), out[k:])
    weight = np.zeros((-(-m // _HOP), _HOP), dtype=np.float32)
    _overlap_add(np.square(_hann(m))[None], weight)
    out /= weight.sum(axis=0)  # the squared windows that overlap, the same in every hop
    begin = side * _HOP + m // 2  # time zero is the middle of frame number ``side``
    return same_level(out.reshape(-1)[begin : begin + len(wave)], wave)


class _Vocoder:
    """Frames in, shifted frames out; remembers phases and energy from block to block.

    ``part``: of a sample (in frames) that B lies before the one it is given.
    """

    def __init__(self, n: int, m: int, part: float) -> None:
        self.n, self.m, self.bins = n, m, min(n, m) // 2 + 1
        self.turn = np.exp(2j * np.pi * part * np.arange(self.bins)).astype(np.complex64)
        self.phase = np.ones(self.bins, dtype=np.complex64)  # u[k-1]
        self.energy = 0.0

    def __call__(self, here: np.ndarray, before: np.ndarray) -> np.ndarray:
        """(K, N) frames and those ratio * hop samples earlier -> (K, M)."""
        spectrum = fft.rfft(here * _hann(self.n), axis=1)[:, : self.bins]  # A
        size = np.abs(spectrum)
        phase = fft.rfft(before * _hann(self.n), axis=1)[:, : self.bins].conj()
        phase *= spectrum
        phase *= self.turn
        energy = np.einsum("kf,kf->k", size, size)
        onset = energy > _ONSET * np.concatenate([[self.energy], energy[:-1]])
        phase[onset] = spectrum[onset]
        _to_unit(phase)
        for k in range(len(phase)):
            if not onset[k]:
                phase[k] *= self.phase
            self.phase = phase[k]
        self.energy = float(energy[-1])
        frames = fft.irfft(phase * size, self.m, axis=1)
        frames *= _hann(self.m)  # the factor M / N that the change of length asks for is left to same_level
        return frames


def _to_unit(values: np.ndarray) -> None:
    """Each complex number divided by its size, in place; 1 for what has no phase (digital silence)."""
    size = np.abs(values)
    silent = size < 1e-20
    values[silent], size[silent] = 1.0, 1.0
    values *= np.reciprocal(size)


def _overlap_add(frames: np.ndarray, out: np.ndarray) -> None:
    """Add (K, M) frames, a hop apart, to ``out``: rows of one hop, (K + ceil(M / hop) - 1 or more, hop)."""
    for i in range(0, frames.shape[1], _HOP):
        part = frames[:, i : i + _HOP]
        out[i // _HOP : i // _HOP + len(part), : part.shape[1]] += part


@lru_cache(maxsize=64)
def _hann(samples: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(samples) / samples)).astype(np.float32)


@lru_cache(maxsize=4096)
def _frame_sizes(cents: int) -> tuple[int, int]:
    """N and M with N / M nearest to the ratio, both even and with no prime factor above 11.

    Lengths with a large prime factor make the FFT up to 20 times slower (measured: M = 1367 against 864).
    """
    ratio = 2.0 ** (cents / 1200.0)
    pairs = [(n, m) for n in _smooth(*_FRAME) for m in _smooth(int(n / ratio) - 12, int(n / ratio) + 12)]
    return min(pairs, key=lambda pair: abs(pair[0] / pair[1] / ratio - 1.0))


@lru_cache(maxsize=4096)
def _smooth(low: int, high: int) -> tuple[int, ...]:
    """Even numbers from low to high whose prime factors are 2, 3, 5, 7 and 11, which the FFT has
    kernels for."""
    found = []
    for number in range(low + low % 2, high + 1, 2):
        rest = number
        for prime in (2, 3, 5, 7, 11):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            found.append(number)
    return tuple(found)
