"""Mean and spread of a teacher's frames, batch by batch and over all ranks: of ``normalise.py`` and ``phi_s.py``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s3prl_ekd.distributed import Share


class RunningMoments(nn.Module):
    """Running mean (D,) and count of the frames; a subclass registers the buffer of their spread, (D,) or (D, D)."""

    mean: Tensor
    frames: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("frames", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def _take_in(
        self, so_far: Tensor, states: Tensor, mean: Tensor, spread: Tensor, share: Share | None, least: float = 0.0
    ) -> None:
        """Merge a batch, in place; nothing waits for the device.

        - ``w = max(least, n / (N + n))`` for a batch of n frames after N frames,
        - ``mean <- mean + w * (m - mean)``,
        - ``spread <- (1 - w) * spread + w * s + w * (1 - w) * (m - mean)^2``.

        Args:
            so_far: the spread, (D,) variance or (D, D) covariance.
            states: (B, T, D), the batch; infinity in it (an overflow of a half-precision teacher) leaves no trace.
            mean, spread: m and s, those of ``states``.
            share: where ``states`` are one rank's part of the batch; merged is the whole.
        """
        frames: int | Tensor = states.shape[:-1].numel()
        if share is not None:
            own, mean, frames = mean, share.mean(mean), share.total * states.shape[-2]
            spread = share.mean(spread + _square(own - mean, spread))
        finite = torch.isfinite(spread).all()
        self.frames += frames * finite
        weight = torch.where(finite, (frames / self.frames).clamp(min=least), 0.0)
        difference = torch.where(finite, mean - self.mean, 0.0)
        self.mean += weight * difference
        so_far.lerp_(torch.where(finite, spread, so_far), weight)
        so_far += weight * (1 - weight) * _square(difference, spread)


def _square(difference: Tensor, spread: Tensor) -> Tensor:
    return difference.square() if spread.dim() == 1 else torch.outer(difference, difference)
