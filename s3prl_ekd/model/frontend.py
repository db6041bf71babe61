"""The convolutional front end: waveform -> 50 feature vectors a second, and what padding means after it.

Shapes: B clips, N samples, T frames, C conv channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.model.shape import EncoderShape


class ConvFrontEnd(nn.Module):
    """Seven strided convolutions with GELU; GroupNorm after the first, or LayerNorm after each (``conv_norm``).

    GroupNorm has one group per channel and averages over TIME: a clip padded with zeros gets other features than the
    same clip alone. That is why training batches are cut to equal length and never padded.
    Norms compute in fp32 whatever the precision of the rest.
    """

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.group_norm = shape.conv_norm == "group"
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        channels = 1
        for index, (width, kernel, stride) in enumerate(shape.conv_layers):
            conv = nn.Conv1d(channels, width, kernel, stride, bias=shape.conv_bias)
            nn.init.kaiming_normal_(conv.weight)  # as fairseq, hence s3prl's distiller
            self.convs.append(conv)
            if self.group_norm and index == 0:
                self.norms.append(nn.GroupNorm(width, width))
            elif not self.group_norm:
                self.norms.append(nn.LayerNorm(width))
            channels = width

    def forward(self, wave: Tensor) -> Tensor:
        """wave (B, N) -> features (B, T, C)."""
        x = wave.to(self.convs[0].weight.dtype).unsqueeze(1)  # (B, 1, N)
        for index, conv in enumerate(self.convs):
            x = conv(x)  # (B, C, samples of this level)
            if self.group_norm and index == 0:
                norm = self.norms[0]
                x = F.group_norm(x.float(), norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps).to(
                    x.dtype
                )
            elif not self.group_norm:
                x = layer_norm_fp32(self.norms[index], x.transpose(1, 2)).transpose(1, 2)
            x = F.gelu(x)
        return x.transpose(1, 2)


def layer_norm_fp32(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm in fp32, returned in the dtype of ``x``: bf16 statistics over 768 channels lose too much."""
    if x.dtype == torch.float32 and norm.weight.dtype == torch.float32:
        return norm(x)
    out = F.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
    return out.to(x.dtype)


class _ScaleGradient(torch.autograd.Function):
    """Identity forward; multiplies the gradient by a constant on the way back (fairseq's GradMultiply)."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """``feature_grad_mult``: slow the conv stack down against the transformer above it."""
    return x if scale == 1.0 else _ScaleGradient.apply(x, scale)


def frame_mask(lengths: Tensor, samples: int, frames: int, shape: EncoderShape) -> Tensor:
    """Which frames of a padded batch are speech, by the shape's ``padding_rule``.

    Args:
        lengths: (B,) samples of each clip before padding.
        samples: N, samples after padding.
        frames: T, frames that the front end made of N samples.

    Returns:
        bool (B, T), True where the frame belongs to its clip.
    """
    if shape.padding_rule == "conv":
        valid = lengths
        for _, kernel, stride in shape.conv_layers:
            valid = torch.div(valid - kernel, stride, rounding_mode="floor") + 1
    else:  # s3prl hubert_model.py, forward_padding_mask: N // T samples a frame, the remainder cut off
        valid = torch.div(lengths + samples // frames - 1, samples // frames, rounding_mode="floor")
    valid = valid.clamp(1, frames)
    return torch.arange(frames, device=lengths.device) < valid.unsqueeze(1)
