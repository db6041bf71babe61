"""The positional convolution in half precision: the same numbers as in fp32, on whatever processor this is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from s3prl_ekd.model.banded_conv import banded_conv, make_band
from s3prl_ekd.model.position import PositionalConv, grouped_conv
from s3prl_ekd.teachers.ensemble import FrozenTeachers
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("channels", [4, 12, 16, 48])  # of a group; under 16 is what AMX gets wrong
@pytest.mark.parametrize("kernel", [19, 32, 128])
def test_bf16_is_fp32_within_its_precision(channels: int, kernel: int, autocast: bool) -> None:
    groups = 4
    x = torch.randn(2, 60, channels * groups)
    weight = torch.randn(channels * groups, channels, kernel) / (channels * kernel) ** 0.5
    bias = torch.randn(channels * groups)
    exact = F.conv1d(x.transpose(1, 2), weight, bias, padding=kernel // 2, groups=groups)[..., :60].transpose(1, 2)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            half = grouped_conv(x, weight, bias, groups)
    else:
        half = grouped_conv(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), groups)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() < 0.01 * exact.norm()


def test_a_weight_that_may_change_is_followed_however_it_does() -> None:
    """s3prl's optimizers write to ``.data``, torch's fused ones leave no trace either: an evaluation must see both."""
    conv, x = PositionalConv(TINY), torch.randn(2, 30, TINY.width)
    fused = torch.optim.AdamW(conv.parameters(), lr=1e-2, fused=True)
    with torch.no_grad():
        before = conv(x)
    conv(x).square().sum().backward()
    fused.step()
    with torch.no_grad():
        stepped = conv(x)
        conv.v.data.mul_(torch.rand_like(conv.v))
        changed = conv(x)
    assert not torch.allclose(stepped, before) and not torch.allclose(changed, stepped)
    assert torch.equal(changed, conv(x).detach())


def test_a_constant_weight_is_normalised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And again for each precision, and where others are loaded."""
    encoder, x = random_encoder(TINY, seed=0), torch.randn(2, 30, TINY.width)
    conv = encoder.position
    assert isinstance(conv, PositionalConv) and not conv.frozen
    with torch.no_grad():
        expected = conv(x)
    FrozenTeachers({"one": encoder}, {"one": [1]})
    made, normalised = [], PositionalConv._normalised
    monkeypatch.setattr(PositionalConv, "_normalised", lambda self: (made.append(self), normalised(self))[1])
    with torch.no_grad():
        assert torch.equal(conv(x), expected) and torch.equal(conv(x), expected) and len(made) == 1
    with torch.inference_mode():
        assert torch.equal(conv(x), expected)
    leaf = x.clone().requires_grad_()  # a weight kept in inference mode must not reach a graph
    conv(leaf).sum().backward()
    assert leaf.grad is not None and len(made) == 3
    with torch.no_grad():
        conv.load_state_dict({name: value.clone() for name, value in PositionalConv(TINY).state_dict().items()})
        assert not torch.allclose(conv(x), expected)
        assert conv.bfloat16()(x.bfloat16()).dtype == torch.bfloat16 and len(made) == 5


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        conv, x = PositionalConv(TINY), torch.randn(2, 30, TINY.width)
        assert torch.equal(conv(x), conv(x))


@pytest.mark.parametrize(("frames", "channels", "groups", "kernel"), [
    (60, 4, 4, 19), (33, 12, 2, 32), (7, 4, 2, 4), (16, 8, 1, 1), (50, 4, 8, 128), (1, 3, 2, 5),
])  # fmt: skip
def test_banded_products_are_the_grouped_convolution(frames: int, channels: int, groups: int, kernel: int) -> None:
    """What a GPU computes; gradients included."""
    torch.manual_seed(0)
    x = torch.randn(2, frames, channels * groups, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(channels * groups, channels, kernel, dtype=torch.float64, requires_grad=True)
    full = F.conv1d(x.transpose(1, 2), weight, padding=kernel // 2, groups=groups)
    expected = full[..., :frames].transpose(1, 2)
    ours = banded_conv(x, weight, groups)
    seed = torch.randn_like(expected)
    assert torch.allclose(ours, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(banded_conv(x, weight, groups, make_band(weight.detach(), groups)), ours)
    wanted = torch.autograd.grad(expected, (x, weight), seed)
    for mine, theirs in zip(torch.autograd.grad(ours, (x, weight), seed), wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-12)
