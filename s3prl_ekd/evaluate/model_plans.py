"""From the command's arguments to the plan of each model: everything that can be wrong with the call is found here.

What a plan is made of is in ``plan.py``; how each option is read in ``models.py``, ``presets.py`` and ``rates.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.models import Upstream, choose_models
from s3prl_ekd.evaluate.plan import ModelPlan, Run, make_plan
from s3prl_ekd.evaluate.presets import parse_overrides, preset
from s3prl_ekd.evaluate.rates import choose_rates, parse_seeds
from s3prl_ekd.evaluate.tasks import TASKS, parse_tasks


def plan_models(args: argparse.Namespace, devices: Sequence[str]) -> list[ModelPlan]:
    """Plan each model's runs; a single model's folder is ``--out`` itself, several have one each below it.

    Raises:
        EkdError: an option that is wrong or has no effect, data or a model that is not there.
    """
    tasks = parse_tasks(args.tasks)
    chosen = preset(args.preset)
    if not args.data.is_dir():
        raise EkdError(f"--data {args.data}: no such folder; s3prl-ekd prepare ... --out {args.data} makes it")
    given = parse_overrides(args.override)
    rates = choose_rates(chosen["grid"], args.lr, given)
    _check_effect(args, [task.name for task in tasks])
    seeds = parse_seeds(args.seeds)
    models = choose_models(args.given or [], args.models, args.label)
    normalize = args.upstream_feature_normalize
    out = args.out.resolve()

    def plan(model: Upstream, **where: Any) -> list[Run]:
        return make_plan(
            tasks,
            data=args.data.resolve(),
            upstream=model,
            overrides={name: {**chosen["tasks"][name], **given[name]} for name in TASKS},
            folds=[fold.strip() for fold in args.folds.split(",") if fold.strip()] if args.folds else None,
            seeds=seeds,
            rates=rates,
            device=devices[0],
            cache=None if args.cache_states is None else cache_folder(args.cache_states),
            normalize=chosen["normalize"] if normalize is None else normalize,
            **where,
        )

    if len(models) == 1:
        return [ModelPlan(out, plan(models[0], out=out))]
    return [ModelPlan(out / one.folder, plan(one, out=out / one.folder, prefix=f"{one.folder}/")) for one in models]


def cache_folder(text: str) -> Path:
    """The folder of ``--cache-states``, absolute.

    Raises:
        EkdError: no name of a folder, or one that s3prl's ``-o`` cannot carry.
    """
    if not text.strip() or "=" in text or ",," in text:
        raise EkdError(f"--cache-states {text!r}: expected a folder without '=' and ',,' in its name")
    return Path(text).expanduser().resolve()


def _check_effect(args: argparse.Namespace, tasks: list[str]) -> None:
    """Refuse an option for a task that ``--tasks`` leaves out."""
    for option, items in (("--lr", args.lr), ("--override", args.override)):
        for item in items:
            task = item.partition(":")[0].strip().lower()
            if task in TASKS and task not in tasks:
                raise EkdError(f"{option} {item}: {task} is not among --tasks {','.join(tasks)}")
    if args.folds and "er" not in tasks:
        raise EkdError(f"--folds {args.folds}: is for er, which is not among --tasks {','.join(tasks)}")
