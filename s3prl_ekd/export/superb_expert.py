"""A distilled speech encoder as a SUPERB upstream: waveforms in, hidden states out. Needs only PyTorch >= 1.13.

This one file is the whole model; ``model.pt`` beside it holds its numbers and weights. Waveform -> 7 convolutions (one
frame every 20 ms) -> linear -> + positional convolution -> transformer layers. There is no dropout and no layer drop:
train and eval mode compute the same.
Shapes: B clips, N samples at 16 kHz, T frames, C conv channels, D width, H attention heads.
"""

# s3prl-ekd copies this file, as it is, into every submission folder as expert.py. It therefore imports nothing of the
# package; tests/test_export_superb.py keeps it equal to s3prl_ekd/model/encoder.py.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence


class UpstreamExpert(nn.Module):
    """The upstream that the SUPERB challenge loads.

    Args:
        ckpt: path of model.pt.
        upstream_feature_selection: the key whose states ``hidden_states`` shall hold: "hidden_states" (all of them) or
            a task's name (PR, SID, ...), for the states chosen for it.
        kwargs: what callers pass beyond this (model_config, refresh) has no meaning here.
    """

    def __init__(self, ckpt="./model.pt", upstream_feature_selection="hidden_states", **kwargs):
        super().__init__()
        saved = torch.load(ckpt, map_location="cpu", weights_only=True)
        shape = saved["shape"]
        self.conv_layers = [tuple(layer) for layer in shape["conv_layers"]]  # (channels, kernel, stride)
        self.normalize_eps = shape["normalize_eps"] if shape["normalize"] else None
        self.selection = upstream_feature_selection
        self.task_states = {task: list(states) for task, states in saved["task_states"].items()}
        width, channels = shape["width"], self.conv_layers[-1][0]
        self.pre_norm = shape["pre_norm"]
        self.frontend = ConvFrontEnd(self.conv_layers, shape["conv_bias"], shape["conv_norm"])
        self.feature_norm = nn.LayerNorm(channels) if shape["feature_norm"] else None
        projected = channels != width or shape["square_projection"]
        self.projection = nn.Linear(channels, width) if projected else None
        self.position = PositionalConv(width, shape["pos_conv_kernel"], shape["pos_conv_groups"])
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            [TransformerLayer(width, shape["heads"], shape["ffn_width"], self.pre_norm) for _ in range(shape["layers"])]
        )
        self.heads = nn.ModuleDict({name: HeadSet(width, reads) for name, reads in saved["head_sets"]})
        self.load_state_dict(saved["weights"])

    def get_downsample_rates(self, key: str) -> int:
        """Samples from one frame to the next, the same for every key: 320 (20 ms)."""
        hop = 1
        for _, _, stride in self.conv_layers:
            hop *= stride
        return hop

    def forward(self, wavs):
        """Encode clips of any length, in any order.

        Args:
            wavs: list of B 1-D float tensors, unpadded, on one device.

        Returns:
            dict. ``hidden_states``: list of (B, T, D): 0 the projected conv features, then each transformer layer, then
            the prediction heads where the submission keeps them. A key per task for which states were chosen.
        """
        lengths = [len(wav) for wav in wavs]
        if self.normalize_eps is not None:  # zero mean and unit variance, where the model was trained so
            wavs = [(wav - wav.mean()) / (wav.var(unbiased=False) + self.normalize_eps) ** 0.5 for wav in wavs]
        wave = pad_sequence(list(wavs), batch_first=True)  # (B, N)
        field = self._receptive_field()
        if wave.shape[1] < field:  # a clip below 25 ms still gets one frame
            wave = F.pad(wave, (0, field - wave.shape[1]))
        features = self.frontend(wave)  # (B, T, C)
        if self.feature_norm is not None:
            features = self.feature_norm(features)
        if self.projection is not None:
            features = self.projection(features)  # (B, T, D)
        mask = None
        if min(lengths) < wave.shape[1]:
            mask = self._frame_mask(lengths, features)  # (B, T)
            features = features.masked_fill(~mask.unsqueeze(-1), 0.0)  # the positional convolution sees no padding
        states = [features]
        x = features + self.position(features)
        outputs = [x if self.pre_norm else self.norm(x)]  # the input of the first layer, then each layer's output
        for layer in self.layers:
            outputs.append(layer(outputs[-1], mask))
        if self.pre_norm:
            outputs[-1] = self.norm(outputs[-1])
        states += outputs[1:]
        for heads in self.heads.values():
            states += list(heads(outputs).unbind(1))
        result = {task: [states[index] for index in chosen] for task, chosen in self.task_states.items()}
        result["hidden_states"] = result.get(self.selection, states)
        return result

    def _receptive_field(self) -> int:
        field, step = 1, 1
        for _, kernel, stride in self.conv_layers:
            field += (kernel - 1) * step
            step *= stride
        return field

    def _frame_mask(self, lengths, features):
        """(B, T), True for the frames that the convolutions would make of each clip alone."""
        frames = []
        for length in lengths:
            for _, kernel, stride in self.conv_layers:
                length = (length - kernel) // stride + 1
            frames.append(min(max(length, 1), features.shape[1]))
        valid = torch.tensor(frames, device=features.device).unsqueeze(1)
        return torch.arange(features.shape[1], device=features.device) < valid


class ConvFrontEnd(nn.Module):
    """Strided convolutions with GELU; a GroupNorm, over time, after the first, or a LayerNorm after each ("layer")."""

    def __init__(self, conv_layers, bias: bool, norm: str = "group"):
        super().__init__()
        self.group_norm = norm == "group"
        channels = [1] + [width for width, _, _ in conv_layers]
        self.convs = nn.ModuleList(
            [
                nn.Conv1d(channels[index], width, kernel, stride, bias=bias)
                for index, (width, kernel, stride) in enumerate(conv_layers)
            ]
        )
        after_first = nn.GroupNorm(channels[1], channels[1])
        after_each = [nn.LayerNorm(width) for width in channels[1:]]
        self.norms = nn.ModuleList([after_first] if self.group_norm else after_each)

    def forward(self, wave):
        """wave (B, N) -> (B, T, C)."""
        x = wave.unsqueeze(1)
        for index, conv in enumerate(self.convs):
            x = conv(x)
            if not self.group_norm:
                x = self.norms[index](x.transpose(1, 2)).transpose(1, 2)
            elif index == 0:
                x = self.norms[0](x)
            x = F.gelu(x)
        return x.transpose(1, 2)


class PositionalConv(nn.Module):
    """Grouped convolution over frames with GELU; weight[o, i, k] = g[k] * v[o, i, k] / ||v[:, :, k]||."""

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        self.groups = groups
        self.v = nn.Parameter(torch.zeros(width, width // groups, kernel))
        self.g = nn.Parameter(torch.zeros(kernel))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        """x (B, T, D) -> (B, T, D)."""
        kernel = self.v.shape[-1]
        weight = self.v * (self.g / self.v.norm(dim=(0, 1)))
        out = F.conv1d(x.transpose(1, 2), weight, self.bias, padding=kernel // 2, groups=self.groups)
        if kernel % 2 == 0:
            out = out[:, :, :-1]  # an even kernel with symmetric padding makes one frame too many
        return F.gelu(out).transpose(1, 2)


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual; a LayerNorm after each, or before each (pre_norm)."""

    def __init__(self, width: int, heads: int, ffn_width: int, pre_norm: bool = False):
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = SelfAttention(width, heads)
        self.attention_norm = nn.LayerNorm(width)
        self.ffn_in = nn.Linear(width, ffn_width)
        self.ffn_out = nn.Linear(ffn_width, width)
        self.ffn_norm = nn.LayerNorm(width)

    def forward(self, x, mask):
        """x (B, T, D), mask (B, T) or None -> (B, T, D)."""
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), mask)
            return x + self._feed_forward(self.ffn_norm(x))
        x = self.attention_norm(x + self.attention(x, mask))
        return self.ffn_norm(x + self._feed_forward(x))

    def _feed_forward(self, x):
        return self.ffn_out(F.gelu(self.ffn_in(x)))


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(D / H)) V for each of H heads."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x, mask):
        """x (B, T, D), mask (B, T), False where a frame is padding -> (B, T, D)."""
        batch, frames, width = x.shape
        query, key, value = [
            part.view(batch, frames, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        ]  # each (B, H, T, D / H)
        scores = torch.matmul(query, key.transpose(2, 3)) * query.shape[-1] ** -0.5  # (B, H, T, T)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        out = torch.matmul(F.softmax(scores, dim=-1), value)
        return self.out(out.transpose(1, 2).reshape(batch, frames, width))


class HeadSet(nn.Module):
    """The heads that predicted one teacher's layers in training: Linear, GELU and Linear from a state of the student.

    Args:
        width: D.
        reads: for each head, which state it reads: 0 the input of the first layer, then each layer's output.
    """

    def __init__(self, width: int, reads):
        super().__init__()
        self.reads, count = list(reads), len(reads)
        self.expand = nn.Linear(width, width * count)
        self.weight = nn.Parameter(torch.zeros(count, width, width))
        self.bias = nn.Parameter(torch.zeros(count, width))

    def forward(self, states):
        """list of (B, T, D) -> (B, heads, T, D)."""
        count, width = len(self.reads), self.weight.shape[1]
        read = torch.stack([states[number] for number in self.reads], dim=2)  # (B, T, n, D)
        expand = self.expand.weight.view(count, width, width)  # n times (out, in)
        hidden = F.gelu(torch.einsum("btnd,nwd->btnw", read, expand) + self.expand.bias.view(count, width))
        return torch.einsum("btnd,ndw->bntw", hidden, self.weight) + self.bias[:, None]
