"""The distillation loss: L1 plus a bounded cosine term, per prediction head.

Shapes: B clips, n heads of one set, T frames, W channels of the target.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class HeadLosses:
    """The two terms of each head of a set, still on the device and attached to the graph."""

    l1: Tensor
    """(n,) mean absolute error."""
    cosine: Tensor
    """(n,) mean of -log sigmoid(cos(prediction, target))."""

    def total(self, cosine_weight: float) -> Tensor:
        """(n,) what each head adds: l1 + cosine_weight * cosine."""
        return self.l1 + cosine_weight * self.cosine


def head_losses(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> HeadLosses:
    """``L1 = mean |p - t|`` and ``-log sigmoid(cos(p, t))`` for every head, in fp32.

    The loss of DistilHuBERT (arXiv 2110.01900, equation 1; s3prl pretrain/distiller/pretrain_expert.py).

    Args:
        prediction, target: (B, n, T, W).
        mask: bool (B, T), True for speech; None averages over all frames.
    """
    l1, cosine = _frame_losses(prediction, target)
    if mask is None:
        return HeadLosses(l1.mean((0, 2)), cosine.mean((0, 2)))
    weight = mask.to(l1.dtype).unsqueeze(1)  # (B, 1, T)
    frames = weight.sum()
    return HeadLosses((l1 * weight).sum((0, 2)) / frames, (cosine * weight).sum((0, 2)) / frames)


def clip_losses(prediction: Tensor, target: Tensor) -> HeadLosses:
    """The same two terms for each clip by itself: (B, n) instead of (n,)."""
    l1, cosine = _frame_losses(prediction, target)
    return HeadLosses(l1.mean(2), cosine.mean(2))


def _frame_losses(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(B, n, T) of each term, in fp32."""
    prediction, target = prediction.float(), target.float()
    l1 = (prediction - target).abs().mean(-1)
    return l1, -F.logsigmoid(F.cosine_similarity(prediction, target, dim=-1))


def mean_over_heads(losses: dict[str, HeadLosses], cosine_weight: float) -> Tensor:
    """Scalar: the unweighted mean over all heads of all sets."""
    return torch.cat([loss.total(cosine_weight) for loss in losses.values()]).mean()
