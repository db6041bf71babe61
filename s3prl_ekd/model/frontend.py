"""The convolutional front end: waveform -> 50 feature vectors a second, and what padding means after it.

Shapes: B clips, N samples, T frames, C conv channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.model.arithmetic import compute_dtype, fused_kernels, gelu, layer_norm_fp32
from s3prl_ekd.model.strided_conv import channels_innermost, strided_conv
from s3prl_ekd.shape import EncoderShape

_PAD = 8  # columns; 16 bytes in half precision
_PIECE = 1024  # frames


class ConvFrontEnd(nn.Module):
    """Seven strided convolutions with GELU; GroupNorm after the first, or LayerNorm after each (``conv_norm``).

    GroupNorm has one group per channel and averages over TIME: a clip padded with zeros gets other features than the
    same clip alone. That is why training batches are cut to equal length and never padded.
    Norms compute in fp32 whatever the precision of the rest.

    ``convs`` and ``norms`` hold the weights under the family's names; what computes is ``strided_conv.py``, channels
    last from end to end, and the first layer's own way (:meth:`_first`).
    """

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.group_norm = shape.conv_norm == "group"
        convs: list[nn.Conv1d] = []
        norms: list[nn.Module] = []
        channels = 1
        for index, (width, kernel, stride) in enumerate(shape.conv_layers):
            conv = nn.Conv1d(channels, width, kernel, stride, bias=shape.conv_bias)
            nn.init.kaiming_normal_(conv.weight)  # as fairseq, hence s3prl's distiller
            conv.weight.data = channels_innermost(conv.weight.data)
            convs.append(conv)
            if self.group_norm and index == 0:
                norms.append(nn.GroupNorm(width, width))
            elif not self.group_norm:
                norms.append(nn.LayerNorm(width))
            channels = width
        self.convs: Sequence[nn.Conv1d] = nn.ModuleList(convs)  # type: ignore[assignment]  # torch's list has no types
        self.norms: Any = nn.ModuleList(norms)  # one GroupNorm, or LayerNorms

    def forward(self, wave: Tensor) -> Tensor:
        """wave (B, N) -> features (B, T, C).

        Raises:
            ValueError: the clips are too short for a single frame.
        """
        batch, samples = wave.shape
        frames = self.shape.frames(samples)
        if frames < 1:
            raise ValueError(f"{samples} samples give no frame; {self.shape.receptive_field} do")
        hop = self.shape.hop
        wave = F.pad(wave, (0, -samples % hop))  # whole frames, so that every stride divides a clip's rows
        x = self._first(wave, samples)
        for index, conv in enumerate(self.convs[1:], start=1):
            bias = None if conv.bias is None else conv.bias.to(x.dtype)
            x = strided_conv(x, conv.weight.to(x.dtype), bias, conv.stride[0])  # (B, samples of this level, C)
            if not self.group_norm:
                x = layer_norm_fp32(self.norms[index], x)
            x = gelu(x)
        return x[:, :frames]

    def _first(self, wave: Tensor, samples: int) -> Tensor:
        """The first convolution, its norm and GELU: wave (B, N') of N samples and padding -> (B, N' / stride, C).

        Its output is the largest tensor of the whole model, so GroupNorm does not get to read it: a channel's mean and
        variance over time follow from those of the windows. With window u, weight w, mean m = E[u], S = Cov[u]::

            (w u - E[w u]) / sqrt(Var[w u] + eps) * gamma + beta = (a w) (u - m) + beta,  a = gamma / sqrt(w S w + eps)

        S is 10 x 10, in float64. What remains is one matrix product a clip, of centred windows: a constant offset in
        the recording costs no precision. Two more rows of the matrix, which meet ones in the
        window, add beta: rounded to ``dtype``, and what that rounding left over.
        """
        conv, dtype = self.convs[0], compute_dtype(wave, self.convs[0].weight)
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        with torch.autocast(wave.device.type, enabled=False):
            wave = wave.float()
            windows = F.pad(wave, (0, max(kernel - stride, 0))).unfold(1, kernel, stride)  # (B, T', k)
            weight = conv.weight.squeeze(1)  # (C, k)
            if not self.group_norm:
                bias = None if conv.bias is None else conv.bias.to(dtype)
                x = F.linear(windows.to(dtype), weight.to(dtype), bias)
                return gelu(layer_norm_fp32(self.norms[0], x))
            norm = self.norms[0]  # it takes the convolution's bias away again
            count = (samples - kernel) // stride + 1  # windows that lie inside the clip
            mean, covariance = _moments(windows[:, :count])
            variance = ((weight.double() @ covariance) * weight.double()).sum(-1)  # (B, C)
            scale = norm.weight.double() * (variance.clamp(min=0) + norm.eps).rsqrt()
            scaled = scale.unsqueeze(-1) * weight.double()  # (B, C, k)
            rounded = mean.float().unsqueeze(1)  # (B, 1, k); what rounding leaves of the mean goes into the bias
            shift = norm.bias.double() + (rounded - mean.unsqueeze(1)) @ scaled.transpose(1, 2)  # (B, 1, C)
            kernels = fused_kernels(wave)
            if kernels is not None and kernel <= 16:
                matrix, frames = scaled.transpose(1, 2).to(dtype), windows.shape[1]
                return kernels.first_conv_gelu(wave, rounded[:, 0], matrix, shift[:, 0].float(), frames, stride)
            columns = -(-(kernel + 2) // _PAD) * _PAD  # rows of a length that matrix units read whole
            centred = torch.zeros(*windows.shape[:2], columns, dtype=dtype, device=wave.device)
            if wave.requires_grad:
                centred[..., :kernel] = windows - rounded
            else:
                torch.sub(windows, rounded, out=centred[..., :kernel])
            centred[..., kernel : kernel + 2] = 1
            coarse = shift.to(dtype)
            matrix = torch.cat([scaled.transpose(1, 2).to(dtype), coarse, (shift - coarse.double()).to(dtype)], dim=1)
            return gelu(torch.bmm(centred, F.pad(matrix, (0, 0, 0, columns - kernel - 2))))


def _moments(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, k) and covariance (B, k, k) over time of windows (B, T, k), in float64."""
    windows = windows.double()
    mean = windows.mean(1)
    centred = windows - mean.unsqueeze(1)
    # in pieces: one product of two tall matrices would keep a GPU waiting for a few of its processors
    pieces = F.pad(centred, (0, 0, 0, -centred.shape[1] % _PIECE)).unflatten(1, (-1, _PIECE))  # (B, n, piece, k)
    return mean, (pieces.transpose(2, 3) @ pieces).sum(1) / windows.shape[1]


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
