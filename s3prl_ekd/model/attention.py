"""Self-attention: plain, and WavLM's gated relative position bias.

Shapes: B clips, T frames, D width, H heads, d = D / H.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.model.arithmetic import gated_attention_kernel
from s3prl_ekd.model.linear import linear
from s3prl_ekd.shape import EncoderShape


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values.

    With ``attention: gated_relative`` (WavLM, arXiv 2110.13900 section 3.1) the score of query q and key k gains
    ``gate[b,h,q] * bias[h, k - q]``. The bias table is shared by all layers; the gate is this layer's, read from its
    input x split into heads: ``a, b = sigmoid(W x_h + c)`` (the 8 outputs summed in two fours),
    ``gate = a * (b * scale_h - 1) + 2``.
    """

    def __init__(self, shape: EncoderShape, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = shape.heads
        self.dropout = dropout
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.gate = nn.Linear(shape.width // shape.heads, 8) if shape.attention == "gated_relative" else None
        if self.gate is not None:
            self.gate_scale = nn.Parameter(torch.ones(shape.heads))

    def forward(self, x: Tensor, mask: Tensor | None = None, bias: DistanceBias | None = None) -> Tensor:
        """x (B, T, D), mask bool (B, T) True for speech or None, bias of :class:`RelativeBias` or None -> (B, T, D)."""
        batch, frames, width = x.shape
        query, key, value = (
            part.view(batch, frames, self.heads, -1).transpose(1, 2) for part in linear(self.qkv, x).chunk(3, dim=-1)
        )  # each (B, H, T, d)
        dropout = self.dropout if self.training else 0.0
        scores_add = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, T) bool
        if self.gate is not None and bias is not None:
            gate = self._gate(self.gate, x)
            kernel = gated_attention_kernel(query) if mask is None and dropout == 0.0 else None
            if kernel is not None:
                return linear(self.out, kernel(query, key, value, gate, bias.by_distance))
            scores_add = self._gated_bias(gate, bias, mask).to(query.dtype)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=scores_add, dropout_p=dropout)
        return linear(self.out, out.transpose(1, 2).reshape(batch, frames, width))

    def _gate(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """(B, H, T): this layer's factor on the bias of each query."""
        batch, frames, _ = x.shape
        gates = layer(x.view(batch, frames, self.heads, -1)).view(batch, frames, self.heads, 2, 4).sum(-1)
        a, b = torch.sigmoid(gates).transpose(1, 2).unbind(-1)  # (B, H, T)
        return a * (b * self.gate_scale.view(1, -1, 1) - 1.0) + 2.0

    @staticmethod
    def _gated_bias(gate: Tensor, bias: DistanceBias, mask: Tensor | None) -> Tensor:
        """(B, H, T, T): the gate times the shared bias, -inf where the key is padding."""
        gate = gate.contiguous().unsqueeze(-1)  # its layout becomes the product's
        gated = (gate * bias.matrix)[..., : gate.shape[2]]  # the product first: rows stay aligned
        return gated if mask is None else gated.masked_fill(~mask[:, None, None, :], float("-inf"))


class DistanceBias:
    """The biases of one length, for all layers: as few as there are distances, and laid out as scores where asked.

    Args:
        by_distance: (H, 2T - 1), of key - query from 1 - T to T - 1.
    """

    def __init__(self, by_distance: Tensor) -> None:
        self.by_distance = by_distance
        self._matrix: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """(H, T, T'): the bias of (query, key); T' is T rounded up to a multiple of 8. Made once, on first use.

        No key has the last columns. They are there for attention kernels, which read unaligned rows at half the speed.
        """
        if self._matrix is None:  # no cached_property: torch.compile cannot enter its lock
            self._matrix = self._laid_out()
        return self._matrix

    def _laid_out(self) -> Tensor:
        frames = (self.by_distance.shape[1] + 1) // 2
        padded = F.pad(self.by_distance, (0, -frames % 8))
        # row q of the matrix is the slice that starts at T - 1 - q: a reversed sliding window, no index tensor. The
        # layout is said: flip chooses its own, products take it over, and attention kernels refuse all but this one
        return padded.unfold(1, frames + -frames % 8, 1).flip(1).contiguous()


class RelativeBias(nn.Module):
    """The learned table of WavLM's relative positions: one number per (head, bucket of distance)."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.buckets = shape.relative_buckets
        self.max_distance = shape.relative_max_distance
        self.table = nn.Embedding(shape.relative_buckets, shape.heads)

    def forward(self, frames: int) -> DistanceBias:
        """The biases of a clip of so many frames."""
        distance = torch.arange(1 - frames, frames, device=self.table.weight.device)  # (2T - 1,) key - query
        return DistanceBias(self.table(self._bucket(distance)).t().contiguous())

    def _bucket(self, distance: Tensor) -> Tensor:
        """T5's buckets: half for each sign; the nearer half of each exact, the rest logarithmic up to max_distance."""
        half = self.buckets // 2
        exact = half // 2
        absolute = distance.abs()
        logarithmic = torch.log(absolute.float().clamp(min=1) / exact) / math.log(self.max_distance / exact)
        far = (exact + (logarithmic * (half - exact)).long()).clamp(max=half - 1)
        return (distance > 0).long() * half + torch.where(absolute < exact, absolute, far)
