"""How the targets of one clip lie side by side in memory and on disk: one row of numbers, in one half precision.

A batch of equal-length clips is one tensor (B, R), so that it is read, pinned and sent to the device in one piece.
What is kept are the teachers' raw states: every mode and every normalisation makes its targets from them.

Shapes: B clips, N samples, T frames of a teacher, D its channels, R numbers a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3prl_ekd.config import CachePrecision
from s3prl_ekd.distill.targets import TeacherStates
from s3prl_ekd.errors import EkdError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TeacherPart:
    """What a row holds of one teacher: its layers one after the other, each (T, D)."""

    name: str
    layers: tuple[int, ...]
    width: int
    """D."""
    frames: Callable[[int], int]
    """T of a clip of so many samples."""
    lengths: tuple[int, ...] = ()
    """Of a part read from a cache's index: the clip lengths in samples that ``frames`` knows; empty: it knows all."""


@dataclass(frozen=True)
class TargetLayout:
    """The rows of one ensemble."""

    parts: Sequence[TeacherPart]
    precision: CachePrecision
    key: str = "config_model.yaml: ekd.cache_precision"
    """For messages."""

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    def numbers(self, samples: int) -> int:
        """R for clips of so many samples."""
        return sum(len(part.layers) * part.frames(samples) * part.width for part in self.parts)

    def bytes(self, samples: int) -> int:
        """Size of one clip's row."""
        return self.numbers(samples) * self.dtype.itemsize

    def columns(self, wanted: TargetLayout, samples: int) -> list[tuple[int, int]]:
        """First and last + 1 of the numbers of a row that another layout's row is made of, in that one's order.

        Raises:
            KeyError: this one lacks a teacher or a layer of the other's.
        """
        places: dict[tuple[str, int], tuple[int, int]] = {}
        first = 0
        for part in self.parts:
            size = part.frames(samples) * part.width
            for layer in part.layers:
                places[part.name, layer] = (first, first + size)
                first += size
        found: list[tuple[int, int]] = []
        for first, last in (places[part.name, layer] for part in wanted.parts for layer in part.layers):
            if found and found[-1][1] == first:  # neighbours are read in one go
                first = found.pop()[0]
            found.append((first, last))
        return found

    def pack(self, states: TeacherStates, samples: int) -> Tensor:
        """teacher -> layer -> (B, T, D) in any precision, of clips of so many samples -> (B, R), on the CPU.

        Raises:
            EkdError: a number does not fit: beyond fp16's 65,504, or no number in the first place.
        """
        columns = []
        for part in self.parts:
            for layer in part.layers:
                column = states[part.name][layer].to(self.dtype).flatten(1)
                if not torch.isfinite(column).all():
                    raise EkdError(
                        f"{self.key}: {self.precision}: state {layer} of teacher {part.name!r} holds a number that is "
                        f"infinite or too large for it ({torch.finfo(self.dtype).max:.3g}); use bf16, or null for "
                        "ekd.cache_targets"
                    )
                columns.append(column)
        rows = torch.cat(columns, dim=1)
        assert rows.shape[1] == self.numbers(samples), "a teacher gave another number of frames than its shape says"
        return rows.cpu()

    def unpack(self, rows: Tensor, samples: int) -> TeacherStates:
        """The reverse of :meth:`pack`, as views of ``rows`` (B, R) on whatever device it is."""
        states: TeacherStates = {}
        first = 0
        for part in self.parts:
            frames = part.frames(samples)
            states[part.name] = {}
            for layer in part.layers:
                last = first + frames * part.width
                states[part.name][layer] = rows[:, first:last].unflatten(1, (frames, part.width))
                first = last
        return states
