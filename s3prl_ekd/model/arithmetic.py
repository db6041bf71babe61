"""Arithmetic that all parts of the encoder share: norms in fp32, GELU, scaled gradients, the precision of products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """What a matrix product of the two would be computed in: autocast's choice, else the weight's."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def gelu(x: Tensor) -> Tensor:
    """GELU; without gradients it writes over ``x``, which nobody may read again.

    On a CPU a fresh tensor of the size of the first conv layer's output costs as much in page faults as its GELU.
    """
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def layer_norm_fp32(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm in fp32, returned in the dtype of ``x``: bf16 statistics over 768 channels lose too much."""
    if x.dtype == norm.weight.dtype:
        return norm(x).to(x.dtype)  # torch's kernels read bf16 and fp16, compute in fp32 and round once
    out = F.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
    return out.to(x.dtype)


class _ScaleGradient(torch.autograd.Function):
    """Identity forward; multiplies the gradient by a constant on the way back (fairseq's GradMultiply)."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """``feature_grad_mult``: slow the conv stack down against the transformer above it."""
    return x if scale == 1.0 else _ScaleGradient.apply(x, scale)
