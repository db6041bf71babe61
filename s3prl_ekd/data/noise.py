"""Additive distortions: a second signal mixed in at a signal-to-noise ratio, and Gaussian noise.

Which noise at which SNR is drawn in distort.py; files are read in sources.py.
"""

from __future__ import annotations

import numpy as np
import torch

SILENCE = 1e-12
"""Mean square below which a signal counts as silent: -120 dBFS, far below one step of 16-bit audio."""


def power(wave: np.ndarray) -> float:
    """Mean square of a signal, 0 for an empty one."""
    return float(np.dot(wave, wave)) / len(wave) if len(wave) else 0.0


def add_at_snr(wave: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """``wave + g * noise`` with g such that ``10 log10(power(wave) / power(g * noise)) = snr``.

    Power is the mean square over the whole clip as given, pauses included, as in the authors' code. The sum is not
    rescaled when it exceeds 1: the models read floats, and neither s3prl nor the authors clip. Where the ratio has no
    meaning (the clip or the noise is silent) the clip comes back unchanged.

    Args:
        wave, noise: (samples,) float32 of equal length.
        snr: in dB.

    Returns:
        (samples,) float32; ``wave`` itself is not written to.
    """
    wave_power, noise_power = power(wave), power(noise)
    if wave_power < SILENCE or noise_power < SILENCE:
        return wave
    gain = np.float32((wave_power / noise_power * 10.0 ** (-snr / 10.0)) ** 0.5)
    mixed = noise * gain
    mixed += wave
    return mixed


def gaussian(samples: int, seed: int) -> np.ndarray:
    """White noise of unit variance, (samples,) float32; a shorter one is the start of a longer one.

    From torch, which is three times as fast at it as numpy (0.65 ms against 2.2 ms for 15 s).
    """
    whole = -(-samples // 16) * 16  # torch fills 16 numbers at a time, and the last 16 of an odd length once more
    return torch.empty(whole).normal_(generator=torch.Generator().manual_seed(seed)).numpy()[:samples]


def same_level(wave: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """``wave`` scaled, in place, to the power of ``reference``; unchanged where either is silent."""
    wave_power, reference_power = power(wave), power(reference)
    if wave_power >= SILENCE and reference_power >= SILENCE:
        wave *= np.float32((reference_power / wave_power) ** 0.5)
    return wave
