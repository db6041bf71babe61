"""``nn.Linear`` layers by whichever product is fastest where they are; they stay torch's own, whom tools look for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module

from s3prl_ekd.model import onednn
from s3prl_ekd.model.arithmetic import HALF, gelu

GLOBAL_HOOKS = (  # torch changes these in place
    module._global_forward_pre_hooks,
    module._global_forward_hooks,
    module._global_backward_pre_hooks,
    module._global_backward_hooks,
)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)``, by oneDNN where that is faster (``onednn.py``). x (..., I) -> (..., O)."""
    if x.is_cpu and _is_plain(layer) and onednn.is_faster(x, layer.weight, x.numel() * layer.out_features):
        return onednn.linear(x, layer.weight, layer.bias)
    return layer(x)


def linear_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """``gelu(layer(x))``; in half precision on a GPU without gradients the product's own epilogue computes it.

    cuBLAS takes GELU's tanh form there, at most 5e-4 from the exact one, but of sums not rounded yet: nearer to fp32
    than the exact GELU of sums rounded to bf16 (relative error 0.0017 against 0.0025), in 0.15 ms where the two take
    0.22 (18,696 x 768 x 3072, H200).
    """
    if not _is_plain(layer):
        return F.gelu(layer(x))  # not in place: who watches the layer may keep what it gave
    if not x.is_cuda or torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"):
        return gelu(linear(layer, x))
    weight, bias = layer.weight, layer.bias
    if bias is None or x.dtype != weight.dtype or x.dtype not in HALF:
        return gelu(layer(x))
    return torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True).unflatten(0, x.shape[:-1])


def _is_plain(layer: nn.Linear) -> bool:
    """Not so a layer that was wrapped or quantised, or that is watched: it computes itself."""
    if type(layer) is not nn.Linear or "forward" in vars(layer) or any(GLOBAL_HOOKS):
        return False
    return not any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks))
