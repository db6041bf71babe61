"""Batches for masked prediction: crops on frame borders, each with its units; what the encoder hears may be distorted.

Order and crops are the batch plan's of the distillation (data/batches.py): equal lengths, no padding, resumable.
Shapes: B clips, N samples, T frames, C codebooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from recipes.tiny_teachers.settings import HOP, MixSettings
from recipes.tiny_teachers.units import Units
from s3prl_ekd.data.batches import CropDataset
from s3prl_ekd.data.distort import Distorter
from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.data.plan import BatchPlan, BatchSpec
from s3prl_ekd.errors import EkdError
from s3prl_ekd.shape import EncoderShape


class FramePlan(BatchPlan):
    """The batch plan with crops that start on frame borders, where units start."""

    def __iter__(self) -> Iterator[BatchSpec]:
        for spec in super().__iter__():
            yield replace(spec, starts=tuple(start - start % HOP for start in spec.starts))


@dataclass
class UnitBatch:
    """What a step of masked prediction takes."""

    wave: Tensor
    """(B, N) float32."""
    units: Tensor
    """(B, C, T) int64; -1 where there is none."""
    epoch: int
    index: int

    def pin_memory(self) -> UnitBatch:
        """Called by the DataLoader: page-locked memory copies to a GPU without waiting."""
        self.wave, self.units = self.wave.pin_memory(), self.units.pin_memory()
        return self


class UnitCrops(Dataset[UnitBatch]):
    """``dataset[spec]`` is a whole batch, so that a worker makes whole batches.

    Args:
        table: the corpus.
        plan: its batches.
        codebooks: units of its clean utterances.
        shape: of the encoder, which counts frames.
        distorter: what it hears instead of the clean clip; None: the clip.
        mixing: parts of other clips of the batch on top; None: none.
        seed: of the mixing.
    """

    def __init__(
        self,
        table: LengthTable,
        plan: BatchPlan,
        codebooks: Sequence[Units],
        shape: EncoderShape,
        distorter: Distorter | None = None,
        mixing: MixSettings | None = None,
        seed: int = 0,
    ) -> None:
        self.crops = CropDataset(table, plan, distorter)
        self.codebooks, self.shape, self.mixing, self.seed = codebooks, shape, mixing, seed

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, spec: BatchSpec) -> UnitBatch:
        """Raises EkdError when a file can't be read: it could be when the units were made."""
        batch = self.crops[spec]
        if batch.skipped:
            raise EkdError(batch.skipped[0])
        frames = self.shape.frames(spec.samples)
        units = [
            [book.crop(item, start // HOP, frames) for book in self.codebooks]
            for item, start in zip(spec.items, spec.starts, strict=True)
        ]
        wave = batch.wave
        if self.mixing is not None:
            # crops are drawn from (seed, epoch, index) already; SeedSequence ignores a trailing 0, so the mark is 1
            rng = np.random.default_rng([self.seed, spec.epoch, spec.index, 1])
            wave = mix_utterances(wave, self.mixing, rng)
        return UnitBatch(wave, torch.from_numpy(np.array(units)).long(), spec.epoch, spec.index)


def mix_utterances(wave: Tensor, settings: MixSettings, rng: np.random.Generator) -> Tensor:
    """Add a part of another clip to some clips. (B, N) -> (B, N); WavLM (arXiv 2110.13900), algorithm 1.

    The energies that the ratio compares are those of the whole clip and of the part before scaling.
    """
    clips, samples = wave.shape
    if clips < 2:
        return wave
    mixed = wave.clone()
    for clip in np.flatnonzero(rng.random(clips) < settings.probability).tolist():
        other = (clip + int(rng.integers(1, clips))) % clips
        length = int(rng.integers(1, max(2, int(settings.longest * samples) + 1)))
        source, target = rng.integers(0, samples - length + 1, size=2).tolist()
        part = wave[other, source : source + length]
        energy, added = wave[clip].square().mean().item(), part.square().mean().item()
        if added > 0:
            lowest, highest = settings.ratio
            scale = (energy / added) ** 0.5 * 10 ** (-rng.uniform(lowest, highest) / 20)
            mixed[clip, target : target + length] += scale * part
    return mixed
