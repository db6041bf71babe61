"""Mean and spread of a teacher's frames, batch by batch and over all ranks: for ``normalise.py`` and ``phi_s.py``.

The spread is a variance by channel or a covariance, as what squares a difference has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from s3prl_ekd.distributed import Share


class Moments(NamedTuple):
    """Of the frames so far."""

    mean: Tensor
    """(D,)."""
    spread: Tensor
    """(D,) variance or (D, D) covariance."""
    frames: Tensor
    """Their number, int64."""


@torch.no_grad()
def take_in(
    so_far: Moments,
    states: Tensor,
    mean: Tensor,
    spread: Tensor,
    square: Callable[[Tensor], Tensor],
    share: Share | None,
    least: float = 0.0,
) -> None:
    """Merge a batch into the moments so far, in place; nothing waits for the device.

    - ``w = max(least, n / (N + n))`` for a batch of n frames after N frames,
    - ``mean <- mean + w * (m - mean)``,
    - ``spread <- (1 - w) * spread + w * s + w * (1 - w) * square(m - mean)``.

    A batch that holds infinity (an overflow of a half-precision teacher) leaves no trace.

    Args:
        states: (B, T, D), the batch.
        mean, spread: m and s, those of ``states``.
        square: (D,) -> what the spread is the mean of.
        share: where ``states`` are one rank's part of the batch; merged is the whole.
    """
    frames: int | Tensor = states.shape[:-1].numel()
    if share is not None:
        own, mean, frames = mean, share.mean(mean), share.total * states.shape[-2]
        spread = share.mean(spread + square(own - mean))
    finite = torch.isfinite(spread).all()
    so_far.frames.add_(frames * finite)
    weight = torch.where(finite, (frames / so_far.frames).clamp(min=least), 0.0)
    difference = torch.where(finite, mean - so_far.mean, 0.0)
    so_far.mean.add_(weight * difference)
    so_far.spread.lerp_(torch.where(finite, spread, so_far.spread), weight)
    so_far.spread.add_(weight * (1 - weight) * square(difference))
