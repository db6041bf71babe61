"""The distillation loss: L1 plus a bounded cosine term, per prediction head.

Shapes: B clips, n heads of one set, T frames, W channels of the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_ekd.kernels import can_launch, try_kernel

Terms = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
_EPS = 1e-8  # shortest length of a frame in its cosine, as in torch's


@dataclass
class HeadLosses:
    """The two terms of each head of a set, still on the device and attached to the graph."""

    l1: Tensor
    """(n,) mean absolute error."""
    cosine: Tensor
    """(n,) mean of -log sigmoid(cos(prediction, target))."""

    @classmethod
    def of_heads(cls, l1: Tensor, cosine: Tensor) -> HeadLosses:
        """The means over clips and frames of what :func:`frame_losses` gives, (B, n, T) each."""
        return cls(l1.mean((0, 2)), cosine.mean((0, 2)))

    @classmethod
    def of_clips(cls, l1: Tensor, cosine: Tensor) -> HeadLosses:
        """The same two terms for each clip by itself: (B, n) instead of (n,)."""
        return cls(l1.mean(2), cosine.mean(2))

    def total(self, cosine_weight: float, l1_weight: float = 1.0) -> Tensor:
        """(n,) what each head adds: l1_weight * l1 + cosine_weight * cosine; a weight of 1 changes no bit."""
        return l1_weight * self.l1 + cosine_weight * self.cosine


def head_losses(prediction: Tensor, target: Tensor) -> HeadLosses:
    """``L1 = mean |p - t|`` and ``-log sigmoid(cos(p, t))`` for every head, in fp32.

    The loss of DistilHuBERT (arXiv 2110.01900, equation 1; s3prl pretrain/distiller/pretrain_expert.py).

    Args:
        prediction, target: (B, n, T, W), every frame of them speech.
    """
    return HeadLosses.of_heads(*frame_losses(prediction, target))


def frame_losses(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of every frame, in fp32: (B, n, T) each, from (B, n, T, W)."""
    terms = fused_terms(prediction, target) or l1_and_cosine
    l1, cosine = terms(prediction, target, _EPS)
    return l1, -F.logsigmoid(cosine)


def fused_terms(prediction: Tensor, target: Tensor) -> Terms | None:
    """:func:`l1_and_cosine` as kernels (``triton_losses.py``), where they compute what is asked for and Triton runs."""
    for x in (prediction, target):
        if not can_launch(x) or x.dtype == torch.float64 or not x.is_floating_point() or x.stride(3) != 1:
            return None
    return _fused_terms(prediction.device)


@cache
def _fused_terms(device: torch.device) -> Terms | None:
    """The function, tried out, forward and backward."""

    def trial() -> Terms:
        from s3prl_ekd.distill.triton_losses import FusedL1AndCosine

        one = torch.ones(1, 1, 1, 16, device=device, requires_grad=True)
        with torch.enable_grad():
            l1, cosine = FusedL1AndCosine.apply(one, one.detach(), _EPS)
            (l1 + cosine).sum().backward()
        return FusedL1AndCosine.apply

    return try_kernel(trial, "no kernels for the loss, training is some per cent slower")


def l1_and_cosine(prediction: Tensor, target: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``mean |p - t|`` and ``cos(p, t)`` over the last dimension by torch's operators: (B, n, T) each."""
    return _L1AndCosine.apply(prediction, target, eps)


class _L1AndCosine(torch.autograd.Function):
    """``mean |p - t|`` and ``cos(p, t)`` over the last dimension, with respect to p only.

    Predictions and targets are the largest tensors of the objective, 0.5 GB each at the paper's batch. Torch's own
    operators would write nine tensors of that size for the two terms and keep them until the backward pass. This writes
    one or two at a time and keeps only its inputs.
    """

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        kind = torch.promote_types(prediction.dtype, torch.float32)
        lengths = [torch.linalg.vector_norm(x, dim=-1, dtype=kind).clamp(min=eps) for x in (prediction, target)]
        wide = _widened(target, prediction, kind)
        product = torch.mul(prediction, wide)
        cosine = product.sum(-1) / (lengths[0] * lengths[1])
        difference = torch.sub(prediction, wide, out=product)
        l1 = torch.linalg.vector_norm(difference, ord=1, dim=-1) / prediction.shape[-1]
        ctx.save_for_backward(prediction, target, *lengths, cosine)
        return l1, cosine

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_l1: Tensor, grad_cosine: Tensor) -> tuple[Tensor | None, ...]:
        prediction, target, length, target_length, cosine = ctx.saved_tensors
        target = _widened(target, prediction, length.dtype)
        # d cos / d p = (t / |t| - cos p / |p|) / |p|
        of_target = (grad_cosine / (length * target_length)).unsqueeze(-1)
        of_prediction = (-grad_cosine * cosine / length.square()).unsqueeze(-1)
        grad = torch.sub(prediction, target).sign_().mul_((grad_l1 / prediction.shape[-1]).unsqueeze(-1))
        grad.addcmul_(target, of_target).addcmul_(prediction, of_prediction)
        return grad.to(prediction.dtype), None, None


def _widened(target: Tensor, prediction: Tensor, kind: torch.dtype) -> Tensor:
    """``target`` in ``kind`` where both are halves, whose products torch would round to one; else as it is."""
    return target.to(kind) if prediction.dtype == target.dtype else target


def mean_over_heads(losses: dict[str, HeadLosses], cosine_weight: float, l1_weight: float = 1.0) -> Tensor:
    """Scalar: the unweighted mean over all heads of all sets."""
    return torch.cat([loss.total(cosine_weight, l1_weight) for loss in losses.values()]).mean()
