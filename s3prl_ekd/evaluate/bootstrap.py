"""Error rates of several models on one test set drawn anew, again and again: how far their difference is chance.

The paired bootstrap of Bisani and Ney ("Bootstrap estimates for confidence intervals in ASR performance evaluation",
ICASSP 2004): each draw takes as many utterances as there are, with replacement, the same ones for every model. Where
utterances are alike in blocks, as those of one speaker are, whole blocks are drawn (Liu and Peng, arXiv 1912.09508).

Shapes: M models, B blocks, S draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.95  # of an interval


@dataclass(frozen=True)
class Part:
    """What is drawn from by itself: a test set, or one fold of it."""

    errors: Floats
    """(M, B): errors in each block; means over seeds need not be whole."""
    tokens: Floats
    """(B,): what an error is one of: reference words, phonemes, or clips."""

    def rates(self) -> Floats:
        """(M,): error rates, 0 to 1 and above."""
        return self.errors.sum(1) / self.tokens.sum()


def mean_rates(parts: Sequence[Part]) -> Floats:
    """(M,): error rates, means over the parts."""
    return np.mean([part.rates() for part in parts], axis=0)


def drawn_rates(parts: Sequence[Part], draws: int, seed: int) -> Floats:
    """(S, M): error rates of each draw, means over the parts.

    A draw without any token, where a test set has empty references, is made again.
    """
    generator = np.random.default_rng(seed)
    return np.mean([_drawn(part, draws, generator) for part in parts], axis=0)


def _drawn(part: Part, draws: int, generator: np.random.Generator) -> Floats:
    models, blocks = part.errors.shape
    rates = np.empty((draws, models))
    for draw in range(draws):
        while True:
            times = np.bincount(generator.integers(blocks, size=blocks), minlength=blocks)
            tokens = float(times @ part.tokens)
            if tokens > 0:
                break
        rates[draw] = part.errors @ times / tokens
    return rates


def interval(values: Floats) -> tuple[float, float]:
    """The percentile interval of draws (S,)."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def share_below(values: Floats, others: Floats) -> float:
    """Share of the draws (S,) in which the one is below the other; where they are equal, half a draw."""
    return float(np.mean((values < others) + 0.5 * (values == others)))
