"""Linear layers: torch's parameters and hooks, and whichever product is fastest where they run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s3prl_ekd.model import onednn
from s3prl_ekd.model.arithmetic import HALF, gelu


class Linear(nn.Linear):
    """``nn.Linear``, computed by oneDNN where that is faster (``onednn.py``)."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        if onednn.is_faster(x, self.weight):
            return onednn.linear(x, self.weight, self.bias)
        return super().forward(x)


def linear_gelu(linear: nn.Linear, x: Tensor) -> Tensor:
    """``gelu(linear(x))``; in half precision on a GPU without gradients the product's own epilogue computes it.

    cuBLAS takes GELU's tanh form there, at most 5e-4 from the exact one, but of sums not rounded yet: nearer to fp32
    than the exact GELU of sums rounded to bf16 (relative error 0.0017 against 0.0025), in 0.15 ms where the two take
    0.22 (18,696 x 768 x 3072, H200).
    """
    # a layer that was wrapped, quantised or is watched computes itself
    own_way = type(linear) is not Linear or linear._forward_hooks or linear._forward_pre_hooks
    if own_way or not x.is_cuda or torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"):
        return gelu(linear(x))
    weight, bias = linear.weight, linear.bias
    if bias is None or x.dtype != weight.dtype or x.dtype not in HALF:
        return gelu(linear(x))
    return torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True).unflatten(0, x.shape[:-1])
