"""Arithmetic that all parts of the encoder share: norms in fp32, GELU, scaled gradients, the precision of products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.kernels import can_launch, try_kernel

HALF = (torch.float16, torch.bfloat16)


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


def add_layer_norm(norm: nn.LayerNorm, x: Tensor, y: Tensor) -> Tensor:
    """LayerNorm of ``x + y`` in fp32: one kernel on a GPU without gradients."""
    kernels = fused_kernels(x)
    if kernels is None or x.dtype != y.dtype:
        return layer_norm_fp32(norm, x + y)
    return kernels.add_layer_norm(x, y, norm.weight, norm.bias, norm.eps)


def fused_kernels(x: Tensor) -> ModuleType | None:
    """``triton_kernels`` where it computes what is asked for: on a GPU, without gradients, with a working Triton."""
    return _triton_kernels(x.device) if can_launch(x) and not torch.is_grad_enabled() else None


@cache
def _triton_kernels(device: torch.device) -> ModuleType | None:
    """The module, tried out: Triton is absent from some builds of torch, and needs a C compiler when it runs."""

    def trial() -> ModuleType:
        from s3prl_ekd.model import triton_kernels

        one = torch.ones(1, 16, device=device)  # never another GPU, which may be full
        triton_kernels.add_layer_norm(one, one, one[0], one[0], 1e-5)
        return triton_kernels

    return try_kernel(trial, "no fused kernels, some per cent slower")


def gated_attention_kernel(query: Tensor) -> Callable[..., Tensor] | None:
    """``triton_attention.gated_attention`` where it is of use: as :func:`fused_kernels`, in fp16 and bf16.

    Not in fp32, which it multiplies without tensor cores, nor before Ampere, where it has too few registers.
    """
    if query.dtype not in HALF or fused_kernels(query) is None:
        return None
    return _gated_attention(query.dtype, query.shape[-1], query.device)


@cache
def _gated_attention(dtype: torch.dtype, width: int, device: torch.device) -> Callable[..., Tensor] | None:
    """The function, tried out: an older Triton lacks what it is made of, a smaller GPU the shared memory."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None

    def trial() -> Callable[..., Tensor]:
        from s3prl_ekd.model.triton_attention import gated_attention

        frames = 80  # more than one tile of keys
        one = torch.ones(1, 1, frames, width, dtype=dtype, device=device)
        gated_attention(one, one, one, one[..., 0], torch.ones(1, 2 * frames - 1, device=device))
        return gated_attention

    return try_kernel(trial, "no kernel for gated attention, WavLM is slower")


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """TF32 matrix products inside the block: torch leaves them off, and fp32 proper costs several times as much."""
    if not enabled:
        yield
        return
    matmul = torch.backends.cuda.matmul
    value: bool | str
    before: bool | str
    try:
        name, value, before = "allow_tf32", True, matmul.allow_tf32
    except RuntimeError:  # the program has used torch's newer switch, after which the older one may not be touched
        name, value, before = "fp32_precision", "tf32", matmul.fp32_precision
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def tf32_convolutions() -> bool:
    """Whether torch computes fp32 convolutions in TF32, which it does unless told otherwise."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # as above
        return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]  # torch makes it late


class _ScaleGradient(torch.autograd.Function):
    """Identity forward; multiplies the gradient by a constant on the way back (fairseq's GradMultiply)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """``feature_grad_mult``: slow the conv stack down against the transformer above it."""
    return x if scale == 1.0 else _ScaleGradient.apply(x, scale)
