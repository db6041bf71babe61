"""Parameters and MACs of an upstream as the SUPERB challenge counts them, to set beside its scores.

The counting is in ``macs/counting.py``; here an evaluation's upstream is turned into the shape that is counted.
"""

from __future__ import annotations

from pathlib import Path

from s3prl_ekd.macs.counting import FBANK, HUB_SHAPES, cost


def upstream_cost(
    name: str, checkpoint: Path | str | None = None, model_config: Path | None = None
) -> dict[str, int] | None:
    """``{"params", "macs"}`` over the challenge's 32 utterances, or ``None`` where the model's shape is not known.

    Raises:
        EkdError: our student's checkpoint or configuration is not readable.
    """
    if name.startswith("ekd_student") and checkpoint is not None:
        from s3prl_ekd.macs.models import model_cost  # torch: not needed for --help

        found = model_cost(str(checkpoint))
    elif name.startswith("ekd_student") and model_config is not None:
        from s3prl_ekd.student_checkpoint import untrained_student

        found = cost(untrained_student(model_config).shape)
    elif name == "ekd_teacher" and checkpoint is not None:
        from s3prl_ekd.teachers.sources import describe

        found = cost(describe(str(checkpoint), "--teacher").encoder_shape)
    elif name == "fbank":
        found = FBANK
    elif checkpoint is None and name in HUB_SHAPES:
        shape = HUB_SHAPES[name]
        found = cost(shape.shape, shape.heads, shape.unused)
    else:
        return None
    return {"params": found.params, "macs": found.macs}
