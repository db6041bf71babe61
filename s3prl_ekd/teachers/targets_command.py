"""``s3prl-ekd targets``: the teachers compute a run's targets ahead of it; no student is trained."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from s3prl_ekd.checked import read_yaml
from s3prl_ekd.config import DataConfig, check_runner_config, load_model_config
from s3prl_ekd.data.batches import make_loader
from s3prl_ekd.data.lengths import LengthTable, read_held_out, read_lengths
from s3prl_ekd.data.plan import BatchPlan, BatchSpec
from s3prl_ekd.device import default_device, find_device
from s3prl_ekd.errors import EkdError
from s3prl_ekd.teachers.build import check_teachers, freeze, load_teachers
from s3prl_ekd.teachers.cached import CachedTeachers, cached_teachers, open_caches
from s3prl_ekd.variants import find_model_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments: those of ``run_pretrain.py`` that targets depend on."""
    parser.add_argument(
        "-g", "--upstream-config", "--upstream_config", required=True, metavar="MODEL", help="the run's -g"
    )
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="the run's config_runner.yaml")
    parser.add_argument(
        "--device", help="where teachers compute: cpu, cuda, cuda:1, ... (default: cuda if there is one)"
    )


def run(args: argparse.Namespace) -> int:
    """Fill the cache that the configuration names, from where an earlier call or run left it."""
    file = find_model_config(args.upstream_config)
    config = load_model_config(file)
    if config.ekd.cache_targets is None:
        raise EkdError(f"{file}: ekd.cache_targets: null; name the folder that is to be filled")
    data = check_runner_config(read_yaml(args.config), str(args.config)).pretrain_expert.datarc
    plan = check_teachers(config, str(file))
    device = find_device(args.device or default_device())
    table = read_lengths(data, str(args.config))
    held_out = read_held_out(data, table, str(args.config))
    caches = open_caches(config, plan, table, held_out, data)
    both = zip(caches, (table, held_out), strict=True)
    jobs = [(one, rows) for one, rows in both if one and rows and not one.complete]
    if not jobs:
        return 0
    frozen = freeze(config, load_teachers(plan)).to(device)
    for cache, rows in jobs:
        _fill(cached_teachers(config, plan, cache, frozen), rows, data, device)
    return 0


def _fill(teachers: CachedTeachers, table: LengthTable, data: DataConfig, device: torch.device) -> None:
    """Let the teachers compute what their cache lacks of a table."""
    cache = teachers.cache

    def waiting(plan: BatchPlan) -> list[BatchSpec]:
        return [spec for spec in plan if not cache.stored(spec.windows).all()]

    # no distorter: the teachers hear clean audio wherever targets are kept; nor a length: its windows are cut already
    loader, _ = make_loader(table, data, 0, cache=cache, select=waiting)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    unread: list[str] = []
    try:
        for batch in track(loader, "targets", total=len(loader), console=console):
            unread += batch.skipped
            teachers.fill(batch.wave.to(device, non_blocking=True), batch)
    finally:
        cache.flush()
        for reason in dict.fromkeys(unread):  # a file has several windows
            console.print(f"[ekd] skipped {reason}")
        console.print(f"[ekd] {cache.progress()}")
