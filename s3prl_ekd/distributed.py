"""The ranks of a distributed run as the training step sees them: one global batch, dealt over processes.

Starting and ending ranks, and who may print or write, is ``bridge/ranks.py``; dealing clips is ``data/shards.py``.
Names: W ranks; rank r holds b_r of the B clips of a global batch. All clips of a batch have one length, so a mean over
the clips and frames of the batch is ``sum_r (b_r / B) * (mean over rank r's)``, whatever the shares are.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from s3prl_ekd.errors import EkdError


@dataclass(frozen=True)
class Ranks:
    """This process and its number of peers; ``Ranks()`` is a process of its own, for which all below is a no-op."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """The ranks of torch's default process group; ``Ranks()`` where there is none.

        Raises:
            EkdError: a launcher started several processes, but nothing has joined them.
        """
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise EkdError("several processes were started, but not joined: docs/scale_out.md says how to start them")
        return cls()

    @property
    def writes(self) -> bool:
        """Whether logs and checkpoints are this rank's to write."""
        return self.rank == 0

    def parallel(self, model: nn.Module) -> nn.Module:
        """``model`` in DistributedDataParallel, which gives every rank rank 0's weights; alone, ``model`` itself.

        The wrapper shares the parameters: what is saved, clipped and optimised stays ``model``, under its own names.
        """
        return model if self.size == 1 else DistributedDataParallel(model, broadcast_buffers=False)

    def share(self, clips: int, device: torch.device) -> Share | None:
        """What this rank's ``clips`` (0 or more) are of the global batch; None for a process of its own."""
        if self.size == 1:
            return None
        total = torch.full((), clips, dtype=torch.int64, device=device)  # filled there: nothing is waited for
        dist.all_reduce(total)
        empty = clips == 0 and int(total) == 0  # waits for the device, but only where a rank has nothing
        return Share(clips, total, self.size, empty)

    def sums(self, values: Sequence[float], device: torch.device | str) -> list[float]:
        """Each value summed over the ranks."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.tolist()

    def own_random_draws(self, seed: int, epoch: int, index: int) -> None:
        """Dropout and masks of a batch must differ from rank to rank; rank 0 keeps the stream that one process has.

        On the others they follow from the batch, so that rank 0 can save the whole state of a run, its peers gone.

        Args:
            seed: of the run.
            epoch, index: of the batch.
        """
        if self.rank > 0:
            (own,) = np.random.SeedSequence([seed, self.rank, epoch, index]).generate_state(1).tolist()
            torch.manual_seed(own)  # and every GPU's
            np.random.seed(own)
            random.seed(own)


class Share:
    """This rank's part of one global batch.

    Args:
        clips: b_r, 0 where this rank's wave only stands in for clips.
        total: B, a whole number on the training device.
        ranks: W.
        empty: whether no rank has a clip: nothing can be a mean then.
    """

    def __init__(self, clips: int, total: Tensor, ranks: int, empty: bool = False) -> None:
        self.total, self.ranks, self.empty = total, ranks, empty
        self.fraction = clips / total  # a tensor: nothing here waits for the device

    def mean(self, values: Tensor) -> Tensor:
        """Means over this rank's clips -> means over the global batch: ``sum_r (b_r / B) * values_r``. No gradient."""
        total = values.detach() * self.fraction
        dist.all_reduce(total)
        return total

    def take_rank_zeros(self, values: Tensor) -> None:
        """Replace ``values``, in place, by what rank 0 has of them."""
        dist.broadcast(values, 0)

    def norm(self, norms: Tensor) -> Tensor:
        """Norms of gradients over a rank's clips of that rank's mean loss -> over all clips of the global mean loss.

        ``sqrt(sum_r (b_r / B * norms_r)^2)``: each clip has its own hidden state, so squares add.
        """
        squares = (norms.detach() * self.fraction).square()
        dist.all_reduce(squares)
        return squares.sqrt()

    def loss(self, loss: Tensor) -> Tensor:
        """The mean loss over this rank's clips -> the global mean, with the gradient of this rank's part in it.

        DistributedDataParallel divides the summed gradients by W, so this rank's is ``W * b_r / B`` times its own.
        """
        return _GlobalMean.apply(loss, self)


class _GlobalMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, share: Share) -> Tensor:
        ctx.factor = share.fraction * share.ranks
        return share.mean(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
