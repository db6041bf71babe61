"""The gradient that each head sends into the student: its norm, its share, and how to give each the share asked for.

Shapes: n heads of all sets together, B clips, T frames, D student width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Losses times this keep fp16 gradients from vanishing; a power of two is divided out again without rounding
_SCALE = 2.0**14


def gradient_norms(losses: Sequence[Tensor], hidden: Sequence[Tensor]) -> Tensor:
    """(n,) norms of ``d losses[i] / d hidden[i]``: what each head's loss asks of the student.

    For each head one pass back through its own set, none through the student. The graph stays usable.

    Args:
        losses: one tensor a head set, (heads of the set,). Not joined: the gradient of one entry of a joined tensor
            would run back through every set, three times the work for three teachers.
        hidden: for each of the n heads, the student's hidden state that it reads, (B, T, D).
    """
    norms = []
    for loss, state in zip((loss for of_set in losses for loss in of_set), hidden, strict=True):
        (gradient,) = torch.autograd.grad(loss * _SCALE, state, retain_graph=True)
        norms.append(gradient.float().norm() / _SCALE)
    return torch.stack(norms).detach()


class Balancer(nn.Module):
    """Loss factors that turn weights into shares of the gradient at the student's hidden state that all heads read.

    ``factor_i = share_i * sum_j(E_j) / E_i``, where E_i is the running mean of the norm of head i's gradient and
    shares add to 1. Each head's gradient then has norm ``share_i * sum_j(E_j)`` whatever the scale of its loss, and the
    norms add to what they added to before. (Balancer of EnCodec, arXiv 2210.13438, and audiocraft's
    ``losses/balancer.py``, which sets the total to a constant instead.) The heads' own gradients scale along, to which
    AdamW is indifferent.

    Args:
        shares: (n,) not negative; scaled to add to 1.
        decay: of the running mean, corrected for its start at 0.
    """

    shares: Tensor
    total: Tensor
    weight: Tensor

    def __init__(self, shares: Tensor, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("shares", shares / shares.sum(), persistent=False)
        self.register_buffer("total", torch.zeros(len(shares)))
        self.register_buffer("weight", torch.zeros(len(shares)))

    def forward(self, norms: Tensor) -> Tensor:
        """norms (n,) of this batch -> factors (n,); the running means change in training mode only."""
        if self.training:
            # Two leave no trace: an overflow of fp16, whose step the runner skips, and a head that was dropped from
            # the whole batch; its mean would fall to nothing, and its factor rise, until it comes back.
            known = torch.isfinite(norms).all() & (norms > 0)
            decay = torch.where(known, self.decay, 1.0)
            self.total.mul_(decay).add_((1 - decay) * torch.nan_to_num(norms, posinf=0.0))
            self.weight.mul_(decay).add_(1 - decay)
        average = torch.where(self.weight > 0, self.total / self.weight.clamp(min=1e-12), norms)
        return self.shares * average.sum() / average.clamp(min=1e-12)
