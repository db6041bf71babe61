"""Masked prediction: hide spans of frames from the transformer, have it tell their units (HuBERT, arXiv 2106.07447).

Shapes: B clips, N samples, T frames, D width, K units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.distill.options import MaskConfig
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.model.masking import SpanMask

TEMPERATURE = 0.1  # HuBERT, equation 3


@dataclass
class Prediction:
    """Scalars of one batch, on the device: nothing here waits for it."""

    loss: Tensor
    """What is minimised: ``masked_loss`` and its like over the frames that were heard, weighted."""
    masked_loss: Tensor
    """Mean cross-entropy over masked frames, in nats."""
    masked_accuracy: Tensor
    """Share of masked frames whose unit ranks first."""
    heard_accuracy: Tensor
    """The same of the frames that were not masked."""


class MaskedPrediction(nn.Module):
    """An encoder with what its training needs besides: mask vector, projection, one vector a unit.

    The score of unit c is the cosine of the projected frame with the unit's vector, over a temperature of 0.1.

    Args:
        encoder: the model.
        units: K.
        mask: spans to hide.
        heard_weight: of the loss over frames that are not hidden.
    """

    def __init__(self, encoder: Encoder, units: int, mask: MaskConfig, heard_weight: float = 0.0) -> None:
        super().__init__()
        width = encoder.shape.width
        self.encoder = encoder
        self.mask = SpanMask(width, mask)
        self.heard_weight = heard_weight
        self.projection = nn.Linear(width, width)
        self.unit_vectors = nn.Parameter(torch.empty(units, width).uniform_())

    def forward(self, wave: Tensor, units: Tensor) -> Prediction:
        """wave (B, N), units (B, T) int64 with -1 for none -> :class:`Prediction`."""
        last = self.encoder.shape.layers
        masked = self.mask.draw(*units.shape, wave.device)  # (B, T)
        vector = self.mask.vector
        out = self.encoder(
            wave,
            states=[last],
            replace=lambda features: torch.where(masked.unsqueeze(-1), vector.to(features.dtype), features),
        )
        frames = F.normalize(self.projection(out.states[last]).float(), dim=-1)
        vectors = F.normalize(self.unit_vectors.float(), dim=-1)
        with torch.autocast(wave.device.type, enabled=False):
            scores = frames @ vectors.t() / TEMPERATURE  # (B, T, K)
            losses = F.cross_entropy(scores.flatten(0, 1), units.flatten(), ignore_index=-1, reduction="none")
        known = units >= 0
        masked, heard = masked & known, ~masked & known
        right = scores.detach().argmax(-1) == units
        losses = losses.view_as(units)
        masked_loss = loss = _mean(losses, masked)
        if self.heard_weight:
            loss = masked_loss + self.heard_weight * _mean(losses, heard)
        return Prediction(loss, masked_loss.detach(), _mean(right.float(), masked), _mean(right.float(), heard))


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)
