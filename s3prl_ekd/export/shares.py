"""How much of each student goes into a merged one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from s3prl_ekd.errors import EkdError


def shares_of(files: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    """``weights`` (None: equal ones) scaled to add to 1.

    Raises:
        EkdError: there are not two files, or not one weight for each, none negative and not all 0.
    """
    if len(files) < 2:
        raise EkdError("merge: expected two checkpoints or more")
    if weights is None:
        return [1.0 / len(files)] * len(files)
    if len(weights) != len(files) or min(weights) < 0 or not 0 < sum(weights) < math.inf:  # nor NaN
        raise EkdError(f"--weights: expected {len(files)} numbers, none negative and not all 0, not {list(weights)}")
    return [weight / sum(weights) for weight in weights]
