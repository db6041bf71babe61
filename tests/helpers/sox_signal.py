"""A signal of bursts and pauses that can be made again anywhere, for comparison with SoX."""

from __future__ import annotations

import numpy as np

# seconds, level: pauses shorter and longer than 0.1 s, noise below 0.1 %, a burst too short to count, a quiet end
PARTS = (
    (0.25, 0.0), (0.75, 1.0), (0.06, 0.0), (0.44, 1.0), (0.7, 2e-4), (0.05, 1.0), (0.35, 0.0), (0.8, 0.5), (0.05, 0.0),
    (0.2, 0.1), (0.3, 0.0), (0.15, 1.0), (0.07, 0.0),
)  # fmt: skip


def bursts(rate: int = 16_000) -> np.ndarray:
    """float32 (1, samples) of a 440 Hz tone at the levels of :data:`PARTS`."""
    level = np.concatenate([np.full(round(seconds * rate), value) for seconds, value in PARTS])
    time = np.arange(len(level)) / rate
    return (0.3 * level * np.sin(2 * np.pi * 440 * time))[None].astype(np.float32)
