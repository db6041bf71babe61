"""fp32 matrix products on a CPU by oneDNN, where MKL, which torch asks, is half as fast.

MKL keeps its AVX-512 kernels to Intel's processors. On AMD's it computes with AVX2: some 105 GFLOP/s of a core where
oneDNN, which torch brings along for convolutions and bf16, makes 225 (an EPYC with AVX-512, torch 2.11;
docs/performance.md). Small products stay with MKL, which takes less to start.
``torch.backends.mkldnn.flags(enabled=False)`` turns this off. Its gradients have none of their own (``create_graph``)
and it knows no forward-mode differentiation; traced, compiled and under ``torch.func`` a linear layer is torch's own.

Shapes: R rows, I inputs, O outputs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ekd.kernels import try_kernel

_LEAST = 2**21  # multiply-accumulates
_VENDORS = ("AuthenticAMD", "HygonGenuine")


def supports(x: Tensor, weight: Tensor) -> bool:
    """Whether products of these two belong here: by processor, type and mode, whatever their size."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False  # asked first: a graph must not contain the questions that follow
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or x.device.type != "cpu":
        return False
    if type(x) not in (Tensor, nn.Parameter) or type(weight) not in (Tensor, nn.Parameter):
        return False  # a class of its own, quantised say, brings its own products
    return bool(torch.backends.mkldnn.enabled) and not torch.is_autocast_enabled("cpu") and _runs()


def is_faster(x: Tensor, weight: Tensor, multiplications: int) -> bool:
    """Whether this module serves the two, and a product of so many multiply-accumulates is worth its start."""
    return multiplications >= _LEAST and supports(x, weight)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.t() + bias`` without gradients: x (R, I), weight (O, I), bias (O,) -> (R, O)."""
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` with gradients: x (..., I), weight (O, I), bias (O,) -> (..., O)."""
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


def _dense(matrix: Tensor) -> Tensor:
    """The same numbers without gaps, rows or columns innermost: of others oneDNN takes a thousand times as long."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


class _Linear(torch.autograd.Function):
    """The product, and its gradients as two more of the kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = _dense(grad)
        return (
            None if weight is None else product(grad, weight.t()),
            None if x is None else product(grad.t(), x.t()),
            grad.sum(0) if ctx.needs_input_grad[2] else None,
        )


def _mkl_is_slow() -> bool:
    """Whether this is a processor on which MKL does not use what it has."""
    if not torch.backends.mkl.is_available() or not torch.backends.mkldnn.is_available():
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and _vendor() in _VENDORS


def _vendor() -> str:
    """What the processor calls its maker; empty where no /proc/cpuinfo says."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("vendor_id")), "")
    except OSError:
        return ""


@cache
def _runs() -> bool:
    """Whether this is the processor for it, and the operator, which is torch.compile's own, is there as we call it."""
    if not _mkl_is_slow():
        return False
    one = torch.ones(2, 2, dtype=torch.float32, device="cpu")
    return try_kernel(lambda: product(one, one), "no products by oneDNN, fp32 on this CPU is slower") is not None


def _count_operations() -> None:
    """Tell torch's FLOP counter of the operator. When imported: each counter copies the list when it is made."""
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    def flop(x: list[int], weight: list[int], *_: object, **__: object) -> int:
        return 2 * weight[0] * torch.Size(x).numel()

    if torch.ops.mkldnn._linear_pointwise not in flop_registry:
        register_flop_formula(torch.ops.mkldnn._linear_pointwise)(flop)


if _mkl_is_slow() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _count_operations()
