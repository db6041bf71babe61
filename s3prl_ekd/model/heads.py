"""Prediction heads: from the student's last hidden state to every layer that a teacher asks for.

Used in training; downstream tasks read the encoder's own states (and these predictions only when asked).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.model import onednn
from s3prl_ekd.model.linear import linear


class HeadSet(nn.Module):
    """One head set: nn.Linear(D -> D * n), GELU, then one nn.Linear(D -> width) for each of n layers.

    DistilHuBERT's output layer (s3prl upstream/distiller/model.py, ``out_layer_type: expand-last``).
    1.181 M parameters a head at D = width = 768.

    Args:
        student_width: D, channels of the student's last hidden state.
        heads: n, layers predicted.
        width: channels of each prediction (the teacher's width; the sum of widths under layerwise_concat).
    """

    def __init__(self, student_width: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.expand = nn.Linear(student_width, student_width * heads)
        bound = student_width**-0.5
        self.weight = nn.Parameter(torch.empty(heads, student_width, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(heads, width).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> predictions (B, n, T, width)."""
        batch, frames, _ = x.shape
        hidden = F.gelu(linear(self.expand, x)).view(batch * frames, self.heads, -1).transpose(0, 1)  # (n, B * T, D)
        weight, bias = self.weight.to(hidden.dtype), self.bias.to(hidden.dtype)
        if onednn.is_faster(hidden, weight, hidden[0].numel() * weight.shape[2]):
            out = torch.stack([onednn.linear(x, w.t(), b) for x, w, b in zip(hidden, weight, bias, strict=True)])
        else:
            out = torch.baddbmm(bias.unsqueeze(1), hidden, weight)
        return out.view(self.heads, batch, frames, -1).transpose(0, 1)
