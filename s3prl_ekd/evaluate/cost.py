"""Parameters and MACs of an upstream as the SUPERB challenge counts them, to set beside its scores.

The counting is in ``macs/counting.py``; here an evaluation's upstream is turned into the shape that is counted.
"""

from __future__ import annotations

from pathlib import Path

from s3prl_ekd.ensemble_file import ENSEMBLE
from s3prl_ekd.evaluate.models import STUDENT, WITH_HEADS, Upstream, encoder_shape
from s3prl_ekd.macs.counting import FBANK, HUB_SHAPES, Cost, cost


def upstream_cost(upstream: Upstream) -> dict[str, int] | None:
    """``{"params", "macs"}`` over the challenge's 32 utterances, or ``None`` where the model's shape is not known.

    Raises:
        EkdError: our student's checkpoint or configuration is not readable.
    """
    found = _cost(upstream)
    return None if found is None else {"params": found.params, "macs": found.macs}


def _cost(upstream: Upstream) -> Cost | None:
    name, checkpoint = upstream.name, upstream.checkpoint
    if name.startswith(STUDENT) and checkpoint is not None:
        from s3prl_ekd.macs.models import checkpoint_cost  # torch: not needed for --help

        return checkpoint_cost(Path(checkpoint), heads=name == WITH_HEADS)
    shape = encoder_shape(upstream)
    if shape is not None:
        return cost(shape)
    if name == ENSEMBLE and checkpoint is not None:
        from s3prl_ekd.macs.models import ensemble_cost

        return ensemble_cost(Path(checkpoint))
    if name == "fbank":
        return FBANK
    return HUB_SHAPES[name].cost() if checkpoint is None and name in HUB_SHAPES else None
