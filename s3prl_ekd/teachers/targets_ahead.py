"""Filling a target cache without a student: what ``s3prl-ekd targets`` does with a checked configuration."""

from __future__ import annotations

import torch
from rich.progress import track

from s3prl_ekd.config import DataConfig, ModelConfig
from s3prl_ekd.console import Console
from s3prl_ekd.data.batches import make_loader
from s3prl_ekd.data.lengths import LengthTable, read_held_out, read_lengths
from s3prl_ekd.data.plan import BatchPlan, BatchSpec
from s3prl_ekd.data.skipped import SkippedAudio
from s3prl_ekd.device import use_device
from s3prl_ekd.teachers.build import check_teachers, freeze, load_teachers
from s3prl_ekd.teachers.cached import CachedTeachers, open_caches


def fill_ahead(config: ModelConfig, data: DataConfig, device_name: str, model_file: str, runner_file: str) -> None:
    """Fill the cache that the configuration names, from where an earlier call or run left it.

    Args:
        config: with ``ekd.cache_targets``.
        data: what the targets are of.
        device_name: where the teachers compute.
        model_file, runner_file: where the two configurations come from, for messages.

    Raises:
        EkdError: teachers, audio, device or cache do not fit.
    """
    plan = check_teachers(config, model_file)
    device = use_device(device_name)
    table = read_lengths(data, runner_file)
    held_out = read_held_out(data, table, runner_file)
    caches = open_caches(plan, table, held_out, data)
    both = zip(caches, (table, held_out), strict=True)
    jobs = [(one, rows) for one, rows in both if one and rows and not one.full and one.stores and one.writable()]
    # what lacks only audio that could not be read asks for teachers once it can be
    waited_for = any(not one.complete for one, _ in jobs)
    frozen = freeze(plan, load_teachers(plan) if waited_for else {}).to(device)
    for cache, rows in jobs:
        _fill(CachedTeachers(plan, cache, frozen), rows, data, device)


def _fill(teachers: CachedTeachers, table: LengthTable, data: DataConfig, device: torch.device) -> None:
    """Let the teachers compute what their cache lacks of a table."""
    cache = teachers.cache

    def waiting(plan: BatchPlan) -> list[BatchSpec]:
        return [spec for spec in plan if not cache.stored(spec.windows).all()]

    # no distorter: the teachers hear clean audio wherever targets are kept; nor a length: its windows are cut already
    loader, _ = make_loader(table, data, 0, cache=cache, select=waiting)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    skipped = SkippedAudio(say=console.print)
    try:
        for batch in track(loader, "targets", total=len(loader), console=console):
            skipped.tell(batch.skipped)
            teachers.fill(batch.wave.to(device, non_blocking=True), batch)
    finally:
        cache.flush()
        console.print(f"[ekd] {cache.progress()}")
