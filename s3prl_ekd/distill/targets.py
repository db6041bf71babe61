"""From teacher states to targets: which states each head set predicts, and how they are put together.

The :class:`TargetSet` objects are made once from the configuration; their ``gather`` is applied to every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from s3prl_ekd.config import Mode
from s3prl_ekd.errors import EkdError

MAX_FRAME_DIFFERENCE = 2  # teacher and student share the hop; front ends of one family differ by a frame at most

TeacherStates = dict[str, dict[int, Tensor]]
"""teacher name -> layer -> (B, T, D_teacher)."""


@dataclass(frozen=True)
class TeacherLayers:
    """What the plan needs to know of one teacher."""

    name: str
    layers: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class TargetSet:
    """One head set and where its targets come from."""

    name: str
    """Teacher name under multi_head, 'average' or 'concat', 'a_minus_b': the first half of every logged key."""
    labels: tuple[str, ...]
    """One per head: the layer, '4'; where teachers pair different layers, '4+8'."""
    width: int
    """Channels of each target."""
    sources: tuple[tuple[tuple[str, int], ...], ...]
    """For each head the (teacher, layer) states that make its target."""
    combine: Literal["mean", "concat", "single", "difference"]
    reads: tuple[int, ...] = ()
    """For each head the student's hidden state that it reads; empty: all read the last one."""

    def gather(self, states: TeacherStates) -> Tensor:
        """Targets (B, n, T, width) of this set."""
        heads = []
        for sources in self.sources:
            parts = [states[teacher][layer] for teacher, layer in sources]
            if self.combine == "single":
                heads.append(parts[0])
            elif self.combine == "concat":
                heads.append(torch.cat(parts, dim=-1))
            elif self.combine == "difference":  # residual.py
                heads.append(parts[0].float() - parts[1].float())
            else:  # features are averaged, not losses; in fp32, since bf16 sums of three lose a bit
                heads.append(torch.stack([part.float() for part in parts]).mean(0))
        return torch.stack(heads, dim=1)


def plan_targets(mode: Mode, teachers: Sequence[TeacherLayers]) -> list[TargetSet]:
    """Lay out the head sets of a mode.

    ========================  =================================================  ==========================
    mode                      target of head l                                   head sets
    ========================  =================================================  ==========================
    layerwise_average         mean over teachers of state l                      one, 'average'
    layerwise_concat          states l of all teachers side by side              one, 'concat', widths added
    multi_head                state l of teacher t                               one per teacher
    ========================  =================================================  ==========================

    Raises:
        EkdError: averaged teachers differ in width, or joined teachers in their number of layers.
    """
    if mode == "multi_head":
        return [
            TargetSet(t.name, tuple(map(str, t.layers)), t.width, tuple(((t.name, l),) for l in t.layers), "single")
            for t in teachers
        ]
    counts = {len(teacher.layers) for teacher in teachers}
    if len(counts) > 1:
        named = ", ".join(f"{t.name} {list(t.layers)}" for t in teachers)
        raise EkdError(f"ekd.teachers: {mode} pairs layers by position, so all need equally many: {named}")
    widths = {teacher.width for teacher in teachers}
    if mode == "layerwise_average" and len(widths) > 1:
        named = ", ".join(f"{t.name} {t.width}" for t in teachers)
        raise EkdError(f"ekd.mode: layerwise_average needs teachers of one width, not {named}; use multi_head")
    paired = list(zip(*(teacher.layers for teacher in teachers), strict=True))
    labels = tuple(str(pair[0]) if len(set(pair)) == 1 else "+".join(map(str, pair)) for pair in paired)
    sources = tuple(tuple((t.name, l) for t, l in zip(teachers, pair, strict=True)) for pair in paired)
    if mode == "layerwise_average":
        return [TargetSet("average", labels, teachers[0].width, sources, "mean")]
    return [TargetSet("concat", labels, sum(t.width for t in teachers), sources, "concat")]


def align_frames(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Trim both to the shorter one when they differ by at most two frames.

    Args:
        prediction, target: (B, n, T, W) with their own T.

    Raises:
        EkdError: they differ by more; both shapes are named.
    """
    ours, theirs = prediction.shape[2], target.shape[2]
    if ours == theirs:
        return prediction, target
    if abs(ours - theirs) > MAX_FRAME_DIFFERENCE:
        raise EkdError(
            f"student and teacher frames differ by more than {MAX_FRAME_DIFFERENCE}: "
            f"predictions {tuple(prediction.shape)}, targets {tuple(target.shape)} (clips, heads, frames, channels)"
        )
    frames = min(ours, theirs)
    return prediction[:, :, :frames], target[:, :, :frames]
