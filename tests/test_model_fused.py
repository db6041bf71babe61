"""The fused kernels compute what they replace: here by Triton's interpreter, on a GPU as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_ekd.distill.losses import fused_terms, head_losses, l1_and_cosine
from s3prl_ekd.model import arithmetic
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.model.linear import linear_gelu
from s3prl_ekd.shape import HUBERT_BASE

# the interpreter multiplies bf16 wrongly, so that type is left to the GPU
TYPES = {"cpu": (torch.float32, torch.float16), "cuda": (torch.float32, torch.float16, torch.bfloat16)}
CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.detach().double() - theirs.detach().double()).norm() / theirs.detach().double().norm())


def check(device: str) -> None:
    from s3prl_ekd.model import triton_kernels

    torch.manual_seed(0)
    for dtype in TYPES[device]:
        for width in (96, 100, 768):
            x, y = torch.randn(2, 3, 5, width, device=device).to(dtype).unbind()
            weight, bias = torch.randn(2, width, device=device).to(dtype)
            ours = triton_kernels.add_layer_norm(x, y, weight, bias, 1e-5)
            theirs = F.layer_norm(x.double() + y.double(), (width,), weight.double(), bias.double(), 1e-5)
            assert ours.dtype == dtype and relative(ours, theirs) < CLOSE[dtype], (dtype, width)
        for channels, kernel, stride in ((48, 10, 5), (512, 10, 5), (16, 7, 4), (20, 3, 1)):
            wave = torch.randn(2, stride * 150, device=device)
            mean, shift = 0.1 * torch.randn(2, kernel, device=device), torch.randn(2, channels, device=device)
            matrix = (torch.randn(2, kernel, channels, device=device) / 3).to(dtype)
            ours = triton_kernels.first_conv_gelu(wave, mean, matrix, shift, 150, stride)
            windows = F.pad(wave, (0, max(kernel - stride, 0))).unfold(1, kernel, stride)
            centred = (windows - mean.unsqueeze(1)).to(dtype).double()
            theirs = F.gelu(centred @ matrix.double() + shift.double().unsqueeze(1))
            assert ours.dtype == dtype and relative(ours, theirs) < CLOSE[dtype], (dtype, channels)
        check_attention(device, dtype)
        check_losses(device, dtype)


def check_losses(device: str, dtype: torch.dtype) -> None:
    """Predictions laid out as heads give them, targets otherwise; a frame of zeros, one equal to its target."""
    from s3prl_ekd.distill.triton_losses import FusedL1AndCosine

    for width, target_dtype in ((24, dtype), (100, torch.float32)):
        prediction = torch.randn(3, 2, 5, width, device=device).to(dtype).transpose(0, 1)
        target = torch.randn(2, 5, 3, width, device=device).to(target_dtype).transpose(1, 2)
        prediction[0, 0, 0] = 0
        target[1, 1, 1] = prediction[1, 1, 1]
        weights = torch.randn(2, 2, 3, 5, device=device)
        weights[:, 0, 0, 0] *= 1e-8  # a frame of length 0 has a gradient as large as one over its shortest length
        results = []
        for terms, kind in ((FusedL1AndCosine.apply, dtype), (l1_and_cosine, torch.float64)):
            leaf = prediction.detach().to(kind).requires_grad_()
            found = terms(leaf, target.to(kind) if kind == torch.float64 else target, 1e-8)
            (found[0] * weights[0] + found[1] * weights[1]).sum().backward()
            results.append((*found, leaf.grad))
        for ours, theirs in zip(*results, strict=True):
            assert ours.shape == theirs.shape and relative(ours, theirs) < CLOSE[dtype], (dtype, width)
        assert results[0][0].dtype == torch.float32 and results[0][2].stride() == prediction.stride()


def check_attention(device: str, dtype: torch.dtype) -> None:
    """Lengths of one tile and several, whole and not; widths that are powers of two and not; both as models have."""
    from s3prl_ekd.model.triton_attention import gated_attention

    for frames, width, tile in (
        (1, 12, {}), (17, 16, {"rows": 16, "columns": 16}), (65, 48, {"rows": 32, "columns": 16}),
        (64, 64, {"rows": 16, "columns": 32}), (149, 64, {}), (70, 128, {}),
    ):  # fmt: skip
        qkv = torch.randn(2, frames, 3, 2, width, device=device).to(dtype)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, d), B and H both 2
        gate = (1 + torch.rand(2, frames, 2, device=device)).to(dtype).transpose(1, 2)
        by_distance = torch.randn(2, 2 * frames - 1, device=device)
        ours = gated_attention(query, key, value, gate, by_distance, **tile)
        place = torch.arange(frames, device=device)
        bias = gate.double().unsqueeze(-1) * by_distance.double()[:, frames - 1 + place - place.unsqueeze(1)]
        theirs = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), attn_mask=bias)
        theirs = theirs.transpose(1, 2).reshape(2, frames, 2 * width)
        assert ours.dtype == dtype and ours.shape == theirs.shape and ours.is_contiguous()
        assert relative(ours, theirs) < CLOSE[dtype], (dtype, frames, width, tile)


def check_by_the_interpreter() -> None:
    """:func:`check` with Triton 3.6's interpreter mended: it makes ints of arrays as NumPy 2.4 no longer lets it."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def mended(tensor: type, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = mended
    check("cpu")
    check_trials("cpu")
    check_an_encoder()


def check_trials(device: str) -> None:
    """Kernels are tried on the GPU of the numbers that they are for: another one may be full."""
    from s3prl_ekd.distill import losses

    assert arithmetic._triton_kernels(torch.device(device)) is not None
    assert losses._fused_terms(torch.device(device)) is not None


def check_an_encoder() -> None:
    """WavLM with its attention in the kernel, which is not chosen on a CPU; padded clips keep the plain operators."""
    from s3prl_ekd.model import attention
    from s3prl_ekd.model.triton_attention import gated_attention

    torch.manual_seed(0)
    encoder = Encoder(HUBERT_BASE.with_(layers=2, width=96, heads=4, attention="gated_relative")).eval()
    wave, lengths = 0.1 * torch.randn(2, 12_000), torch.tensor([12_000, 8_000])
    calls: list[Tensor] = []
    with torch.no_grad():
        plain, padded = encoder(wave), encoder(wave, lengths)
        attention.gated_attention_kernel = lambda query: calls.append(query) or gated_attention
        fused = encoder(wave)
        assert len(calls) == 2
        assert torch.equal(padded.states[2], encoder(wave, lengths).states[2]) and len(calls) == 2
    assert relative(fused.states[2], plain.states[2]) < 1e-5


def test_kernels_by_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.path.dirname(__file__)}
    words = [sys.executable, "-c", "import test_model_fused; test_model_fused.check_by_the_interpreter()"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", CLOSE)
def test_gelu_of_a_product(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 96).to(device, dtype)
    x = torch.randn(2, 7, 64, device=device).to(dtype)
    exact = F.gelu(F.linear(x.double(), linear.weight.double(), linear.bias.double()))
    with torch.no_grad():
        ours = linear_gelu(linear, x)
    assert ours.dtype == dtype and ours.shape == exact.shape
    assert relative(ours, exact) < CLOSE[dtype]
    x.requires_grad_()
    torch.testing.assert_close(linear_gelu(linear, x), F.gelu(linear(x)), rtol=0, atol=0)


def test_not_on_a_cpu() -> None:
    with torch.no_grad():
        assert arithmetic.fused_kernels(torch.ones(1)) is None
    assert fused_terms(*torch.ones(2, 1, 1, 1, 16)) is None


@pytest.mark.gpu
def test_kernels_on_the_gpu() -> None:
    check("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", CLOSE)
def test_the_loss_on_the_gpu_is_the_one_on_the_cpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 4, 3, 150, 768).to(dtype)
    assert fused_terms(prediction.cuda(), target.cuda()) is not None
    assert fused_terms(prediction.cuda().double(), target.cuda()) is None
    results = []
    for device in ("cuda", "cpu"):
        leaf = prediction.to(device).requires_grad_()
        losses = head_losses(leaf, target.to(device))
        losses.total(1.0).sum().backward()
        results.append((losses.l1.cpu(), losses.cosine.cpu(), leaf.grad.cpu()))
    for ours, theirs in zip(*results, strict=True):
        assert relative(ours, theirs) < CLOSE[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"attention": "gated_relative"}, {"conv_norm": "layer", "pre_norm": True}])
def test_an_encoder_without_gradients_equals_one_with(dtype: torch.dtype, changes: dict[str, object]) -> None:
    """Without: cuDNN, fused kernels, the kept band. With: products, plain operators."""
    torch.manual_seed(0)
    encoder = Encoder(HUBERT_BASE.with_(layers=3, **changes)).eval().to("cuda", dtype)
    wave = (0.1 * torch.randn(2, 50_123, device="cuda")).to(dtype)
    plain = encoder(wave)
    with torch.no_grad():
        assert arithmetic.fused_kernels(wave) is not None
        assert (arithmetic.gated_attention_kernel(wave.new_ones(1, 12, 9, 64)) is None) == (dtype == torch.float32)
        fast = encoder(wave)
    for layer, state in plain.states.items():
        cosine = torch.cosine_similarity(state.float(), fast.states[layer].float(), dim=-1)
        assert cosine.min() > (0.9999 if dtype == torch.float32 else 0.999), layer


@pytest.mark.parametrize("frames", [9, 50, 779, 784])
def test_the_layout_of_wavlms_mask(frames: int) -> None:
    """Keys innermost, rows a multiple of 8 apart: any other layout costs a GPU its attention kernels."""
    encoder = Encoder(HUBERT_BASE.with_(layers=1, attention="gated_relative")).eval().bfloat16()
    assert encoder.relative_bias is not None
    with torch.no_grad():
        attention, bias = encoder.layers[0].attention, encoder.relative_bias(frames)
        mask = attention._gated_bias(
            attention._gate(attention.gate, torch.randn(2, frames, 768).bfloat16()), bias, None
        )
    assert mask.shape == (2, 12, frames, frames)
    assert mask.stride(-1) == 1 and all(stride % 8 == 0 for stride in mask.stride()[:-1])
