"""Fused kernels for frozen encoders on a GPU: forward only. What they replace, and when: ``arithmetic.py``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s3prl_ekd.kernels import FUSED


def add_layer_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of ``x + y`` over the last dimension; the sum and the norm in fp32, rounded once.

    Two reads and one write where torch's operators take three and two, the norm at a third of the memory's speed.

    Args:
        x, y: (..., D) of one dtype.
        weight, bias: (D,).
    """
    x, y = x.contiguous(), y.contiguous()
    width = x.shape[-1]
    out = torch.empty_like(x)
    block = triton.next_power_of_2(width)
    warps = 4 if block <= 2048 else 8
    with torch.cuda.device_of(x):
        _add_layer_norm[(x.numel() // width,)](
            x, y, weight, bias, out, width, eps, BLOCK=block, num_warps=warps, **FUSED
        )  # fmt: skip
    return out


@triton.jit
def _add_layer_norm(X, Y, WEIGHT, BIAS, OUT, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(X + row + column, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(Y + row + column, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    weight = tl.load(WEIGHT + column, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(BIAS + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(OUT + row + column, centred * scale * weight + bias, mask=inside)


def first_conv_gelu(wave: Tensor, mean: Tensor, matrix: Tensor, shift: Tensor, frames: int, stride: int) -> Tensor:
    """``gelu((window - mean) matrix + shift)`` of a clip's every window, written once: the largest tensor of a model.

    Args:
        wave: (B, N) fp32.
        mean: (B, k) fp32, of the windows.
        matrix: (B, k, C) of any dtype, each clip's own; k at most 16.
        shift: (B, C) fp32.
        frames: windows a clip; the last one may reach over the clip's end, where zeros are read.

    Returns:
        (B, frames, C) of the matrix's dtype.
    """
    batch, kernel, channels = matrix.shape
    out = matrix.new_empty(batch, frames, channels)
    rows, columns = 64, min(128, triton.next_power_of_2(channels))
    grid = (triton.cdiv(frames, rows), triton.cdiv(channels, columns), batch)
    with torch.cuda.device_of(wave):
        _first_conv_gelu[grid](
            wave.contiguous(), mean, matrix.contiguous(), shift, out, wave.shape[1], frames, channels, kernel, stride,
            ROWS=rows, COLUMNS=columns, PRECISION="ieee" if matrix.dtype == torch.float32 else "tf32", num_warps=8,
            **FUSED,
        )  # fmt: skip
    return out


@triton.jit
def _first_conv_gelu(
    WAVE, MEAN, MATRIX, SHIFT, OUT, samples, frames, channels, kernel, stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    clip = tl.program_id(2).to(tl.int64)
    frame = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tap = tl.arange(0, 16)
    mean = tl.load(MEAN + clip * kernel + tap, mask=tap < kernel, other=0.0)
    sample = frame[:, None] * stride + tap[None, :]
    window = tl.load(WAVE + clip * samples + sample, mask=(tap < kernel)[None, :] & (sample < samples), other=0.0)
    centred = tl.where((tap < kernel)[None, :], window - mean[None, :], 0.0)
    inside = channel < channels
    matrix = tl.load(
        MATRIX + (clip * kernel + tap[:, None]) * channels + channel[None, :],
        mask=(tap < kernel)[:, None] & inside[None, :],
        other=0.0,
    )
    shift = tl.load(SHIFT + clip * channels + channel, mask=inside, other=0.0)
    x = tl.dot(centred.to(MATRIX.dtype.element_ty), matrix, input_precision=PRECISION) + shift[None, :]
    x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    place = (clip * frames + frame)[:, None] * channels + channel[None, :]
    tl.store(OUT + place, x, mask=(frame < frames)[:, None] & inside[None, :])
