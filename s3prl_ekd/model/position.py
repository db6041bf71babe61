"""Where the family's transformer learns of positions: grouped convolutions over frames, added to their input.

Shapes: B clips, T frames, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.model.arithmetic import compute_dtype
from s3prl_ekd.model.banded_conv import banded_conv, make_band
from s3prl_ekd.shape import EncoderShape


class PositionalConv(nn.Module):
    """Grouped convolution over frames, weight-normalised per tap, with GELU: the family's position embedding.

    weight[o, i, k] = g[k] * v[o, i, k] / ||v[:, :, k]||  (torch's weight_norm with dim=2)
    """

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.groups = shape.pos_conv_groups
        kernel = shape.pos_conv_kernel
        self.v = nn.Parameter(torch.empty(shape.width, shape.width // self.groups, kernel))
        nn.init.normal_(self.v, std=math.sqrt(4.0 / (kernel * shape.width)))
        self.g = nn.Parameter(self.v.detach().norm(dim=(0, 1)))
        self.bias = nn.Parameter(torch.zeros(shape.width))
        self.frozen = False
        """Whether the weights stay what they are: then what follows from them is kept, 19 MB read and written a pass.

        Set by the owner (:class:`~s3prl_ekd.teachers.ensemble.FrozenTeachers`), for torch can't tell: s3prl's
        optimizers, torch's fused ones and ``.data`` change a weight without a trace. A move to another device or
        precision is seen.
        """
        # (what they were made of, weight, band)
        self._kept: tuple[tuple[object, ...], Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        weight, band = self._weight(x.dtype)
        return F.gelu(grouped_conv(x, weight, self.bias.to(x.dtype), self.groups, band))

    def _weight(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """(D, D / groups, k), in ``dtype``; of frozen weights on a GPU its band as well."""
        if not self.frozen or torch.compiler.is_compiling():
            return self._normalised().to(dtype), None
        made_of = [(p.data_ptr(), p.dtype, p.device) for p in (self.v, self.g)]
        key = (*made_of, dtype, torch.is_inference_mode_enabled())
        if self._kept is None or self._kept[0] != key:
            weight = self._normalised().to(dtype)
            self._kept = key, weight, make_band(weight, self.groups) if weight.is_cuda else None
        return self._kept[1:]

    def _load_from_state_dict(self, *given: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*given)

    def _normalised(self) -> Tensor:
        by_tap = self.v.float().flatten(0, 1)
        # a sum of squares: torch's norm over the leading dimensions takes a CPU four times as long
        return (by_tap * (self.g.float() * by_tap.square().sum(0).rsqrt())).view_as(self.v)


class PositionalConvStack(nn.Module):
    """data2vec-audio's position embedding: grouped convolutions in a row, each with a LayerNorm that has no weights."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        width, kernel = shape.width, shape.pos_conv_kernel
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, kernel, groups=shape.pos_conv_groups) for _ in range(shape.pos_conv_depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        width = x.shape[2]
        for conv in self.convs:
            x = grouped_conv(x, conv.weight, conv.bias, conv.groups)  # type: ignore[arg-type]  # a Conv1d's
            x = F.gelu(F.layer_norm(x.float(), (width,)).to(x.dtype))
        return x


def grouped_conv(x: Tensor, weight: Tensor, bias: Tensor, groups: int, band: Tensor | None = None) -> Tensor:
    """``F.conv1d`` over frames with ``padding = k // 2``, cut to T frames. x (B, T, D) -> (B, T, D).

    On a GPU matrix products (``banded_conv.py``), whose ``band`` may be known already. On a CPU ``F.conv1d``, kept from
    the one case that it computes wrongly: oneDNN 3.10 (torch 2.11) returns unrelated numbers for bf16 on processors
    with AMX when a group has fewer than 16 channels and the kernel 32 taps or more (relative error 1.0 to 1.2,
    measured). No published model is that narrow, small students and teachers are. There it computes in fp32.
    """
    if x.is_cuda:
        dtype = compute_dtype(x, weight)
        with torch.autocast("cuda", enabled=False):
            return banded_conv(x.to(dtype), weight.to(dtype), groups, band) + bias.to(dtype)
    frames, padding = x.shape[1], weight.shape[2] // 2
    x = x.transpose(1, 2)
    if x.device.type != "cpu" or weight.shape[1] >= 16 or compute_dtype(x, weight) != torch.bfloat16:
        out = F.conv1d(x, weight, bias, padding=padding, groups=groups)
    else:
        with torch.autocast("cpu", enabled=False):
            out = F.conv1d(x.float(), weight.float(), bias.float(), padding=padding, groups=groups).bfloat16()
    return out[:, :, :frames].transpose(1, 2)  # an even kernel with symmetric padding makes one frame too many
