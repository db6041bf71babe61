"""Prediction heads: from the student's hidden states to every layer that is asked of a teacher.

Used in training; downstream tasks read the encoder's own states (and these predictions only when asked).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.model import onednn
from s3prl_ekd.model.linear import linear


class HeadSet(nn.Module):
    """One head set: nn.Linear(D -> D * n), GELU, then one nn.Linear(D -> width) for each of n layers.

    Where all heads read one state it is DistilHuBERT's output layer (s3prl upstream/distiller/model.py,
    ``out_layer_type: expand-last``). Where they read several, each has its own part, D -> D, of the first linear.
    1.181 M parameters a head at D = width = 768.

    Args:
        student_width: D, channels of the student's hidden states.
        width: channels of each prediction (the teacher's width; the sum of widths under layerwise_concat).
        reads: for each of the n heads, the number of the student's hidden state that it reads.
    """

    def __init__(self, student_width: int, width: int, reads: Sequence[int]) -> None:
        super().__init__()
        self.reads, heads = tuple(reads), len(reads)
        self.expand = nn.Linear(student_width, student_width * heads)
        bound = student_width**-0.5
        self.weight = nn.Parameter(torch.empty(heads, student_width, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(heads, width).uniform_(-bound, bound))

    def forward(self, states: Mapping[int, Tensor]) -> Tensor:
        """The student's hidden states by their numbers, (B, T, D) each -> predictions (B, n, T, width)."""
        read = [states[number] for number in self.reads]
        batch, frames, _ = read[0].shape
        if len(set(self.reads)) == 1:
            hidden = F.gelu(linear(self.expand, read[0])).view(batch * frames, len(read), -1).transpose(0, 1)
        else:
            weight, bias = (p.view(len(read), -1, *p.shape[1:]) for p in (self.expand.weight, self.expand.bias))
            hidden = F.gelu(_by_head(torch.stack(read).flatten(1, 2), weight.transpose(1, 2), bias))
        out = _by_head(hidden, self.weight, self.bias)  # hidden (n, B * T, D)
        return out.view(len(read), batch, frames, -1).transpose(0, 1)


def _by_head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer for each of n heads: x (n, R, I), weight (n, I, O), bias (n, O) -> (n, R, O)."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if onednn.is_faster(x, weight, x[0].numel() * weight.shape[2]):
        return torch.stack([onednn.linear(rows, w.t(), b) for rows, w, b in zip(x, weight, bias, strict=True)])
    return torch.baddbmm(bias.unsqueeze(1), x, weight)
