"""Which clips make which batch: equal-length crops, never padded; the order follows from (seed, epoch).

Padding would change features (GroupNorm averages over time) and masks would cost the fast attention kernels, so each
batch gathers utterances of similar length and crops all of them to the shortest. Only numbers here: what a batch's
files hold is read in ``batches.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from s3prl_ekd.audio import SAMPLE_RATE


@dataclass(frozen=True)
class BatchSpec:
    """What one batch reads: plain numbers, cheap to send to a worker."""

    epoch: int
    index: int
    """Position in the epoch."""
    items: tuple[int, ...]
    """Rows of the length table."""
    starts: tuple[int, ...]
    """First sample of each crop."""
    samples: int
    """N, length of every crop."""
    windows: tuple[int, ...] = ()
    """Under a target cache, the number of each crop's window (windows.py)."""


class BatchPlan(Sampler[BatchSpec]):
    """All batches of an epoch, shuffled; remembers where to go on.

    Args:
        samples: (n,) length of each utterance at 16 kHz.
        batch_size: utterances a batch (the last of an epoch may be smaller).
        batch_seconds: instead of a count, seconds of audio a batch.
        sequence_length: longest crop in samples; 0 does not crop.
        seed: of order and crops.

    Each epoch adds up to 10 % of noise to the lengths before sorting, so that a batch's company changes from epoch to
    epoch (s3prl's batches are fixed for ever).
    """

    LENGTH_NOISE = 0.1
    GRID, FRAME = 3_200, 320  # samples

    def __init__(
        self,
        samples: np.ndarray,
        batch_size: int,
        batch_seconds: float | None = None,
        sequence_length: int = 0,
        seed: int = 0,
    ) -> None:
        self.longest = np.iinfo(np.int64).max if sequence_length <= 0 else sequence_length
        self.samples = np.asarray(samples, dtype=np.int64)
        self.crop = np.minimum(self.samples, self.longest)
        self.batch_size, self.batch_seconds, self.seed = batch_size, batch_seconds, seed
        self.epoch, self.next_index = 0, 0

    def __len__(self) -> int:
        """Batches of the current epoch (the number hardly changes from epoch to epoch under batch_seconds)."""
        return len(self._epoch_batches(self.epoch))

    def __iter__(self) -> Iterator[BatchSpec]:
        """The rest of the current epoch; the next call starts the next epoch."""
        epoch, first = self.epoch, self.next_index
        self.epoch, self.next_index = epoch + 1, 0
        batches = self._epoch_batches(epoch)
        for index in range(first, len(batches)):
            yield self._spec(epoch, index, batches[index])

    def resume_after(self, epoch: int, index: int) -> None:
        """Go on with the batch after (epoch, index), as if the run had never stopped."""
        self.epoch, self.next_index = epoch, index + 1

    def _epoch_batches(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        noise = 1 + self.LENGTH_NOISE * rng.random(len(self.crop))
        order = np.argsort(-self.crop * noise, kind="stable")  # neighbours in length share a batch
        if self.batch_seconds is None:
            cuts = list(range(self.batch_size, len(order), self.batch_size))
        else:
            cuts = _cuts(on_grid(self.crop[order], self.longest), self.batch_seconds * SAMPLE_RATE)
        batches = np.split(order, cuts)
        return [batches[i] for i in rng.permutation(len(batches))]

    def _spec(self, epoch: int, index: int, items: np.ndarray) -> BatchSpec:
        length = int(on_grid(self.crop[items].min(), self.longest))
        rng = np.random.default_rng([self.seed, epoch, index])
        starts = rng.integers(0, self.samples[items] - length + 1)
        return BatchSpec(epoch, index, tuple(items.tolist()), tuple(starts.tolist()), length)


def _cuts(crops: np.ndarray, budget: float) -> list[int]:
    """Positions where a new batch starts, so that batch size x shortest crop stays within ``budget`` samples.

    ``crops`` on the grid: then all batches of a length have one size, the last one of an epoch aside. Each pair of
    size and length that comes for the first time costs a GPU about 0.25 s (choice of kernels).
    """
    cuts: list[int] = []
    size, shortest = 0, 0  # of the batch that is being filled
    for position, crop in enumerate(crops.tolist()):
        size, shortest = size + 1, min(shortest, crop) if size else crop
        if size > 1 and size * shortest > budget:
            cuts.append(position)
            size, shortest = 1, crop
    return cuts


def on_grid(lengths: np.ndarray, longest: int) -> np.ndarray:
    """Lengths in samples rounded down to 0.2 s (to a frame under 1 s); ``longest``, the crop asked for, stays itself.

    Few shapes, so that kernels chosen for a shape are used again.
    """
    step = np.where(lengths >= SAMPLE_RATE, BatchPlan.GRID, BatchPlan.FRAME)
    return np.where(lengths == longest, lengths, lengths - lengths % step)
