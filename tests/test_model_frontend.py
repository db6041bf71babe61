"""The conv front end as matrix products equals the convolutions and norms that it stands for, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from convolutions import by_convolutions
from torch import Tensor

from s3prl_ekd.model import onednn
from s3prl_ekd.model.frontend import ConvFrontEnd
from s3prl_ekd.model.strided_conv import as_matrix, channels_innermost, strided_conv
from s3prl_ekd.shape import EncoderShape

NARROW = ((16, 10, 5), *((16, 3, 2),) * 4, *((16, 2, 2),) * 2)


def make(conv_norm: str = "group", bias: bool = False, layers: tuple = NARROW) -> ConvFrontEnd:
    frontend = ConvFrontEnd(EncoderShape(conv_layers=layers, conv_norm=conv_norm, conv_bias=bias))
    with torch.no_grad():
        for parameter in frontend.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return frontend


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).norm() / theirs.norm()).detach())


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (5, 2), (2, 3), (7, 3), (1, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_strided_conv_equals_conv1d(kernel: int, stride: int, bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, stride * 20, 6, dtype=torch.float64, requires_grad=True)
    weight = channels_innermost(torch.randn(5, 6, kernel, dtype=torch.float64)).requires_grad_()
    offset = torch.randn(5, dtype=torch.float64, requires_grad=True) if bias else None
    # a window at the end of the first clip reaches over into the second; one at the very end sees zeros
    padded = F.pad(x.flatten(0, 1).t().unsqueeze(0), (0, max(kernel - stride, 0)))
    expected = F.conv1d(padded, weight, offset, stride).squeeze(0).t().unflatten(0, (2, -1))
    ours = strided_conv(x, weight, offset, stride)
    assert torch.allclose(ours, expected, rtol=1e-12, atol=1e-12)
    inputs = [tensor for tensor in (x, weight, offset) if tensor is not None]
    seed = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, seed), torch.autograd.grad(expected, inputs, seed), strict=True
    ):
        assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("samples", [400, 401, 719, 720, 3_200, 16_123])
@pytest.mark.parametrize(("conv_norm", "bias"), [("group", False), ("group", True), ("layer", False), ("layer", True)])
def test_features_and_gradients_equal_the_convolutions(conv_norm: str, bias: bool, samples: int) -> None:
    torch.manual_seed(samples)
    frontend = make(conv_norm, bias)
    wave = 0.1 * torch.randn(3, samples) + torch.tensor([[0.0], [0.3], [-1.0]])  # with an offset, as cheap microphones
    ours, theirs = frontend(wave), by_convolutions(frontend, wave)
    assert ours.shape == theirs.shape == (3, frontend.shape.frames(samples), 16)
    assert relative(ours, theirs) < 1e-5
    seed = torch.randn_like(theirs)
    parameters = dict(frontend.named_parameters())
    mine = torch.autograd.grad(ours, list(parameters.values()), seed, allow_unused=True)
    published = torch.autograd.grad(theirs, list(parameters.values()), seed)
    for name, a, b in zip(parameters, mine, published, strict=True):
        if conv_norm == "group" and name == "convs.0.bias":
            assert a is None and b.norm() < 1e-3 * seed.norm()  # the norm takes the bias away again
        else:
            assert relative(a, b) < 1e-4, name
    # of the waveform too: a student may be somebody's perceptual loss
    leaf = wave.clone().requires_grad_()
    (of_wave,) = torch.autograd.grad(frontend(leaf), leaf, seed)
    (published,) = torch.autograd.grad(by_convolutions(frontend, leaf), leaf, seed)
    assert relative(of_wave, published) < 1e-3


def test_the_first_window_of_silence_and_of_one_frame() -> None:
    frontend = make()
    silence = torch.zeros(2, 3_200)
    assert relative(frontend(silence), by_convolutions(frontend, silence)) < 1e-5
    for conv in frontend.convs[1:]:  # no pass copies it
        assert as_matrix(conv.weight).data_ptr() == conv.weight.data_ptr()
    with pytest.raises(ValueError, match="399 samples give no frame; 400 do"):
        frontend(torch.zeros(1, 399))


def test_unusual_kernels_and_strides() -> None:
    frontend = make(layers=((8, 7, 4), (8, 5, 2), (8, 2, 3)))
    wave = torch.randn(2, 1_000)
    assert relative(frontend(wave), by_convolutions(frontend, wave)) < 1e-5


@pytest.mark.parametrize("conv_norm", ["group", "layer"])
@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_stays_close(conv_norm: str, autocast: bool) -> None:
    frontend = make(conv_norm)
    wave = 0.1 * torch.randn(2, 8_000)
    exact = frontend(wave)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            half = frontend(wave)
    else:
        half = frontend.bfloat16()(wave)
    assert half.dtype == torch.bfloat16
    assert F.cosine_similarity(half.float(), exact, dim=-1).min() > 0.999


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (7, 3)])
def test_the_form_for_libraries_is_the_same_convolution(
    kernel: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "supports", lambda x, weight: True)
    torch.manual_seed(0)
    x, weight, offset = torch.randn(2, 31, 6), channels_innermost(torch.randn(5, 6, kernel)), torch.randn(5)
    expected = F.conv1d(x.transpose(1, 2), weight, offset, stride).transpose(1, 2)
    with torch.no_grad():
        found = strided_conv(x, weight, offset, stride)
    assert torch.allclose(found, expected, atol=1e-5)
