"""Teacher dropping: which head sets a clip learns from.

Shapes: S head sets, B clips.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keep_worst(losses: Tensor, probability: float) -> Tensor:
    """Which (head set, clip) pairs are kept: for each clip the worst-predicted set, each other with ``1 - p``.

    ``keep[s, b] = 1 if s = argmax_s' losses[s', b] or u[s, b] >= p``, u uniform. Easy teachers stop dominating the
    updates. (UNIC, arXiv 2408.05088: teacher dropping, p = 0.5.)

    Args:
        losses: (S, B).
        probability: p; 0 keeps everything, 1 the worst alone.

    Returns:
        bool (S, B); at least one True for each clip. Drawn from torch's generator of the losses' device.
    """
    worst = losses.argmax(0, keepdim=True)  # (1, B)
    kept = torch.rand(losses.shape, device=losses.device) >= probability
    return kept.scatter(0, worst, True)


def clip_factors(keep: Tensor, weights: Tensor) -> Tensor:
    """(S, B) factors on each clip's losses that make a clip's total the weighted mean over the sets it kept.

    ``factor[s, b] = keep[s, b] * sum_s' w[s'] / sum_s' (w[s'] * keep[s', b])``: all ones when all are kept.

    Args:
        keep: bool (S, B).
        weights: (S,) what each set adds to the loss.
    """
    weights = weights.unsqueeze(1)  # (S, 1)
    return keep * weights.sum() / (weights * keep).sum(0).clamp(min=1e-12)
