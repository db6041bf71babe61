"""The positional convolution in half precision: the same numbers as in fp32, on whatever processor this is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from s3prl_ekd.model.position import grouped_conv


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("channels", [4, 12, 16, 48])  # of a group; under 16 is what AMX gets wrong
@pytest.mark.parametrize("kernel", [19, 32, 128])
def test_bf16_is_fp32_within_its_precision(channels: int, kernel: int, autocast: bool) -> None:
    groups = 4
    x = torch.randn(2, channels * groups, 60)
    weight = torch.randn(channels * groups, channels, kernel) / (channels * kernel) ** 0.5
    bias = torch.randn(channels * groups)
    exact = F.conv1d(x, weight, bias, padding=kernel // 2, groups=groups)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            half = grouped_conv(x, weight, bias, kernel // 2, groups)
    else:
        half = grouped_conv(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), kernel // 2, groups)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() < 0.01 * exact.norm()
