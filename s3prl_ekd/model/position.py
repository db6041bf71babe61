"""Where the family's transformer learns of positions: grouped convolutions over frames, added to their input.

Shapes: B clips, T frames, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.model.arithmetic import compute_dtype
from s3prl_ekd.model.shape import EncoderShape


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
        self._kept: tuple[tuple, Tensor] | None = None  # (what it was made of, the weight), for :meth:`_weight`

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        kernel = self.v.shape[-1]
        weight, bias = self._weight(x.dtype), self.bias.to(x.dtype)
        out = grouped_conv(x.transpose(1, 2), weight, bias, kernel // 2, self.groups)
        if kernel % 2 == 0:
            out = out[:, :, :-1]  # an even kernel with symmetric padding makes one frame too many
        return F.gelu(out).transpose(1, 2)

    def _weight(self, dtype: torch.dtype) -> Tensor:
        """(D, D / groups, k), in ``dtype``. Without gradients it is kept until v or g change."""
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and self.v.requires_grad):
            return self._normalised().to(dtype)
        made_of = [(p.data_ptr(), p._version, p.dtype, p.device) for p in (self.v, self.g)]
        key = (*made_of, dtype, torch.is_inference_mode_enabled())
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self._normalised().to(dtype)
        return self._kept[1]

    def _normalised(self) -> Tensor:
        v = self.v.float()
        return v * (self.g.float() / v.norm(dim=(0, 1)))


class PositionalConvStack(nn.Module):
    """data2vec-audio's position embedding: grouped convolutions in a row, each with a LayerNorm that has no weights."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        width, kernel = shape.width, shape.pos_conv_kernel
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=shape.pos_conv_groups)
            for _ in range(shape.pos_conv_depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        frames, width = x.shape[1:]
        for conv in self.convs:
            x = grouped_conv(x.transpose(1, 2), conv.weight, conv.bias, conv.padding[0], conv.groups)
            x = x[:, :, :frames].transpose(1, 2)  # even kernels make one frame too many
            x = F.gelu(F.layer_norm(x.float(), (width,)).to(x.dtype))
        return x


def grouped_conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, groups: int) -> Tensor:
    """``F.conv1d``, kept from the one case that a CPU computes wrongly. x (B, D, T) -> (B, D, T').

    oneDNN 3.10 (torch 2.11) returns unrelated numbers for bf16 on processors with AMX when a group has fewer than 16
    channels and the kernel 32 taps or more (relative error 1.0 to 1.2, measured). No published model is that narrow,
    small students and teachers are. There it computes in fp32.
    """
    if x.device.type != "cpu" or weight.shape[1] >= 16 or compute_dtype(x, weight) != torch.bfloat16:
        return F.conv1d(x, weight, bias, padding=padding, groups=groups)
    with torch.autocast("cpu", enabled=False):
        full = F.conv1d(
            x.float(), weight.float(), None if bias is None else bias.float(), padding=padding, groups=groups
        )
    return full.to(torch.bfloat16)
