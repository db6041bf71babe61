"""The two terms of the loss as one kernel forward and one backward. What they replace, and when: ``losses.py``.

Shapes: B clips, n heads of one set, T frames, W channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from s3prl_ekd.kernels import FUSED


class FusedL1AndCosine(torch.autograd.Function):
    """``mean |p - t|`` and ``cos(p, t)`` over the last dimension, with respect to p only; (B, n, T) fp32 each.

    The forward pass reads p and t once and writes two numbers a frame; the backward pass reads both once more and
    writes the gradient. Nothing of their size is kept but themselves.

    Args:
        prediction, target: (B, n, T, W) of fp32, fp16 or bf16, W innermost, other strides as they come.
        eps: shortest length of a frame in its cosine.
    """

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(prediction, target)
        ctx.eps = eps
        l1, cosine = (prediction.new_empty(prediction.shape[:3], dtype=torch.float32) for _ in range(2))
        _launch(_terms, prediction, target, l1, cosine, eps)
        return l1, cosine

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_l1: Tensor, grad_cosine: Tensor) -> tuple[Tensor | None, ...]:
        prediction, target = ctx.saved_tensors
        grad = torch.empty_like(prediction)
        _launch(_gradient, prediction, target, grad_l1.contiguous(), grad_cosine.contiguous(), ctx.eps, grad)
        return grad, None, None


def _launch(
    kernel: Any, prediction: Tensor, target: Tensor, of_l1: Tensor, of_cosine: Tensor, eps: float,
    grad: Tensor | None = None,
) -> None:  # fmt: skip
    """One program a frame; ``of_l1``, ``of_cosine`` (B, n, T) contiguous; ``grad`` (B, n, T, W) is what is written."""
    _, heads, frames, width = prediction.shape
    assert prediction.stride(3) == target.stride(3) == 1
    block = triton.next_power_of_2(width)
    warps = min(8, max(1, block // 1024))  # one for a Base model: its sums then need no barrier
    written = () if grad is None else (grad, *grad.stride()[:3])
    with torch.cuda.device_of(prediction):
        kernel[(of_l1.numel(),)](
            prediction, target, of_l1, of_cosine, *written, *prediction.stride()[:3], *target.stride()[:3],
            heads, frames, width, eps, BLOCK=block, num_warps=warps, **FUSED,
        )  # fmt: skip


@triton.jit
def _read(P, T, clip, head, frame, p_clip, p_head, p_frame, t_clip, t_head, t_frame, width, eps, BLOCK: tl.constexpr):
    """A frame's prediction and target, their lengths and their cosine."""
    column = tl.arange(0, BLOCK)
    inside = column < width
    p = tl.load(P + clip * p_clip + head * p_head + frame * p_frame + column, mask=inside, other=0.0).to(tl.float32)
    t = tl.load(T + clip * t_clip + head * t_head + frame * t_frame + column, mask=inside, other=0.0).to(tl.float32)
    p_length = tl.maximum(tl.sqrt(tl.sum(p * p, 0)), eps)
    t_length = tl.maximum(tl.sqrt(tl.sum(t * t, 0)), eps)
    return p, t, p_length, t_length, tl.sum(p * t, 0) / (p_length * t_length)


@triton.jit(do_not_specialize=["frames"])  # every clip length would have kernels of its own, compiled in training
def _terms(
    P, T, L1, COSINE, p_clip, p_head, p_frame, t_clip, t_head, t_frame, heads, frames, width, eps, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    frame, head, clip = row % frames, row // frames % heads, row // frames // heads
    p, t, _, _, cosine = _read(
        P, T, clip, head, frame, p_clip, p_head, p_frame, t_clip, t_head, t_frame, width, eps, BLOCK
    )
    tl.store(L1 + row, tl.sum(tl.abs(p - t), 0) / width)
    tl.store(COSINE + row, cosine)


@triton.jit(do_not_specialize=["frames"])
def _gradient(
    P, T, OF_L1, OF_COSINE, GRAD, g_clip, g_head, g_frame, p_clip, p_head, p_frame, t_clip, t_head, t_frame,
    heads, frames, width, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    frame, head, clip = row % frames, row // frames % heads, row // frames // heads
    p, t, p_length, t_length, cosine = _read(
        P, T, clip, head, frame, p_clip, p_head, p_frame, t_clip, t_head, t_frame, width, eps, BLOCK
    )
    of_l1, of_cosine = tl.load(OF_L1 + row) / width, tl.load(OF_COSINE + row) / p_length
    sign = tl.where(p > t, 1.0, tl.where(p < t, -1.0, p - t))  # 0 where equal, NaN where either is
    grad = sign * of_l1 + of_cosine * (t / t_length - cosine * p / p_length)
    column = tl.arange(0, BLOCK)
    place = clip * g_clip + head * g_head + frame * g_frame + column
    tl.store(GRAD + place, grad, mask=column < width)
