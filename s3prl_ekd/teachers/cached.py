"""Teachers behind a target cache: asked for what is not on the disk yet, and gone once everything is.

How it is stored is the business of data/target_cache.py and target_folder.py; what a cache must match, of
fingerprint.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from s3prl_ekd.config import DataConfig
from s3prl_ekd.data.batches import Batch
from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.data.target_cache import TargetCache
from s3prl_ekd.data.target_folder import VALIDATION, CacheFolder, other_targets, row_sizes
from s3prl_ekd.data.target_layout import TargetLayout, TeacherPart
from s3prl_ekd.data.windows import cut_windows
from s3prl_ekd.distill.targets import TeacherStates
from s3prl_ekd.distributed import Ranks
from s3prl_ekd.errors import EkdError
from s3prl_ekd.teachers.build import TeacherPlan, freeze, load_teachers
from s3prl_ekd.teachers.ensemble import FrozenTeachers
from s3prl_ekd.teachers.fingerprint import difference, fingerprint

logger = logging.getLogger(__name__)


class CachedTeachers(nn.Module):
    """Targets of a batch from the cache; where one is missing, from the teachers, and from then on from the cache.

    What training sees is always what the cache holds, rounded to its precision, in the first epoch too. So a run
    that is killed while filling and resumed repeats itself bit for bit, whichever rows it finds stored.

    Rows are stored whole. Nothing is stored where the run wants only some of the cache's teachers, or where a full
    cache is read-only: the targets of audio mended since are then computed each time, rounded as stored ones are, and
    the teachers loaded for them stay for the run. Otherwise they are dropped at the end of the epoch or, of held-out
    speech, of the pass over it (:meth:`release`).

    Args:
        plan: makes the ensemble again, should audio become readable that was not when its turn came.
        cache: open.
        teachers: the ensemble, without encoders where the cache is complete.
    """

    def __init__(self, plan: TeacherPlan, cache: TargetCache, teachers: FrozenTeachers) -> None:
        super().__init__()
        self.plan, self.cache = plan, cache
        self.teachers: FrozenTeachers | None = teachers if len(teachers.encoders) else None
        self._epoch: int | None = None  # in which they were loaded again

    def load(self) -> FrozenTeachers:
        """The ensemble once more."""
        return freeze(self.plan, load_teachers(self.plan))

    def forward(self, wave: Tensor, batch: Batch) -> TeacherStates:
        """What the teachers hear (B, N), and the batch it belongs to -> teacher -> layer -> (B, T, D)."""
        rows = self.fill(wave, batch)
        if rows is None:
            rows = batch.targets if batch.targets is not None else self.cache.read(batch.windows)
        if not self.cache.held_out and self._epoch != batch.epoch:
            self.release()
        return self.cache.wanted.unpack(rows.to(wave.device, non_blocking=True), wave.shape[1])

    def release(self) -> None:
        """Drop the teachers where the cache has, or can take, every target that will be asked for."""
        again = self._epoch is not None  # what they were loaded for can be asked for again where it is not stored
        if self.teachers is None or not self.cache.complete or not self.cache.stores:
            return
        if not again or self.cache.writable():
            logger.info("[ekd] the target cache %s is complete: it needs no teachers any more", self.cache.place.path)
            self.teachers = None

    def fill(self, wave: Tensor, batch: Batch) -> Tensor | None:
        """Store what a batch lacks; its rows (B, R) where it lacks something that this cache can't take, else None."""
        if batch.unread:
            self.cache.mark_unreadable(batch.unread)
        missing = np.flatnonzero(~self.cache.stored(batch.windows)).tolist()
        if not missing:
            return None
        if self.teachers is None:
            logger.info("[ekd] audio became readable that has no targets yet: loading the teachers")
            self.teachers = self.load().to(wave.device)
            self._epoch = batch.epoch
        # the whole batch, though some may be stored: the last bits of a result depend on the batch that it is in
        states = self.teachers(wave)
        if not self.cache.stores or not self.cache.writable():
            return self.cache.wanted.pack(states, wave.shape[1])
        rows = self.cache.layout.pack(states, wave.shape[1])
        self.cache.store([batch.windows[row] for row in missing], rows[missing])
        return None


def open_caches(
    plan: TeacherPlan, table: LengthTable, held_out: LengthTable | None, data: DataConfig
) -> tuple[TargetCache | None, TargetCache | None]:
    """The cache of what is trained on, and that of what is held out, as far as they are asked for.

    Raises:
        EkdError: as :func:`open_cache`.
    """
    if plan.config.ekd.cache_targets is None:
        return None, None
    folder = Path(plan.config.ekd.cache_targets)
    cache = open_cache(plan, table, data, folder)
    if held_out is None:
        return cache, None
    return cache, open_cache(plan, held_out, data, folder / VALIDATION, held_out=True)


def open_cache(
    plan: TeacherPlan, table: LengthTable, data: DataConfig, folder: Path, held_out: bool = False
) -> TargetCache:
    """Open the cache in a folder, or make an empty one; ``held_out``: it is that of held-out speech.

    Raises:
        EkdError: it is another configuration's, not writable, too large for its disk, being filled by another run, or
            there are several processes.
    """
    config, key = plan.config, f"{plan.file}: ekd.cache_targets"
    if Ranks.current().size > 1:
        raise EkdError(f"{key}: a target cache is for one process, not for torchrun's several; use null")
    layout = wanted = _layout(plan)
    place, lock = CacheFolder(folder, key), None
    there = place.read_index()
    if there is None:
        windows = cut_windows(table.samples, config.task.sequence_length, data.train_batch_size, data.batch_seconds)
        size = int(row_sizes(windows, layout).sum())
        place.make(size)
        lock = place.lock()
        there = place.read_index()  # another run may have made it meanwhile
    if there is None:
        place.create(windows, layout, fingerprint(plan, table, data, download=True))
        logger.info("[ekd] new target cache in %s: %d windows, %.2f GB", folder, len(windows), size / 1e9)
    else:  # a complete one does not need the weights, so they are not downloaded to be compared
        complete = place.is_complete()
        ours = fingerprint(plan, table, data, download=not complete)
        other = difference(there.fingerprint, ours, some=complete)
        if other is not None:
            advice = other_targets(held_out)
            if not held_out and difference(there.fingerprint, ours, some=True) is None:
                advice += ", or let the run that fills it come to its end: a full cache serves some of its teachers too"
            raise EkdError(f"{key}: {folder} holds the targets of another run: {other}; {advice}")
        _same_states(there.parts, wanted, f"{key}: {folder}")
        if difference(there.fingerprint, ours) is not None:
            layout = TargetLayout(there.parts, config.ekd.cache_precision, layout.key)
    cache = TargetCache(place, layout, table.paths, lock, wanted, held_out)
    logger.info("[ekd] %s", cache.progress())
    return cache


def _same_states(there: Sequence[TeacherPart], wanted: TargetLayout, where: str) -> None:
    """Refuse states of another size, which is all that can be compared while the weights are not downloaded."""
    known = {part.name: part for part in there}
    for part in wanted.parts:
        old = known[part.name]
        if old.width != part.width or any(old.frames(length) != part.frames(length) for length in old.lengths):
            raise EkdError(
                f"{where} holds the targets of another run: the states of {part.name} are {old.width} wide there, "
                f"{part.width} now, or have other frames; name another folder"
            )


def _layout(plan: TeacherPlan) -> TargetLayout:
    shapes = {name: source.shape for name, source in plan.sources.items()}
    parts = [
        TeacherPart(teacher.name, teacher.layers, teacher.width, shapes[teacher.name].frames) for teacher in plan.layers
    ]
    return TargetLayout(parts, plan.config.ekd.cache_precision, f"{plan.file}: ekd.cache_precision")
