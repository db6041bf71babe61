"""Masked prediction: hide spans of frames from the transformer, have it tell their units (HuBERT, arXiv 2106.07447).

Shapes: B clips, N samples, T frames, D width, C codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.config import MaskConfig
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.model.masking import SpanMask


@dataclass
class Prediction:
    """Scalars of one batch, means over codebooks, on the device: nothing here waits for it."""

    loss: Tensor
    """What is minimised: ``masked_loss`` and its like over the frames that were heard, weighted."""
    masked_loss: Tensor
    """Mean cross-entropy over masked frames, in nats."""
    masked_accuracy: Tensor
    """Share of masked frames whose unit ranks first."""
    heard_accuracy: Tensor
    """The same of the frames that were not masked."""


class MaskedPrediction(nn.Module):
    """An encoder with what its training needs besides: the mask vector and a linear classifier a codebook.

    HuBERT scores a unit by a cosine over a temperature; linear scores, as MelHuBERT's (arXiv 2211.09944), learn faster
    when there are few steps (docs/teachers.md).

    Args:
        encoder: the model.
        codebooks: units in each.
        mask: spans to hide.
        heard_weight: of the loss over frames that are not hidden.
    """

    def __init__(self, encoder: Encoder, codebooks: Sequence[int], mask: MaskConfig, heard_weight: float = 0.0) -> None:
        super().__init__()
        width = encoder.shape.width
        self.encoder = encoder
        self.mask = SpanMask(width, mask)
        self.heard_weight = heard_weight
        self.classifiers = nn.ModuleList(nn.Linear(width, units) for units in codebooks)

    def forward(self, wave: Tensor, units: Tensor) -> Prediction:
        """wave (B, N), units (B, C, T) int64 with -1 for none -> :class:`Prediction`."""
        last = self.encoder.shape.layers
        masked = self.mask.draw(units.shape[0], units.shape[2], wave.device)  # (B, T)
        vector = self.mask.vector
        out = self.encoder(
            wave,
            states=[last],
            replace=lambda features: torch.where(masked.unsqueeze(-1), vector.to(features.dtype), features),
        )
        by_book, hits = [], []
        for book, classify in enumerate(self.classifiers):
            scores = classify(out.states[last]).float().transpose(1, 2)  # (B, units, T)
            by_book.append(F.cross_entropy(scores, units[:, book], ignore_index=-1, reduction="none"))
            hits.append(scores.detach().argmax(1) == units[:, book])
        losses, right = torch.stack(by_book, dim=1), torch.stack(hits, dim=1)  # (B, C, T)
        known = units >= 0
        masked, heard = masked.unsqueeze(1) & known, ~masked.unsqueeze(1) & known
        masked_loss = loss = _mean(losses, masked)
        if self.heard_weight:
            loss = masked_loss + self.heard_weight * _mean(losses, heard)
        return Prediction(loss, masked_loss.detach(), _mean(right.float(), masked), _mean(right.float(), heard))


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)
