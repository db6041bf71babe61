"""Batches read from the disk by worker processes, as ``plan.py`` says: the same whatever the number of workers.

Shapes: B clips, N samples.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from s3prl_ekd import data_workers
from s3prl_ekd.audio import SAMPLE_RATE, AudioError, read_audio
from s3prl_ekd.config import DataConfig
from s3prl_ekd.data.distort import Distorter
from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.data.plan import BatchPlan, BatchSpec
from s3prl_ekd.data.rows import Rows, batch_memory
from s3prl_ekd.device import usable_cpus

if TYPE_CHECKING:
    from s3prl_ekd.data.target_cache import TargetCache

logger = logging.getLogger(__name__)

LACKING = BatchPlan.FRAME
"""Longest end of a clip, in samples, that may be missing and is filled with zeros: resampling may end early."""


@dataclass
class Batch:
    """What the expert gets."""

    wave: Tensor
    """(B, N) float32, 16 kHz: what the student hears."""
    epoch: int
    index: int
    skipped: list[str] = field(default_factory=list)
    """Files that could not be read, with the reason."""
    distinct_teacher_wave: Tensor | None = None
    """(B, N) what the teachers hear, where that differs."""
    windows: tuple[int, ...] = ()
    """Under a target cache, the number of each clip's window; ``unread`` those whose audio could not be read."""
    unread: tuple[int, ...] = ()
    targets: Tensor | None = None
    """(B, R) targets from the cache, where all of them are there (target_layout.py)."""
    is_placeholder: bool = False
    """No clip of the batch, or of a rank's share of it, could be read: silence, which weighs nothing."""

    @property
    def clips(self) -> int:
        """Clips to learn from."""
        return 0 if self.is_placeholder else len(self.wave)

    @property
    def teacher_wave(self) -> Tensor:
        """(B, N) what the teachers hear: ``wave`` itself without distortion, or with the same for both."""
        return self.wave if self.distinct_teacher_wave is None else self.distinct_teacher_wave

    def pin_memory(self) -> Batch:
        """Called by the DataLoader: page-locked memory copies to a GPU without waiting."""
        self.wave = self.wave.pin_memory()
        if self.distinct_teacher_wave is not None:
            self.distinct_teacher_wave = self.distinct_teacher_wave.pin_memory()
        if self.targets is not None:
            self.targets = self.targets.pin_memory()
        return self

    @property
    def seconds(self) -> float:
        """Audio in the batch."""
        return self.clips * self.wave.shape[1] / SAMPLE_RATE


class CropDataset(Dataset[Batch]):
    """Reads and distorts the crops of a batch; ``dataset[spec]`` is a whole batch, so a worker makes whole batches.

    Its length is the number of batches of an epoch: s3prl's runner divides by it to count epochs.
    """

    def __init__(
        self, table: LengthTable, plan: BatchPlan, distorter: Distorter | None = None, cache: TargetCache | None = None
    ) -> None:
        self.table, self._batches, self.distorter, self.cache = table, len(plan), distorter, cache

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, spec: BatchSpec) -> Batch:
        """Files that cannot be read are left out and told in ``skipped``; where none can, silence stands in.

        Raises:
            EkdError: a worker has no shared memory for it, or the target cache cannot be read.
        """
        waves, heard_by_teachers = (Rows(len(spec.items), spec.samples) for _ in range(2))
        two_hearings = self.distorter is not None and self.distorter.config.setup != "same"
        skipped, kept = [], []
        for position, (item, start) in enumerate(zip(spec.items, spec.starts, strict=True)):
            try:
                wave = _read_crop(self.table.paths[item], start, spec.samples)
            except AudioError as error:
                skipped.append(str(error))
                continue
            student_wave = teacher_wave = wave
            if self.distorter is not None:
                try:
                    window = start if spec.windows else 0
                    student_wave, teacher_wave = self.distorter.hear(wave, spec.epoch, item, window)
                except AudioError as error:
                    skipped.append(f"a clip's distortion: {error}")  # the same for all clips that draw the file
            kept.append(position)
            waves.append(student_wave)
            if two_hearings:
                heard_by_teachers.append(teacher_wave)
        if not waves:
            silence = batch_memory((1, spec.samples)).zero_()
            return Batch(silence, spec.epoch, spec.index, skipped, unread=spec.windows, is_placeholder=True)
        batch = Batch(waves.tensor(), spec.epoch, spec.index, skipped)
        if two_hearings:
            batch.distinct_teacher_wave = heard_by_teachers.tensor()
        if self.cache is not None:
            batch.windows = tuple(spec.windows[position] for position in kept)
            batch.unread = tuple(window for window in spec.windows if window not in batch.windows)
            self.cache.attach(batch)
        return batch


def _read_crop(path: str, start: int, samples: int) -> np.ndarray:
    """(samples,) of a file from a sample on; of an end that may be missing, zeros. Raises AudioError."""
    wave = read_audio(path, start, samples)
    missing = samples - len(wave)
    if missing > LACKING:
        raise AudioError(f"{path}: shorter than its length CSV says")
    return np.pad(wave, (0, missing)) if missing else wave


class TimedLoader(DataLoader[Batch]):
    """A DataLoader that knows how long it was waited for: ``waited``, seconds since it was last set to 0.

    A worker's death is raised where a batch is waited for, never in the middle of a step.
    """

    waited = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names a class of its own
        batches = super().__iter__()
        with data_workers.unheard():
            while True:
                start = time.perf_counter()
                with data_workers.heard():
                    batch = next(batches, None)
                self.waited += time.perf_counter() - start
                if batch is None:
                    return
                yield batch


def make_loader(
    table: LengthTable,
    config: DataConfig,
    sequence_length: int,
    distorter: Distorter | None = None,
    cache: TargetCache | None = None,
    select: Callable[[BatchPlan], Iterable[BatchSpec]] | None = None,
    keep_workers: bool = True,
) -> tuple[TimedLoader, BatchPlan]:
    """The DataLoader for s3prl's loop, and the plan that it follows.

    With a target cache it is the plan of its windows; ``select`` picks some of the batches, or a rank's share of each.
    Without ``keep_workers`` the worker processes end with each pass over the data.
    """
    if cache is None:
        plan = BatchPlan(table.samples, config.train_batch_size, config.batch_seconds, sequence_length, config.seed)
    else:
        plan = cache.plan(config)
    workers = min(config.num_workers, usable_cpus())  # more would take turns; batches are the same of any number
    loader = TimedLoader(
        CropDataset(table, plan, distorter, cache),
        batch_size=None,  # the dataset makes whole batches
        sampler=plan if select is None else select(plan),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=keep_workers and workers > 0,
        # each pass over a DataLoader draws a number; from the global generator, a resumed run would draw once more
        generator=torch.Generator(),
    )
    return loader, plan
