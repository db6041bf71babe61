"""The fused kernels compute what they replace: here by Triton's interpreter, on a GPU as they are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_ekd.model import arithmetic
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.model.shape import HUBERT_BASE

# the interpreter multiplies bf16 wrongly, so that type is left to the GPU
TYPES = {"cpu": (torch.float32, torch.float16), "cuda": (torch.float32, torch.float16, torch.bfloat16)}
CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


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
            ours = triton_kernels.first_conv_gelu(wave, mean, matrix, shift, 150, stride, dtype)
            windows = F.pad(wave, (0, max(kernel - stride, 0))).unfold(1, kernel, stride)
            centred = (windows - mean.unsqueeze(1)).to(dtype).double()
            theirs = F.gelu(centred @ matrix.double() + shift.double().unsqueeze(1))
            assert ours.dtype == dtype and relative(ours, theirs) < CLOSE[dtype], (dtype, channels)


def test_kernels_by_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.path.dirname(__file__)}
    words = [sys.executable, "-c", "import test_model_fused; test_model_fused.check('cpu')"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_not_on_a_cpu() -> None:
    with torch.no_grad():
        assert arithmetic.fused_kernels(torch.ones(1)) is None


@pytest.mark.gpu
def test_kernels_on_the_gpu() -> None:
    check("cuda")


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
        bias = encoder.relative_bias(frames)
        mask = encoder.layers[0].attention._gated_bias(torch.randn(2, frames, 768).bfloat16(), bias, None)
    assert mask.shape == (2, 12, frames, frames)
    assert mask.stride(-1) == 1 and all(stride % 8 == 0 for stride in mask.stride()[:-1])
