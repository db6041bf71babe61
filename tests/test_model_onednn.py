"""Products by oneDNN equal those that torch chooses, gradients included, on whatever processor this is."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from convolutions import by_convolutions
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from s3prl_ekd.config import StudentConfig
from s3prl_ekd.distill.targets import TeacherLayers, plan_targets
from s3prl_ekd.model import onednn
from s3prl_ekd.model.frontend import ConvFrontEnd
from s3prl_ekd.model.linear import Linear
from s3prl_ekd.model.shape import EncoderShape
from s3prl_ekd.model.strided_conv import ByWindows, channels_innermost, strided_conv
from s3prl_ekd.model.student import Student

NARROW = {"width": 32, "heads": 2, "ffn_width": 64, "conv_layers": [[16, 10, 5], *[[16, 3, 2]] * 4, *[[16, 2, 2]] * 2]}


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN for every product, on every processor."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(onednn, "_is_faster_here", lambda: True)
    monkeypatch.setattr(onednn, "_LEAST", 0)


def close(ours: Tensor, exact: Tensor) -> bool:
    return ours.shape == exact.shape and float((ours.detach() - exact.detach()).norm() / exact.detach().norm()) < 1e-6


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", ["dense", "columns", "transposed", "expanded"])
def test_linear_and_its_gradients(anywhere: None, layout: str, bias: bool) -> None:
    torch.manual_seed(0)
    x = {
        "dense": lambda: torch.randn(2, 7, 24),
        "columns": lambda: torch.randn(2, 7, 60)[..., 30:54],
        "transposed": lambda: torch.randn(2, 24, 7).transpose(1, 2),
        "expanded": lambda: torch.randn(1, 1, 24).expand(2, 7, 24),
    }[layout]().requires_grad_()
    linear = Linear(24, 10, bias=bias)
    assert onednn.is_faster(x, linear.weight)
    inputs = [x, *linear.parameters()]
    exact = F.linear(*(tensor.double() for tensor in inputs))
    seed = torch.randn(2, 10, 7).transpose(1, 2)  # as a loss over another layout would send it back
    ours = linear(x)
    assert ours.is_contiguous() and close(ours, exact)
    found = torch.autograd.grad(ours, inputs, seed)
    for mine, theirs in zip(found, torch.autograd.grad(exact, inputs, seed.double()), strict=True):
        assert close(mine, theirs)


def test_matrices_with_gaps_are_copied() -> None:
    matrix = torch.randn(8, 12)
    for dense in (matrix, matrix.t(), matrix[2:4], matrix[:, :12]):
        assert onednn._dense(dense) is dense
    for gaps in (matrix[:, :6], matrix[:, :6].t(), matrix[::2], torch.ones(1, 1).expand(4, 4)):
        copied = onednn._dense(gaps)
        assert copied.is_contiguous() and torch.equal(copied, gaps)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (5, 2), (2, 3), (7, 3), (1, 1)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("piece", [1, 7, 1024])
def test_strided_conv_equals_conv1d(
    anywhere: None, monkeypatch: pytest.MonkeyPatch, piece: int, kernel: int, stride: int, bias: bool
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("s3prl_ekd.model.strided_conv._PIECE", piece)
    x = torch.randn(2, stride * 20, 6, requires_grad=True)
    weight = channels_innermost(torch.randn(5, 6, kernel)).requires_grad_()
    inputs = [x, weight] + ([torch.randn(5, requires_grad=True)] if bias else [])
    exact_x, *others = (tensor.double() for tensor in inputs)
    padded = F.pad(exact_x.flatten(0, 1).t().unsqueeze(0), (0, max(kernel - stride, 0)))
    exact = F.conv1d(padded, *others, stride=stride).squeeze(0).t().unflatten(0, (2, -1))
    ours = strided_conv(x, weight, inputs[2] if bias else None, stride)
    assert type(ours.grad_fn.next_functions[0][0]).__name__.startswith(ByWindows.__name__)
    assert close(ours, exact)
    seed = torch.randn_like(ours)
    found = torch.autograd.grad(ours, inputs, seed)
    for mine, theirs in zip(found, torch.autograd.grad(exact, inputs, seed.double()), strict=True):
        assert close(mine, theirs)


@pytest.mark.parametrize("least", [0, 2**16])
@pytest.mark.parametrize("conv_norm", ["group", "layer"])
def test_front_end_without_gradients(
    anywhere: None, monkeypatch: pytest.MonkeyPatch, conv_norm: str, least: int
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(onednn, "_LEAST", least)  # by its size a late convolution would go to the other library
    layers = [[16, 10, 5], *[[16, 3, 2]] * 4, *[[16, 2, 2]] * 2]
    frontend = ConvFrontEnd(EncoderShape(conv_layers=layers, conv_norm=conv_norm))
    wave = 0.1 * torch.randn(3, 9_137)
    with torch.no_grad():
        assert float((frontend(wave) - by_convolutions(frontend, wave)).norm()) < 1e-4


def student() -> Student:
    torch.manual_seed(0)
    targets = plan_targets("multi_head", [TeacherLayers("a", [2, 4], 24), TeacherLayers("b", [4], 40)])
    return Student(StudentConfig(**NARROW), targets).eval()


def test_a_student_with_its_heads(anywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, wave = student(), 0.1 * torch.randn(2, 4_000)

    def gradients() -> list[Tensor]:
        _, predictions = model(wave)
        sum(p.square().mean() for p in predictions.values()).backward()
        found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        model.zero_grad()
        return [*predictions.values(), *found]

    calls = []
    real = onednn.product
    monkeypatch.setattr(onednn, "product", lambda *words: calls.append(words) or real(*words))
    ours = gradients()
    forward = 6 + 1 + 2 * 4 + 2 + 3  # convolutions, projection, two layers, heads
    assert len(calls) == 3 * forward  # and their gradients
    monkeypatch.setattr(onednn, "_is_faster_here", lambda: False)
    plain = gradients()
    assert len(calls) == 3 * forward and len(ours) == len(plain) > 40
    for mine, theirs in zip(ours, plain, strict=True):
        assert float((mine - theirs).detach().norm()) < 1e-5 * max(float(theirs.detach().norm()), 1e-3)


def test_operations_are_counted(anywhere: None) -> None:
    _register()
    with FlopCounterMode(display=False) as counter:
        Linear(24, 10)(torch.ones(2, 7, 24)).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 2 * 7 * 24 * 10  # forward, and the weight's gradient
    with FlopCounterMode(display=False) as counter:
        strided_conv(torch.ones(2, 40, 6), torch.ones(5, 6, 3), None, 2)
    assert counter.get_total_flops() == 2 * 40 * 3 * 6 * 5


def _register() -> None:
    """As the trial does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
        patch.setattr(onednn, "_vendor", lambda: "AuthenticAMD")
        patch.setattr(torch.backends.mkl, "is_available", lambda: True)
        assert onednn._asked()


def test_where_it_is_not_used(anywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.ones(4, 8), torch.ones(8, 8)
    assert onednn.is_faster(x, weight)
    assert not onednn.is_faster(x.bfloat16(), weight.bfloat16()) and not onednn.is_faster(x.double(), weight.double())
    assert not onednn.is_faster(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not onednn.is_faster(x, weight)
    with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):  # it speaks of TF32
        assert not onednn.is_faster(x, weight)
    monkeypatch.setattr(onednn, "_LEAST", 4 * 8 * 8 + 1)
    assert not onednn.is_faster(x, weight) and onednn.is_faster(torch.ones(5, 8), weight)
    with warnings.catch_warnings(action="ignore"):  # torch wishes that people traced no more
        traced = torch.jit.trace(Linear(8, 8), torch.ones(5, 8))
    assert "linear" in str(traced.graph) and "PythonOp" not in str(traced.graph)


def test_which_processors(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)

    def asked(vendor: str, capability: str = "AVX512") -> bool:
        monkeypatch.setattr(onednn, "_vendor", lambda: vendor)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        return onednn._asked()

    assert asked("AuthenticAMD") and asked("HygonGenuine")
    assert not asked("GenuineIntel") and not asked("") and not asked("AuthenticAMD", "AVX2")
    monkeypatch.setattr(onednn, "product", lambda *_: 1 / 0)
    caplog.set_level(logging.INFO)
    assert not asked("AuthenticAMD") and "no products by oneDNN" in caplog.text
