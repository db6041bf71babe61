"""Residual head sets: heads that predict the difference of two teachers, beside the sets of the mode.

``target(a_minus_b, l) = state_l(a) - state_l(b)``, layers paired by position. What two teachers agree on is in every
target already; the difference asks the student for what one of them alone knows. (Inter-teacher differences as extra
targets: Ensemble Knowledge Distillation with teacher differences, ISCSLP 2024, openreview 9Q4d3meZMW; its abstract is
all that could be read, so the form of the heads is ours: ordinary head sets, weighted like any other.)
With normalised targets it is the difference of the normalised states, so that neither teacher's scale decides.
"""

from __future__ import annotations

from collections.abc import Sequence

from s3prl_ekd.distill.targets import TargetSet, TeacherLayers
from s3prl_ekd.errors import EkdError
from s3prl_ekd.spelling import repeated


def residual_name(pair: Sequence[str]) -> str:
    """The head set of a pair [a, b] of teacher names."""
    return "_minus_".join(pair)


def plan_residuals(pairs: Sequence[Sequence[str]], teachers: Sequence[TeacherLayers]) -> list[TargetSet]:
    """One head set, named ``a_minus_b``, for each pair [a, b] of teacher names.

    Raises:
        EkdError: a name is no teacher's, or two teachers differ in width or in their number of layers.
    """
    by_name = {teacher.name: teacher for teacher in teachers}
    sets = []
    for index, pair in enumerate(pairs):
        where = f"ekd.residual_heads[{index}]"
        unknown = [name for name in pair if name not in by_name]
        if unknown or len(set(pair)) != 2:
            raise EkdError(f"{where}: {list(pair)} must be two of the teachers {', '.join(by_name)}")
        a, b = (by_name[name] for name in pair)
        if a.width != b.width or len(a.layers) != len(b.layers):
            raise EkdError(
                f"{where}: differences need one width and equally many layers, not {a.name} {a.width} {list(a.layers)} "
                f"and {b.name} {b.width} {list(b.layers)}"
            )
        paired = list(zip(a.layers, b.layers, strict=True))
        labels = tuple(str(x) if x == y else f"{x}-{y}" for x, y in paired)
        sources = tuple(((a.name, x), (b.name, y)) for x, y in paired)
        sets.append(TargetSet(residual_name(pair), labels, a.width, sources, "difference"))
    doubled = repeated([target.name for target in sets])
    if doubled is not None:
        raise EkdError(f"ekd.residual_heads: {doubled} is listed twice")
    return sets
