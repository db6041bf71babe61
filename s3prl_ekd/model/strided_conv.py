"""Strided convolutions as plain matrix products over a batch laid end to end.

With channels last, the samples that a stride steps over are one row of a matrix, so a convolution of kernel k and
stride s is ceil(k / s) products with slices of one and the same matrix: no window is copied, no layout is changed, and
the work runs at the speed of a matrix product. s = 2, k = 3::

    y[t] = [x[2t], x[2t + 1]] W_01 + x[2t + 2] W_2        rows of x.view(R / 2, 2C), then the same one row further on

Clips lie end to end in one such matrix, each with as many rows as its padded length; a window that reaches over the end
of its clip gives a row that nobody reads (``ConvFrontEnd`` cuts them off).
Shapes: R rows of all clips, C input and O output channels, k taps, s stride.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_ekd.model import onednn

_PIECE = 1024  # windows


def strided_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolve clips; in the rows that ``F.conv1d`` gives, the same numbers.

    Args:
        x: (B, N, C) contiguous; N a multiple of ``stride`` but where a library's own convolution computes (below).
        weight: (O, C, k), fastest where channels lie innermost in memory (:func:`channels_innermost`).
        bias: (O,) or None.
        stride: s.

    Returns:
        (B, N', O) in the dtype of ``x``; N' is N / s, or what ``F.conv1d`` gives, (N - k) // s + 1, where a library's
        own convolution computes: without gradients on a GPU, or on a CPU where oneDNN serves.
    """
    # whatever the size: the next convolution, a smaller one, gets N' rows, and the other ways need a multiple of s
    if not torch.is_grad_enabled() and (x.is_cuda or onednn.supports(x, weight)):
        return _as_image(x, weight, bias, stride)
    taps = as_matrix(weight)
    windows = x.shape[0] * x.shape[1] // stride
    way = ByWindows if onednn.is_faster(x, taps, windows * taps.numel()) else InPlace
    out = way.apply(x.flatten(0, 1), taps, bias, stride)
    return out.view(len(x), -1, len(weight))


def _as_image(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """By the library's own convolution, a 2-D one: only those read channels-last tensors.

    cuDNN's is a quarter faster than the products (H100, bf16); oneDNN's is faster than its products of windows (--bench
    kernels). With gradients cuDNN's was not tried (its odd numbers of rows do not suit the products that compute ours),
    and oneDNN's take three times as long as products.
    """
    image = x.unsqueeze(1).permute(0, 3, 1, 2)  # (B, C, 1, N), channels last in memory
    out = F.conv2d(image, weight.unsqueeze(2), bias, stride=(1, stride))
    return out.permute(0, 2, 3, 1).flatten(1, 2)


def channels_innermost(weight: Tensor) -> Tensor:
    """(O, C, k) of the same numbers, laid out in memory as (O, k, C): what :func:`strided_conv` reads in place."""
    return weight.permute(0, 2, 1).contiguous().permute(0, 2, 1)


def as_matrix(weight: Tensor) -> Tensor:
    """(O, C, k) -> (O, k C): what a window is multiplied with; no copy where channels lie innermost."""
    return weight.permute(0, 2, 1).reshape(len(weight), -1)


class InPlace(torch.autograd.Function):
    """The products and their gradients, each written into the slice where it belongs: no temporary of the size of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(x, taps)
        ctx.stride, ctx.bias = stride, bias is not None
        blocks = _blocks(x.shape[1], taps.shape[1], stride)
        rows = x.reshape(-1, stride * x.shape[1])
        (_, start, stop), *later = blocks
        first, weight = rows[:, : stop - start], taps[:, start:stop].t()
        out = first @ weight if bias is None else torch.addmm(bias, first, weight)
        for shift, start, stop in later:
            out[:-shift].addmm_(rows[shift:, : stop - start], taps[:, start:stop].t())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, taps = ctx.saved_tensors
        grad = grad.contiguous()
        rows = x.reshape(-1, ctx.stride * x.shape[1])
        blocks = _blocks(x.shape[1], taps.shape[1], ctx.stride)
        grad_x = grad_taps = grad_bias = None
        if ctx.needs_input_grad[0]:
            _, start, stop = blocks[0]
            whole = stop - start == rows.shape[1]
            grad_rows = grad @ taps[:, start:stop] if whole else torch.zeros_like(rows)
            if not whole:  # a kernel shorter than its stride leaves samples unread
                torch.mm(grad, taps[:, start:stop], out=grad_rows[:, : stop - start])
            for shift, start, stop in blocks[1:]:
                grad_rows[shift:, : stop - start].addmm_(grad[:-shift], taps[:, start:stop])
            grad_x = grad_rows.view_as(x)
        if ctx.needs_input_grad[1]:
            grad_taps = torch.empty_like(taps)
            for shift, start, stop in blocks:
                kept = len(grad) - shift
                torch.mm(grad[:kept].t(), rows[shift:, : stop - start], out=grad_taps[:, start:stop])
        if ctx.bias and ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_x, grad_taps, grad_bias, None


class ByWindows(torch.autograd.Function):
    """Products of copied windows, for oneDNN, which writes into no slice; piece by piece: copies stay in cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        of_x, of_taps, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_taps else None, taps if of_x else None)
        ctx.stride, ctx.shape, ctx.taps = stride, x.shape, taps.shape[1]
        out = x.new_empty(x.shape[0] // stride, len(taps))
        for piece, windows in _windows(x, taps.shape[1], stride):
            out[piece] = onednn.product(windows, taps, bias)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, taps = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = grad_taps = grad_bias = None
        if taps is not None:
            grad_x = _gradient_of_input(grad, taps, ctx.stride * ctx.shape[1]).view(ctx.shape)
        if x is not None:
            pieces = _windows(x, ctx.taps, ctx.stride)
            grad_taps = sum(onednn.product(grad[piece].t(), windows.t()) for piece, windows in pieces)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_x, grad_taps, grad_bias, None  # type: ignore[return-value]  # a sum of tensors is no 0


def _windows(x: Tensor, taps: int, stride: int) -> Iterator[tuple[slice, Tensor]]:
    """What windows see of x (R, C), a piece of the R / s windows at a time: which, and (n, k C), in one buffer for all.

    Zeros where a window reaches over the end.
    """
    rows = x.reshape(-1, stride * x.shape[1])
    buffer = rows.new_empty(min(_PIECE, len(rows)), taps)
    for first in range(0, len(rows), _PIECE):
        piece = slice(first, min(first + _PIECE, len(rows)))
        windows = buffer[: piece.stop - first]
        for shift, start, stop in _blocks(x.shape[1], taps, stride):
            seen = rows[first + shift : piece.stop + shift, : stop - start]
            windows[: len(seen), start:stop] = seen
            windows[len(seen) :, start:stop] = 0
        yield piece, windows


def _gradient_of_input(grad: Tensor, taps: Tensor, width: int) -> Tensor:
    """grad (R / s, O), taps (O, k C), width s C -> (R / s, s C)."""
    out = grad.new_empty(len(grad), width)
    first, *later = _blocks(width, taps.shape[1], 1)
    for begin in reversed(range(0, len(grad), _PIECE)):  # a piece adds to the first rows of the one after it
        of_windows = onednn.product(grad[begin : begin + _PIECE], taps.t())  # (n, k C)
        rows = out[begin : begin + len(of_windows)]
        rows[:, : first[2]] = of_windows[:, : first[2]]
        rows[:, first[2] :] = 0  # a kernel shorter than its stride leaves samples unread
        for shift, start, stop in later:
            rows = out[begin + shift : begin + shift + len(of_windows)]
            rows[:, : stop - start] += of_windows[: len(rows), start:stop]
    return out


def _blocks(channels: int, taps: int, stride: int) -> list[tuple[int, int, int]]:
    """(rows further on, first and last column of the weight) of each product."""
    width = stride * channels
    return [(index, start, min(start + width, taps)) for index, start in enumerate(range(0, taps, width))]
