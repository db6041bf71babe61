"""Fixed windows of the utterances, and batches of them: what a run with a target cache trains on.

A hidden state depends on the whole clip that the teacher hears (GroupNorm averages over time, attention sees every
frame), so the states of a crop are no slice of the utterance's states. Cached targets are right only for exactly the
clip they were computed on: here every utterance is cut once, and each window is always trained whole. What changes
from epoch to epoch is the order of the batches and the company within a batch, not the crops.

Shapes: n windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.config import DataConfig
from s3prl_ekd.data.plan import BatchPlan, BatchSpec, on_grid

HOP = BatchPlan.FRAME  # windows start on frame borders
SHORTEST_REST = SAMPLE_RATE  # what whole windows leave of a long utterance is a window of its own from 1 s on
BATCHES_A_LENGTH = 4  # so many batches share a length where that is cheap: company changes within a length only
LARGEST_CUT = 0.1  # ... which may cost the longest of them this part of its length


@dataclass(frozen=True)
class Windows:
    """All windows of a corpus, each (n,) int64."""

    items: np.ndarray
    """Row of the length table."""
    starts: np.ndarray
    """First sample, a multiple of 320."""
    samples: np.ndarray
    """Length. Many windows share one, so that batches of equal length exist."""

    def __len__(self) -> int:
        return len(self.items)


def cut_windows(samples: np.ndarray, sequence_length: int, batch_size: int, batch_seconds: float | None) -> Windows:
    """Cut a corpus into windows, a function of the arguments alone.

    1. An utterance is one piece; where it is longer than ``sequence_length``, one piece for each whole
       ``sequence_length``, and one for the rest from 1 s on.
    2. Pieces in order of length are gathered into groups of one to four batches, of more than one only while that cuts
       at most 10 % off. All windows of a group get the length of its shortest piece, on the grid of 0.2 s (20 ms
       under 1 s). So batches are full whatever the size of the corpus, and crops lose little.
    3. A window's place within its piece is drawn, on frame borders.

    Args:
        samples: (utterances,) length of each at 16 kHz.
        sequence_length: longest window in samples; 0 cuts nothing.
        batch_size, batch_seconds: as of :class:`BatchPlan`; they shape the groups.
    """
    pieces = np.array(_pieces(samples, sequence_length), dtype=np.int64)  # (n, 3): item, start, samples
    pieces = pieces[np.argsort(-pieces[:, 2], kind="stable")]
    grid = on_grid(pieces[:, 2], sequence_length)
    lengths = np.empty_like(grid)
    first = 0
    while first < len(grid):
        batch = windows_a_batch(int(grid[first]), batch_size, batch_seconds)
        last = first + batch
        for _ in range(BATCHES_A_LENGTH - 1):
            more = min(last + batch, len(grid))
            if last >= len(grid) or grid[more - 1] < (1 - LARGEST_CUT) * grid[first]:
                break
            last = more
        lengths[first:last] = grid[min(last, len(grid)) - 1]
        first = last
    slack = (pieces[:, 2] - lengths) // HOP + 1  # frame borders where the window may start
    drawn = np.random.default_rng(0).random(len(pieces))
    starts = pieces[:, 1] + HOP * np.floor(drawn * slack).astype(np.int64)
    order = np.lexsort((starts, pieces[:, 0]))  # as the table, so that a file's windows lie side by side
    return Windows(pieces[order, 0], starts[order], lengths[order])


def windows_a_batch(samples: int, batch_size: int, batch_seconds: float | None) -> int:
    """How many windows of a length make a batch: a fixed count, or as many as the seconds allow, at least one."""
    return batch_size if batch_seconds is None else max(1, int(batch_seconds * SAMPLE_RATE // samples))


class WindowPlan(BatchPlan):
    """All batches of an epoch, each of windows of one length; resumable as :class:`BatchPlan` is."""

    def __init__(self, windows: Windows, config: DataConfig) -> None:
        super().__init__(windows.samples, config.train_batch_size, config.batch_seconds, seed=config.seed)
        self.windows = windows

    def _epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """Window numbers, (batch size,) for each batch; every window once."""
        rng = np.random.default_rng([self.seed, epoch])
        batches: list[np.ndarray] = []
        for length in np.unique(self.samples).tolist():
            group = rng.permutation(np.flatnonzero(self.samples == length))
            count = ceil(len(group) / windows_a_batch(length, self.batch_size, self.batch_seconds))
            batches += np.array_split(group, count)  # 13 + 12 rather than 24 + 1
        return [batches[i] for i in rng.permutation(len(batches))]

    def _spec(self, epoch: int, index: int, items: np.ndarray) -> BatchSpec:
        chosen = self.windows
        return BatchSpec(
            epoch,
            index,
            tuple(chosen.items[items].tolist()),
            tuple(chosen.starts[items].tolist()),
            int(chosen.samples[items[0]]),
            windows=tuple(items.tolist()),
        )


def _pieces(samples: np.ndarray, sequence_length: int) -> list[tuple[int, int, int]]:
    pieces = []
    step = ceil(sequence_length / HOP) * HOP
    for item, length in enumerate(samples.tolist()):
        whole = (length - sequence_length) // step + 1 if 0 < sequence_length <= length else 0
        pieces += [(item, i * step, sequence_length) for i in range(whole)]
        rest = length - whole * step
        if whole == 0 or rest >= SHORTEST_REST:
            pieces.append((item, whole * step, rest))
    return pieces
