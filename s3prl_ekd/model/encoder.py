"""One encoder for the whole wav2vec2 family: a teacher is a deep one, the student a shallow one.

audio -> ConvFrontEnd -> (norm) -> projection -> + positional convolution -> transformer layers -> hidden states

Where weights come from is ``teachers/``'s business; prediction heads are in ``heads.py``.
Shapes: B clips, N samples, T frames, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.model.arithmetic import add_layer_norm, layer_norm_fp32, scale_gradient
from s3prl_ekd.model.attention import DistanceBias, RelativeBias, SelfAttention
from s3prl_ekd.model.frontend import ConvFrontEnd, frame_mask
from s3prl_ekd.model.linear import linear, linear_gelu
from s3prl_ekd.model.position import PositionalConv, PositionalConvStack
from s3prl_ekd.shape import EncoderShape


@dataclass(frozen=True)
class Dropout:
    """Probabilities, in training mode only. Teachers have none."""

    hidden: float = 0.0
    """After the positional convolution, each attention and each feed-forward block."""
    attention: float = 0.0
    """On attention weights."""
    activation: float = 0.0
    """After the GELU inside each feed-forward block."""


@dataclass
class EncoderOutput:
    """What one pass gives."""

    features: Tensor
    """(B, T, D) projected conv features, before the positional convolution (DistilHuBERT's first hidden state)."""
    states: dict[int, Tensor] = field(default_factory=dict)
    """State l (B, T, D) for each l that was asked for; 0 is the input of layer 1."""
    mask: Tensor | None = None
    """(B, T) bool, True where a frame is speech; None when no clip is padded."""


class Encoder(nn.Module):
    """A wav2vec2-family encoder of any :class:`EncoderShape`.

    Args:
        shape: the numbers.
        dropout: probabilities in training mode.
        feature_grad_mult: factor on the gradient that reaches the conv stack (0.1 in DistilHuBERT); 0 freezes it.
    """

    def __init__(self, shape: EncoderShape, dropout: Dropout | None = None, feature_grad_mult: float = 1.0) -> None:
        super().__init__()
        dropout = dropout or Dropout()
        self.shape = shape
        self.feature_grad_mult = feature_grad_mult
        self.hidden_dropout = dropout.hidden
        channels = shape.conv_layers[-1][0]
        self.frontend = ConvFrontEnd(shape).requires_grad_(feature_grad_mult > 0)
        self.feature_norm = nn.LayerNorm(channels) if shape.feature_norm else None
        self.projection = nn.Linear(channels, shape.width) if shape.projected else None
        self.position = PositionalConv(shape) if shape.pos_conv_depth == 1 else PositionalConvStack(shape)
        self.relative_bias = RelativeBias(shape) if shape.attention == "gated_relative" else None
        self.layers = nn.ModuleList(TransformerLayer(shape, dropout) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)  # post-norm: before layer 1; pre-norm: after the last layer

    def forward(
        self,
        wave: Tensor,
        lengths: Tensor | None = None,
        states: Collection[int] | None = None,
        replace: Callable[[Tensor], Tensor] | None = None,
        conv_features: Tensor | None = None,
    ) -> EncoderOutput:
        """Encode a batch.

        Args:
            wave: (B, N) 16 kHz, zero-padded at the end where clips are shorter.
            lengths: (B,) samples of each clip; None when all have N samples (the fast path: no masks anywhere).
            states: which hidden states to keep, 0..layers; None keeps all. Layers above the last one are not run.
            replace: what the transformer sees instead of the projected features (masking.py); None: the features.
            conv_features: (B, T, C) what ``frontend(wave)`` gives, where that is known already.

        Raises:
            ValueError: a state beyond the last layer is asked for.
        """
        wanted = set(range(self.shape.layers + 1)) if states is None else set(states)
        last = max(wanted, default=0)
        if last > self.shape.layers or min(wanted, default=0) < 0:
            raise ValueError(f"states {sorted(wanted)} asked of an encoder with states 0..{self.shape.layers}")
        if conv_features is None:
            with nullcontext() if self.feature_grad_mult else torch.no_grad():
                conv_features = self.frontend(wave)
        features = scale_gradient(conv_features, self.feature_grad_mult)  # (B, T, C)
        mask = None
        if lengths is not None:
            mask = frame_mask(lengths, wave.shape[1], features.shape[1], self.shape)
        if self.feature_norm is not None:
            features = layer_norm_fp32(self.feature_norm, features)
        if self.projection is not None:
            features = linear(self.projection, features)  # (B, T, D)
        if mask is not None:
            features = features.masked_fill(~mask.unsqueeze(-1), 0.0)  # the positional convolution must not see padding
        out = EncoderOutput(features, mask=mask)
        if not wanted:
            return out
        if replace is not None:
            features = replace(features)
        x = features + self.position(features)
        if not self.shape.pre_norm:
            x = layer_norm_fp32(self.norm, x)
        x = F.dropout(x, self.hidden_dropout, self.training)
        bias = self.relative_bias(x.shape[1]) if self.relative_bias is not None else None
        for index in range(last + 1):
            if index > 0:
                x = self.layers[index - 1](x, mask, bias)
            if index in wanted:
                ends_stack = index == self.shape.layers and self.shape.pre_norm
                out.states[index] = layer_norm_fp32(self.norm, x) if ends_stack else x
        return out


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual; norm after each (post) or before each (pre)."""

    def __init__(self, shape: EncoderShape, dropout: Dropout) -> None:
        super().__init__()
        self.pre_norm = shape.pre_norm
        self.dropout = dropout
        self.attention = SelfAttention(shape, dropout.attention)
        self.attention_norm = nn.LayerNorm(shape.width)
        self.ffn_in = nn.Linear(shape.width, shape.ffn_width)
        self.ffn_out = nn.Linear(shape.ffn_width, shape.width)
        self.ffn_norm = nn.LayerNorm(shape.width)
        for module in (self.attention.qkv, self.attention.out, self.ffn_in, self.ffn_out):
            nn.init.normal_(module.weight, std=0.02)  # BERT's initialisation, as fairseq and s3prl's distiller
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, mask: Tensor | None, bias: DistanceBias | None) -> Tensor:
        """x (B, T, D) -> (B, T, D); mask and bias as in :class:`SelfAttention`."""
        if self.pre_norm:
            x = x + self._drop(self.attention(layer_norm_fp32(self.attention_norm, x), mask, bias))
            return x + self._feed_forward(layer_norm_fp32(self.ffn_norm, x))
        x = add_layer_norm(self.attention_norm, x, self._drop(self.attention(x, mask, bias)))
        return add_layer_norm(self.ffn_norm, x, self._feed_forward(x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        x = F.dropout(linear_gelu(self.ffn_in, x), self.dropout.activation, self.training)
        return self._drop(linear(self.ffn_out, x))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout.hidden, self.training)


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())
