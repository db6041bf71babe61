"""The options beyond the paper as checked models: keys of ``ekd`` and ``student`` in config_model.yaml.

All are off by default: without them training is exactly the paper's. Each has a file of its own in ``distill/``; the
mask, in ``model/masking.py``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from s3prl_ekd.checked import Checked


class TargetsConfig(Checked):
    """``ekd.targets``: what of a teacher is predicted, and on which scale."""

    normalise: Literal["none", "standardise", "phi_s"] = "none"
    """none: states as they are; standardise: mean 0 and standard deviation 1 per channel; phi_s: centred, rotated so
    that all channels have one variance, and scaled by one number. Statistics are each (teacher, layer)'s own."""
    momentum: float = Field(default=0.001, ge=0, lt=1)
    """Least weight of the newest batch in the running statistics; 0 weighs all frames ever seen equally."""
    fit_batches: int = Field(default=200, ge=1)
    """phi_s: batches after which its rotation is computed and kept for good."""
    tap: Literal["hidden", "ffn"] = "hidden"
    """hidden: hidden state l; ffn: output of layer l's feed-forward block before its residual and norm."""


class DroppingConfig(Checked):
    """``ekd.teacher_dropping``: each clip learns from its worst-predicted teacher, and from others by chance."""

    probability: float = Field(default=0.5, ge=0, le=1)
    """Chance that a teacher which is not the worst-predicted one is left out, drawn for each clip."""


class BalanceConfig(Checked):
    """``ekd.balance``: loss weights become shares of the gradient."""

    decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the running mean of each head's gradient norm, per step."""


class MaskConfig(Checked):
    """``student.mask``: in training, spans of the student's features are replaced by a learned vector."""

    probability: float = Field(default=0.065, gt=0, le=1)
    """Chance of each frame to begin a span (wav2vec 2.0: 0.065)."""
    length: int = Field(default=10, ge=1)
    """Frames of a span; spans may overlap (wav2vec 2.0: 10)."""
