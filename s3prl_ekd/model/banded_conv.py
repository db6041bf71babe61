"""Grouped convolutions over frames as matrix products, for GPUs.

cuDNN has no fast kernel for a positional convolution (128 taps, 16 groups of 48 channels): on an H100 it took 20 ms a
forward pass at 24 x 15.6 s in bf16, more than twelve transformer layers. P frames next to each other are one product of
the P + k - 1 frames that they see with a banded matrix, which holds the kernel P times, each a frame further down::

    y[r P + p, o] = sum over f, i of  x[r P + f, i] band[f, i, p, o]        band[f, i, p, o] = weight[o, i, f - p]

That is (P + k - 1) / k times the arithmetic, at a matrix product's speed. Windows are copied, (P + k - 1) / P times the
input, so that each group is one product whose sums stay in fp32.
Shapes: B clips, T frames, D channels in and out, G groups, C = D / G, k taps, R = ceil(T / P) blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s3prl_ekd.model.arithmetic import tf32, tf32_convolutions

FRAMES = 16
"""P. At k = 128 an eighth more arithmetic than the convolution itself."""


def make_band(weight: Tensor, groups: int) -> Tensor:
    """The banded matrices of a kernel: weight (D, C, k) -> (G, (P + k - 1) C, P C)."""
    width, channels, taps = weight.shape
    band = weight.new_zeros(groups, FRAMES + taps - 1, channels, FRAMES, width // groups)
    _diagonals(band, taps).copy_(weight.view(groups, -1, channels, taps).permute(0, 3, 2, 1).unsqueeze(3))
    return band.flatten(3).flatten(1, 2)


def banded_conv(x: Tensor, weight: Tensor, groups: int, band: Tensor | None = None) -> Tensor:
    """``F.conv1d`` with ``padding = k // 2``, no bias, cut to T frames, channels last.

    Args:
        x: (B, T, D).
        weight: (D, C, k), of the dtype of ``x``.
        band: what :func:`make_band` gives for this weight, where it is known already.

    Returns:
        (B, T, D).
    """
    return _BandedConv.apply(x, weight, groups, band)


class _BandedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: int, band: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        if band is None:
            band = make_band(weight, groups)
        return _multiply(_windows(x, weight.shape[2], weight.shape[2] // 2, groups), band, x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        groups, (width, channels, taps) = ctx.groups, weight.shape
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:  # a convolution of the gradient with the kernel turned round
            turned = weight.view(groups, -1, channels, taps).transpose(1, 2).flip(-1).reshape(width, -1, taps)
            back = _windows(grad, taps, taps - 1 - taps // 2, groups)
            grad_x = _multiply(back, make_band(turned, groups), x.shape)
        if ctx.needs_input_grad[1]:
            seen = _windows(x, taps, taps // 2, groups)
            asked = _windows(grad, 1, 0, groups)  # (G, B R, P C)
            with tf32(tf32_convolutions()):
                of_band = torch.bmm(seen.transpose(1, 2), asked)
            of_band = of_band.view(groups, FRAMES + taps - 1, channels, FRAMES, width // groups)
            summed = _diagonals(of_band, taps).sum(3, dtype=torch.promote_types(grad.dtype, torch.float32))
            grad_weight = summed.permute(0, 3, 2, 1).reshape(weight.shape).to(weight.dtype)  # summed: (G, k, C, C)
        return grad_x, grad_weight, None, None


def _windows(x: Tensor, taps: int, before: int, groups: int) -> Tensor:
    """(B, T, D) -> (G, B R, (P + k - 1) C): the frames that each block of P frames sees, zeros beyond the ends."""
    batch, frames, width = x.shape
    blocks, channels = -(-frames // FRAMES), width // groups
    length = blocks * FRAMES + taps - 1
    by_group = x.new_zeros(groups, batch, length, channels)
    by_group[:, :, before : before + frames] = x.view(batch, frames, groups, channels).permute(2, 0, 1, 3)
    span = FRAMES + taps - 1
    shape = (groups, batch, blocks, span * channels)
    strides = (batch * length * channels, length * channels, FRAMES * channels, 1)
    return by_group.as_strided(shape, strides).reshape(groups, batch * blocks, span * channels)


def _multiply(windows: Tensor, band: Tensor, shape: torch.Size) -> Tensor:
    """(G, B R, (P + k - 1) C) times the band -> (B, T, D)."""
    batch, frames, width = shape
    with tf32(tf32_convolutions()):  # as torch does with convolutions
        out = torch.bmm(windows, band).view(len(band), batch, -1, width // len(band))  # (G, B, R P, C)
    return out[:, :, :frames].permute(1, 2, 0, 3).reshape(batch, frames, width)


def _diagonals(band: Tensor, taps: int) -> Tensor:
    """View (G, k, C, P, C') of a band (G, P + k - 1, C, P, C'): tap t of output frame p lies at input frame p + t."""
    groups, span, channels, frames, out = band.shape
    by_group, by_frame, by_channel, by_output, _ = band.stride()
    shape = (groups, taps, channels, frames, out)
    return band.as_strided(shape, (by_group, by_frame, by_channel, by_frame + by_output, 1))
