"""Means, standard errors, and which differences are beyond the noise.

Two sources of noise: training (a seed is that of the student's distillation and of the downstream training alike) and
the test set. A difference of two rows is taken pairwise: both see the same seeds and the same utterances, so that what
is hard for both cancels. Of the test set it is the SPEAKERS who are a sample: a model that is better on one utterance
of somebody is often better on his others.

Shapes: S seeds, U utterances of the test set.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev, variance

import numpy as np
from scipy import stats

Items = Mapping[str, Mapping[str, list[int]]]
"""seed -> utterance -> what ``scores.items`` keeps of it."""

LEVEL = 0.05
"""Of rows that are equal in truth, the part of differences that is called beyond the noise."""


@dataclass(frozen=True)
class Metric:
    """One column of the table."""

    task: str
    name: str
    lower_is_better: bool
    first: int = 0
    """Where errors and tokens stand in an utterance's list."""

    def errors(self, utterances: Mapping[str, list[int]], names: list[str]) -> np.ndarray:
        """(U,) of one seed, in the order of ``names``."""
        return np.array([utterances[name][self.first] for name in names], dtype=float)

    def weights(self, utterances: Mapping[str, list[int]], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(U,) tokens, and (U,) what an error adds to the score in percent: ER's is the mean of its folds' rates."""
        tokens = np.array([utterances[name][self.first + 1] for name in names], dtype=float)
        folds = np.array([utterances[name][2] if self.task == "er" else 0 for name in names])
        _, fold = np.unique(folds, return_inverse=True)
        size = np.bincount(fold, weights=tokens)
        return tokens, 100.0 / (len(size) * size[fold])


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
    """Standard error, of seeds and test speakers together."""
    freedom: float
    """Degrees of freedom of that error."""

    @property
    def beyond_noise(self) -> bool:
        """Whether a t test at :data:`LEVEL` tells it from 0."""
        return abs(self.gain) > float(stats.t.ppf(1 - LEVEL / 2, self.freedom)) * self.error


def mean_and_error(values: Mapping[str, float]) -> tuple[float, float | None]:
    """Mean over seeds and its standard error; None of one seed."""
    numbers = list(values.values())
    return fmean(numbers), stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else None


def difference(metric: Metric, first: Items, second: Items) -> Difference | None:
    """First row against second, on their common seeds and utterances; None where they have none.

    The gain is the difference of the scores of record. Its variance is the sum of two parts, whose degrees of freedom
    are put together by Welch and Satterthwaite: that of the paired gains over seeds, and that over test speakers of the
    gain averaged over seeds, linearised (a score is a ratio) and clustered by speaker.
    """
    seeds = [seed for seed in first if seed in second]
    names = [name for name in first[seeds[0]] if name in second[seeds[0]]] if seeds else []
    if not names:
        return None
    fewer = np.stack([metric.errors(second[seed], names) - metric.errors(first[seed], names) for seed in seeds])
    tokens, weights = metric.weights(first[seeds[0]], names)
    gains = (fewer @ weights).tolist()
    gain = fmean(gains)
    of_seeds = variance(gains) / len(gains) if len(gains) > 1 else 0.0
    residuals = weights * (fewer.mean(0) - gain / 100.0 * tokens)
    speakers = sorted({_speaker(name) for name in names})
    sums = np.zeros(len(speakers))
    np.add.at(sums, [speakers.index(_speaker(name)) for name in names], residuals)
    others = len(speakers) - 1
    of_speakers = len(speakers) / max(others, 1) * float((sums**2).sum())
    total = of_seeds + of_speakers
    parts = of_seeds**2 / max(len(gains) - 1, 1) + of_speakers**2 / max(others, 1)
    return Difference(gain, math.sqrt(total), total**2 / parts if parts else math.inf)


def _speaker(utterance: str) -> str:
    """Whose utterance it is, by its name: 4992-41806-0008, id10001-134691-1089_134691_0001, 03_03a01Fa."""
    return re.split("[-_]", utterance, maxsplit=1)[0]
