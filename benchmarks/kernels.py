"""Each kernel beside the operators that it replaces, at the full-size step's shapes or the tiny ones.

Fused kernels on a GPU, oneDNN's products on a CPU that MKL is slow on. Where none is used there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import common
from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.distill.losses import Terms, fused_terms, l1_and_cosine
from s3prl_ekd.model import arithmetic, onednn
from s3prl_ekd.model.attention import DistanceBias, SelfAttention
from s3prl_ekd.model.linear import linear_gelu
from s3prl_ekd.model.strided_conv import ByWindows, InPlace, as_matrix, channels_innermost, strided_conv
from s3prl_ekd.shape import EncoderShape

CALLS = 20  # at a time: what one call takes to start is hidden behind those before it

Pair = tuple[Callable[[], Tensor], Callable[[], Tensor], Tensor]
"""The kernel, what it replaces, and the exact result in float64."""


@torch.no_grad()
def run(options: Any) -> dict[str, Any]:
    """Milliseconds of both, their ratio, and the relative error of each; ``options.precision`` of the teachers."""
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    shape = common.SIZES[options.size]
    frames = shape.frames(int(options.clip_seconds * SAMPLE_RATE))
    values: dict[str, Any] = {"precision": options.precision, "size": options.size, "batch": options.batch}
    if arithmetic.fused_kernels(torch.ones(1, device=options.device)) is not None:
        kernels = [residual_norm, loss]
        if dtype != torch.float32:  # in which the other two are plain operators
            kernels += [gated_attention, feed_forward_gelu]
    elif onednn.supports(*(torch.empty(0, dtype=dtype, device=options.device) for _ in range(2))):
        kernels = [product, convolution_by_windows, convolution_as_image]
    else:
        return {"skipped": f"no kernels of ours on {options.device} in {options.precision}"}
    for make in kernels:
        torch.manual_seed(0)
        fused, plain, exact = make(shape, options.batch, frames, dtype, options.device)
        errors = [_relative(out(), exact) for out in (fused, plain)]
        result = common.interleaved(_many(fused), _many(plain), options.device, options.pairs)
        values[make.__name__] = {
            "ours_ms": 1e3 * result["first_s"] / CALLS,
            "plain_ms": 1e3 * result["second_s"] / CALLS,
            "ratio": result["ratio"],
            "ours_error": errors[0],
            "plain_error": errors[1],
        }
    return values


def gated_attention(shape: EncoderShape, batch: int, frames: int, dtype: torch.dtype, device: str) -> Pair:
    """WavLM's attention without its projections; of the exact one, the first clip (the others are like it)."""
    heads, width = shape.heads, shape.width // shape.heads
    qkv = torch.randn(batch, frames, 3 * shape.width, device=device, dtype=dtype)
    query, key, value = (part.view(batch, frames, heads, width).transpose(1, 2) for part in qkv.chunk(3, -1))
    gate = 1 + torch.rand(batch, frames, heads, device=device).to(dtype).transpose(1, 2)
    bias = DistanceBias(torch.randn(heads, 2 * frames - 1, device=device).to(dtype))
    matrix = bias.matrix[..., :frames].double()
    added = gate[0].double().unsqueeze(-1) * matrix
    weights = (query[0].double() @ key[0].double().transpose(1, 2) / width**0.5 + added).softmax(-1)
    exact = (weights @ value[0].double()).transpose(0, 1).reshape(1, frames, shape.width)
    kernel = arithmetic.gated_attention_kernel(query)
    assert kernel is not None

    def plain() -> Tensor:
        mask = SelfAttention._gated_bias(gate, bias, None)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out.transpose(1, 2).reshape(batch, frames, shape.width)

    return (lambda: kernel(query, key, value, gate, bias.by_distance)), plain, exact


def feed_forward_gelu(shape: EncoderShape, batch: int, frames: int, dtype: torch.dtype, device: str) -> Pair:
    """The first product of a feed-forward block with its GELU."""
    linear = nn.Linear(shape.width, shape.ffn_width).to(device, dtype)
    x = torch.randn(batch, frames, shape.width, device=device, dtype=dtype)
    exact = F.gelu(F.linear(x[:1].double(), linear.weight.double(), linear.bias.double()))
    return (lambda: linear_gelu(linear, x)), (lambda: arithmetic.gelu(linear(x))), exact


def product(shape: EncoderShape, batch: int, frames: int, dtype: torch.dtype, device: str) -> Pair:
    """The first product of a feed-forward block, by oneDNN and by what torch chooses."""
    weight, x = torch.randn(shape.ffn_width, shape.width), torch.randn(batch * frames, shape.width)
    return (lambda: onednn.linear(x, weight)), (lambda: F.linear(x, weight)), x[:1].double() @ weight.double().t()


def convolution_by_windows(shape: EncoderShape, batch: int, frames: int, dtype: torch.dtype, device: str) -> Pair:
    """The last convolution of three taps, as in training: products of copied windows, and products by MKL in place."""
    x, weight, exact = _convolution(shape, batch, frames)
    taps, clips = as_matrix(weight), x.flatten(0, 1)

    def by(way: type[torch.autograd.Function]) -> Callable[[], Tensor]:
        return lambda: way.apply(clips, taps, None, 2).view(batch, -1, len(weight))[:, : exact.shape[1]]

    return by(ByWindows), by(InPlace), exact


def convolution_as_image(shape: EncoderShape, batch: int, frames: int, dtype: torch.dtype, device: str) -> Pair:
    """The same in a frozen encoder: oneDNN's own convolution, and its products of copied windows."""
    x, weight, exact = _convolution(shape, batch, frames)
    by_windows, *_ = convolution_by_windows(shape, batch, frames, dtype, device)
    return (lambda: strided_conv(x, weight, None, 2)[:, : exact.shape[1]]), by_windows, exact


def _convolution(shape: EncoderShape, batch: int, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Input (B, N, C), weight, and the exact output without the row whose window sees the next clip."""
    torch.manual_seed(0)
    channels = shape.conv_layers[4][0]
    x, weight = torch.randn(batch, 8 * frames, channels), channels_innermost(torch.randn(channels, channels, 3))
    return x, weight, F.conv1d(x[:1].transpose(1, 2).double(), weight.double(), stride=2).transpose(1, 2)


def residual_norm(shape: EncoderShape, batch: int, frames: int, dtype: torch.dtype, device: str) -> Pair:
    """LayerNorm of a sum."""
    norm = nn.LayerNorm(shape.width).to(device, dtype)
    x, y = torch.randn(2, batch, frames, shape.width, device=device, dtype=dtype).unbind()
    exact = F.layer_norm(x[:1].double() + y[:1].double(), (shape.width,), norm.weight.double(), norm.bias.double())
    return (lambda: arithmetic.add_layer_norm(norm, x, y)), (lambda: arithmetic.layer_norm_fp32(norm, x + y)), exact


def loss(shape: EncoderShape, batch: int, frames: int, dtype: torch.dtype, device: str) -> Pair:
    """Both terms of one teacher's three heads and their gradient."""
    prediction = torch.randn(3, batch, frames, shape.width, device=device, dtype=dtype).transpose(0, 1)
    target = torch.randn(batch, 3, frames, shape.width, device=device, dtype=dtype)
    weights = torch.randn(2, batch, 3, frames, device=device)
    fused = fused_terms(prediction, target)
    assert fused is not None

    @torch.enable_grad()
    def gradient(terms: Terms, clips: int = batch, kind: torch.dtype = dtype) -> Tensor:
        leaf = prediction[:clips].detach().to(kind).requires_grad_()
        l1, cosine = terms(leaf, target[:clips].to(kind), 1e-8)
        (found,) = torch.autograd.grad((l1, cosine), leaf, tuple(weights[:, :clips].to(l1.dtype)))
        return found

    exact = gradient(l1_and_cosine, 1, torch.float64)
    return (lambda: gradient(fused)), (lambda: gradient(l1_and_cosine)), exact


def _many(work: Callable[[], Tensor]) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(CALLS):
            work()

    return calls


def _relative(ours: Tensor, exact: Tensor) -> float:
    """Relative error (L2) of the first clip."""
    return float((ours[:1].double() - exact).norm() / exact.norm())
