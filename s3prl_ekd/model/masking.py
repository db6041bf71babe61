"""Span masking of the student's features in training: part of what the student sees is hidden, the targets are whole.

Shapes: B clips, T frames, D student width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.config import MaskConfig


class SpanMask(nn.Module):
    """Replaces spans of frames by one learned vector, in training mode only.

    Each frame begins a span with probability p, drawn for every clip; spans of ``length`` frames may overlap and are
    cut off at the end of the clip. Expected share of masked frames: ``1 - (1 - p)^length`` (49 % at 0.065 and 10).
    (wav2vec 2.0, arXiv 2006.11477: p = 0.065, length 10; fairseq draws a fixed number of spans a clip, here draws are
    independent: no loop over clips, no wait for the device. Masked input in distillation: ARMHuBERT, arXiv 2305.11685.)
    The loss takes all frames, masked or not. Drawn from torch's generator of the features' device.

    Args:
        width: D.
        config: probability and length.
    """

    def __init__(self, width: int, config: MaskConfig) -> None:
        super().__init__()
        self.probability, self.length = config.probability, config.length
        self.vector = nn.Parameter(torch.empty(width).uniform_())

    def forward(self, features: Tensor) -> Tensor:
        """features (B, T, D) -> (B, T, D)."""
        if not self.training:
            return features
        masked = self.draw(features.shape[0], features.shape[1], features.device)
        return torch.where(masked.unsqueeze(-1), self.vector.to(features.dtype), features)

    def draw(self, clips: int, frames: int, device: torch.device) -> Tensor:
        """bool (B, T): frame t is masked when a span began at one of t - length + 1 .. t."""
        begins = (torch.rand(clips, frames, device=device) < self.probability).float()
        return F.max_pool1d(F.pad(begins, (self.length - 1, 0)), self.length, stride=1) > 0
