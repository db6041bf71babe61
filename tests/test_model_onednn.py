"""Products by oneDNN equal those that torch chooses, gradients included, on whatever processor this is."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from convolutions import by_convolutions
from torch import Tensor, nn

from s3prl_ekd.config import StudentConfig
from s3prl_ekd.distill.targets import TeacherLayers, plan_targets
from s3prl_ekd.model import onednn
from s3prl_ekd.model.frontend import ConvFrontEnd
from s3prl_ekd.model.linear import linear, linear_gelu
from s3prl_ekd.model.strided_conv import ByWindows, channels_innermost, strided_conv
from s3prl_ekd.model.student import Student
from s3prl_ekd.shape import EncoderShape

NARROW = {"width": 32, "heads": 2, "ffn_width": 64, "conv_layers": [[16, 10, 5], *[[16, 3, 2]] * 4, *[[16, 2, 2]] * 2]}


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN for every product, on every processor."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(onednn, "_runs", lambda: True)
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
    layer = nn.Linear(24, 10, bias=bias)
    inputs = [x, *layer.parameters()]
    exact = F.linear(*(tensor.double() for tensor in inputs))
    seed = torch.randn(2, 10, 7).transpose(1, 2)  # as a loss over another layout would send it back
    ours = linear(layer, x)
    assert type(ours.grad_fn.next_functions[0][0]).__name__ == "_LinearBackward"
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
    monkeypatch.setattr(onednn, "_runs", lambda: False)
    plain = gradients()
    assert len(calls) == 3 * forward and len(ours) == len(plain) > 40
    for mine, theirs in zip(ours, plain, strict=True):
        assert float((mine - theirs).detach().norm()) < 1e-5 * max(float(theirs.detach().norm()), 1e-3)


AMD = """
import torch
torch.backends.mkl.is_available = lambda: True
torch.backends.cpu.get_cpu_capability = lambda: "AVX512"
import builtins, io
says = "vendor_id : AuthenticAMD"
builtins.open = lambda file, *a, **k: io.StringIO(says) if file == "/proc/cpuinfo" else io.open(file, *a, **k)
from s3prl_ekd.model import linear, onednn, strided_conv
onednn._LEAST = 0
"""


def on_amd(words: str) -> list[str]:
    """What a fresh process prints that takes this processor for one of AMD's."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AMD + words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_graphs_do_not_contain_the_questions() -> None:
    """Traced, compiled and exported before anything else was asked."""
    words = """
layer, x = torch.nn.Linear(24, 10).requires_grad_(False), torch.ones(2, 7, 24)
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = layer
    def forward(self, x):
        return linear.linear(self.layer, x)
traced = torch.jit.trace(Model(), x, check_trace=False)  # its check runs the model itself
compiled = torch.compile(Model(), backend="eager", fullgraph=True)
exported = torch.export.export(Model(), (x,))
assert "mkldnn" not in str(exported.graph) and "ones" not in str(exported.graph)
for way in (traced, compiled, exported.module()):
    print(torch.allclose(way(x), layer(x)), onednn._runs.cache_info().currsize)
linear.linear(layer, x)
print(onednn._runs())
"""
    assert on_amd(words) == ["True", "0"] * 3 + ["True"]


def test_operations_are_counted() -> None:
    """Also by a counter that is there before the first product."""
    words = """
from torch.utils.flop_counter import FlopCounterMode
calls, real = [], onednn.product
onednn.product = lambda *words: calls.append(words) or real(*words)
with FlopCounterMode(display=False) as counter:
    linear.linear(torch.nn.Linear(24, 10), torch.ones(2, 7, 24)).sum().backward()
print(counter.get_total_flops())
with FlopCounterMode(display=False) as counter:
    strided_conv.strided_conv(torch.ones(2, 40, 6), torch.ones(5, 6, 3), None, 2)
print(counter.get_total_flops(), len(calls))
"""
    trial, forward_and_weight = 2 * 2 * 2 * 2, 2 * 2 * 2 * 7 * 24 * 10
    # the counter watches modules, so that layers compute themselves; the convolution is a product here
    assert on_amd(words) == [str(forward_and_weight), str(trial + 2 * 40 * 3 * 6 * 5), "2"]


def test_only_what_the_gradient_needs_is_kept(anywhere: None) -> None:
    kept: list[tuple[int, ...]] = []
    x, layer = torch.ones(4, 8, requires_grad=True), nn.Linear(8, 6).requires_grad_(False)
    clips, kernel = torch.ones(2, 4, 8, requires_grad=True), torch.ones(6, 8, 3)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tuple(tensor.shape)), lambda _: None):
        linear(layer, x)
        strided_conv(clips, kernel, None, 2)
    assert kept == [(6, 8), (6, 24)]
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tuple(tensor.shape)), lambda _: None):
        linear(layer.requires_grad_(), x.detach())
        strided_conv(clips.detach(), kernel.requires_grad_(), None, 2)
    assert kept == [(4, 8), (8, 8)]


class Quantised(Tensor):
    """Stands for tensors of a class of their own, which know how to multiply themselves."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return super().__torch_function__(function, types, args, kwargs or {})


def test_where_it_is_not_used(anywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.ones(4, 8), torch.ones(8, 8)
    assert onednn.supports(x, weight)
    assert not onednn.supports(x.bfloat16(), weight.bfloat16()) and not onednn.supports(x.double(), weight.double())
    assert not onednn.supports(x.to("meta"), weight.to("meta"))
    assert not onednn.supports(x, weight.as_subclass(Quantised)) and not onednn.supports(
        x.as_subclass(Quantised), weight
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert not onednn.supports(x, weight)
    with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):  # it speaks of TF32
        assert not onednn.supports(x, weight)
    layer = nn.Linear(8, 8)
    mapped = torch.func.vmap(lambda row: linear(layer, row))(torch.ones(5, 3, 8))
    assert close(mapped, layer(torch.ones(5, 3, 8)))
    assert close(linear(layer, torch.ones(8)), layer(torch.ones(8)))  # one dimension is enough
    with warnings.catch_warnings(action="ignore"):  # torch wishes that people traced no more
        traced = torch.jit.trace(lambda x: linear(layer.requires_grad_(False), x), torch.ones(5, 8))
    assert "linear" in str(traced.graph) and "PythonOp" not in str(traced.graph)
    monkeypatch.setattr(onednn, "_LEAST", 4 * 8 * 8 + 1)
    assert not onednn.is_faster(x, weight, 4 * 8 * 8) and onednn.is_faster(x, weight, 5 * 8 * 8)


def test_a_watched_or_changed_layer_computes_itself(anywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "linear", lambda *_: pytest.fail("passed over the layer"))
    seen: list[nn.Module] = []
    for register in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
        seen.clear()
        layer = nn.Linear(8, 8)
        getattr(layer, f"register_{register}")(lambda module, *_: seen.append(module))
        linear(layer, torch.ones(4, 8, requires_grad=True)).sum().backward()
        assert seen == [layer]
    linear(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), torch.ones(4, 8))
    with torch.no_grad():
        given: list[Tensor] = []
        layer = nn.Linear(8, 8)
        layer.register_forward_hook(lambda module, words, out: given.append(out))
        out = linear_gelu(layer, torch.ones(4, 8))
        assert torch.equal(F.gelu(given[0]), out)  # what a hook keeps is not written over
    layer = nn.Linear(8, 8)
    layer.forward = lambda x: x + 1  # as some libraries move layers between devices
    assert torch.equal(linear(layer, torch.ones(4, 8)), torch.full((4, 8), 2.0))
    seen.clear()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        layer = nn.Linear(8, 8)
        linear(layer, torch.ones(4, 8))
    finally:
        handle.remove()
    assert seen == [layer]
    with warnings.catch_warnings(action="ignore"):  # of torch, which has moved this to another package
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)), {nn.Linear})[0]
    assert type(quantised) is not nn.Linear
    assert linear(quantised, torch.ones(4, 8)).shape == (4, 8)


def test_which_processors(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)

    def runs(vendor: str, capability: str = "AVX512") -> bool:
        monkeypatch.setattr(onednn, "_vendor", lambda: vendor)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        return onednn._runs.__wrapped__()

    assert runs("AuthenticAMD") and runs("HygonGenuine")
    assert not runs("GenuineIntel") and not runs("") and not runs("AuthenticAMD", "AVX2")
    torch.set_default_dtype(torch.float64)
    try:
        assert runs("AuthenticAMD")
    finally:
        torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(onednn, "product", lambda *_: 1 / 0)
    caplog.set_level(logging.INFO)
    assert not runs("AuthenticAMD") and "no products by oneDNN" in caplog.text
