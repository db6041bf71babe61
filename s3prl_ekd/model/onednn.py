"""fp32 matrix products on a CPU by oneDNN, where MKL, which torch asks, is half as fast.

MKL keeps its AVX-512 kernels to Intel's processors. On AMD's it computes with AVX2: 110 GFLOP/s of a core where oneDNN,
which torch brings along for convolutions and bf16, makes 225 (EPYC with AVX-512, torch 2.11, `--bench kernels`). On a
few small products MKL is faster there too; those stay with it. ``torch.backends.mkldnn.flags(enabled=False)`` turns
this off.

Shapes: R rows, I inputs, O outputs.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from s3prl_ekd.model.arithmetic import tried

_LEAST = 2**20  # multiply-accumulates
_VENDORS = ("AuthenticAMD", "HygonGenuine")


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether fp32 products of the two belong here: by processor and mode, whatever their size."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    return _is_faster_here() and torch.backends.mkldnn.enabled


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether ``x`` (..., I) times ``weight`` (O, I), or a kernel of so many numbers, had better be computed here."""
    return serves(x, weight) and x.numel() // max(x.shape[-1], 1) * weight.numel() >= _LEAST


@cache
def _is_faster_here() -> bool:
    """:func:`_asked`, once."""
    return _asked()


def _asked() -> bool:
    """Whether this is a processor on which MKL does not use what it has, and oneDNN runs."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not has_both or torch.backends.cpu.get_cpu_capability() != "AVX512" or _vendor() not in _VENDORS:
        return False

    def trial() -> bool:
        from torch.utils.flop_counter import flop_registry, register_flop_formula

        one = torch.ones(2, 2)
        product(one, one)
        operator = torch.ops.mkldnn._linear_pointwise
        if operator not in flop_registry:  # who counts a model's operations shall not miss these
            register_flop_formula(operator)(_flop)
        return True

    return bool(tried(trial, "no products by oneDNN, a training step on this CPU takes about half as long again"))


def _flop(x_shape: list[int], weight_shape: list[int], *_: object, **__: object) -> int:
    return 2 * weight_shape[0] * torch.Size(x_shape).numel()


def _vendor() -> str:
    """What the processor calls its maker; empty where no /proc/cpuinfo says."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("vendor_id")), "")
    except OSError:
        return ""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.t() + bias`` without gradients: x (R, I), weight (O, I), bias (O,) -> (R, O)."""
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    """The same numbers without gaps, rows or columns innermost: of others oneDNN takes a thousand times as long."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


class _Linear(torch.autograd.Function):
    """The product, and its gradients as two more of the kind."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        grad = _dense(grad)
        return (
            product(grad, weight.t()) if of_x else None,
            product(grad.t(), x.t()) if of_weight else None,
            grad.sum(0) if ctx.bias and of_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` with gradients: x (..., I), weight (O, I), bias (O,) -> (..., O)."""
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).unflatten(0, x.shape[:-1])
