"""Means, standard errors, and which differences are beyond the noise.

Two sources of noise: training (a seed is that of the student's distillation and of the downstream training alike) and
the test set (its utterances). A difference of two rows is taken pairwise: both see the same seeds and the same
utterances, so that what is hard for both cancels. Utterances are drawn as if they were independent; those of one
speaker are not quite.

Shapes: S seeds, U utterances of the test set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

Items = Mapping[str, Mapping[str, list[int]]]
"""seed -> utterance -> [errors, tokens, (characters wrong, characters)]."""

RESAMPLES = 2000
BEYOND = 2.0  # standard errors


@dataclass(frozen=True)
class Metric:
    """One column of the table."""

    task: str
    name: str
    lower_is_better: bool
    first: int = 0
    """Where errors and tokens stand in an utterance's list."""

    def rate(self, counts: np.ndarray) -> np.ndarray:
        """(..., U, 2) errors and tokens -> (...) percent: of errors, or of what was right."""
        wrong = 100.0 * counts[..., 0].sum(-1) / counts[..., 1].sum(-1)
        return wrong if self.lower_is_better else 100.0 - wrong

    def counts(self, utterances: Mapping[str, list[int]], names: list[str] | None = None) -> np.ndarray:
        """(U, 2) of one seed, in the order of ``names``; None: of all."""
        chosen = utterances.keys() if names is None else names
        return np.array([utterances[name][self.first : self.first + 2] for name in chosen], dtype=float)


METRICS = (
    Metric("pr", "PER", True),
    Metric("sid", "SID", False),
    Metric("er", "ER", False),
    Metric("asr", "WER", True),
    Metric("asr", "CER", True, first=2),
)


@dataclass(frozen=True)
class Difference:
    """How much better one row is than another, in percentage points."""

    gain: float
    """Positive: the first row is better."""
    error: float
    """Standard error, of seeds and test utterances together."""

    @property
    def beyond_noise(self) -> bool:
        """More than two standard errors from 0."""
        return abs(self.gain) > BEYOND * self.error


def mean_and_error(values: Mapping[str, float]) -> tuple[float, float | None]:
    """Mean over seeds and its standard error; None of one seed."""
    numbers = list(values.values())
    return fmean(numbers), stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else None


def difference(metric: Metric, first: Items, second: Items) -> Difference | None:
    """First row against second, on their common seeds and utterances; None where they have none.

    Of ER all folds' utterances are pooled, while the score of record is the mean of the folds' accuracies.
    The error's two parts add in squares: the spread over seeds of the paired difference, and a bootstrap over test
    utterances of the difference averaged over seeds. (Seeds are resampled nowhere: three are too few.)
    """
    seeds = [seed for seed in first if seed in second]
    names = [name for name in first[seeds[0]] if name in second[seeds[0]]] if seeds else []
    if not names:
        return None
    sign = -1.0 if metric.lower_is_better else 1.0
    ours, theirs = (np.stack([metric.counts(rows[seed], names) for seed in seeds]) for rows in (first, second))
    gains = (sign * (metric.rate(ours) - metric.rate(theirs))).tolist()
    of_seeds = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    drawn = np.random.default_rng(0).integers(0, len(names), size=(RESAMPLES, len(names)))
    resampled = metric.rate(ours.mean(0)[drawn]) - metric.rate(theirs.mean(0)[drawn])
    return Difference(fmean(gains), math.hypot(of_seeds, float(resampled.std(ddof=1))))
