"""Dealing each global batch over the ranks of a distributed run.

The plan stays what it is for one process, a function of (seed, epoch): which clips make a batch and where each is
cropped does not depend on the number of ranks, and a run can go on with another number of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch.utils.data import Sampler

from s3prl_ekd.data.plan import BatchPlan, BatchSpec
from s3prl_ekd.distributed import Ranks


class ShardedPlan(Sampler[BatchSpec]):
    """One rank's clips of every batch of a plan: as many batches on every rank, so that none waits for another.

    Args:
        plan: the global batches.
        ranks: this rank and the number of ranks.
    """

    def __init__(self, plan: BatchPlan, ranks: Ranks) -> None:
        self.plan, self.ranks = plan, ranks

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[BatchSpec]:
        for spec in self.plan:
            yield shard(spec, self.ranks)


def shard(spec: BatchSpec, ranks: Ranks) -> BatchSpec:
    """Clips r, r + W, r + 2W, ... of a batch for rank r of W: shares differ by one clip at most, and may be empty."""
    own = slice(ranks.rank, None, ranks.size)
    return replace(spec, items=spec.items[own], starts=spec.starts[own])
