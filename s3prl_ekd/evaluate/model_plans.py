"""From the command's arguments to the plan of each model: everything that can be wrong with the call is found here.

What a plan is made of is in ``plan.py``; how each option is read in ``models.py``, ``presets.py`` and ``rates.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.kept_scores import table_rows
from s3prl_ekd.evaluate.models import Upstream, check_labels, choose_models, split_label
from s3prl_ekd.evaluate.plan import ModelPlan, Run, make_plan
from s3prl_ekd.evaluate.presets import parse_overrides, preset
from s3prl_ekd.evaluate.rates import choose_rates, parse_seeds
from s3prl_ekd.evaluate.scores_file import holds_table, own_record
from s3prl_ekd.evaluate.tasks import TASKS, parse_tasks, split_task
from s3prl_ekd.own_scripts import fits_option
from s3prl_ekd.writable import absolute_folder


def plan_models(args: argparse.Namespace) -> list[ModelPlan]:
    """Plan each model's runs, into the folders that :func:`model_folders` gives them.

    The device of each run is chosen when it starts.

    Raises:
        EkdError: an option that is wrong or has no effect, data or a model that is not there.
    """
    tasks = parse_tasks(args.tasks)
    chosen = preset(args.preset)
    foreign = [task.name for task in tasks if task.name not in chosen.only]
    if foreign:
        raise EkdError(
            f"--preset {args.preset}: is for {','.join(chosen.only)}, not for {','.join(foreign)}; see --tasks"
        )
    if not args.data.is_dir():
        raise EkdError(f"--data {args.data}: no such folder; s3prl-ekd prepare ... --out {args.data} makes it")
    given = parse_overrides(args.override)
    rates = choose_rates(chosen.grid, args.lr, given)
    _check_effect(args, [task.name for task in tasks])
    seeds = parse_seeds(args.seeds)
    folds = None if args.folds is None else [fold.strip() for fold in args.folds.split(",") if fold.strip()]
    if folds == []:
        raise EkdError(f"--folds {args.folds!r}: expected folds with commas between, as fold1,fold2")
    models = choose_models(args.given or [], args.models, args.label)
    in_table = args.models is not None or any(split_label(text)[0] is not None for _, text in args.given or [])
    normalize = args.upstream_feature_normalize
    out = args.out.resolve()

    def plan(model: Upstream, **where: Any) -> list[Run]:
        return make_plan(
            tasks,
            data=args.data.resolve(),
            upstream=model,
            overrides={name: {**chosen.tasks[name], **given[name]} for name in TASKS},
            folds=folds,
            seeds=seeds,
            rates=rates,
            cache=None if args.cache_states is None else cache_folder(args.cache_states),
            normalize=chosen.normalize if normalize is None else normalize,
            **where,
        )

    return [
        ModelPlan(folder, plan(model, out=folder, prefix="" if folder == out else f"{folder.name}/"))
        for model, folder in model_folders(models, out, in_table)
    ]


def model_folders(models: Sequence[Upstream], out: Path, in_table: bool) -> list[tuple[Upstream, Path]]:
    """Each model with its folder: that of a table's row below ``out``, of a single model ``out`` itself.

    Several models are a table, one is a row where it is labelled on the command line, or ``out`` holds a table. A model
    that is not named by the user has the label under which ``out`` knows it.

    Args:
        in_table: whether the call means a table even where it names one model.

    Raises:
        EkdError: two models would share a folder; ``out`` holds a file that is no scores.json.
    """
    single = own_record(out)
    table = len(models) > 1 or holds_table(out) or (in_table and single is None)
    there = table_rows(out) if table else [(None, single)] if single else []
    models = [_as_known(model, there) for model in models]
    check_labels(models)
    return [(model, out / model.folder if table else out) for model in models]


def _as_known(model: Upstream, there: Sequence[tuple[str | None, Mapping[str, Any]]]) -> Upstream:
    """The model with the folder and label of an earlier record.

    That is a record of the same model where the user gave no label, else the one that has the label given. Of several
    rows of one model without a label the one that is called as it would be by itself is meant.
    """
    if model.named:
        folders = [folder for folder, record in there if record["label"] == model.label]
        return replace(model, row=folders[0]) if folders and model.folder not in folders else model
    for folder, record in sorted(there, key=lambda row: row[1]["label"] != model.label):
        if all(record.get(key) == value for key, value in model.record().items()):
            return replace(model, row=folder, label=record["label"])
    return model


def cache_folder(text: str) -> Path:
    """The folder of ``--cache-states``, absolute.

    Raises:
        EkdError: no name of a folder, or one that s3prl's ``-o`` cannot carry.
    """
    folder = absolute_folder(text, "--cache-states")
    if not text.strip() or not fits_option(folder):
        raise EkdError(f"--cache-states {text!r}: expected a folder without '=' and ',,' in its path")
    return Path(folder)


def _check_effect(args: argparse.Namespace, tasks: list[str]) -> None:
    """Refuse an option for a task that ``--tasks`` leaves out."""
    for option, items in (("--lr", args.lr), ("--override", args.override)):
        for item in items:
            task, _ = split_task(item)
            if task is not None and task not in tasks:
                raise EkdError(f"{option} {item}: {task} is not among --tasks {','.join(tasks)}")
    if args.folds is not None and "er" not in tasks:
        raise EkdError(f"--folds {args.folds}: is for er, which is not among --tasks {','.join(tasks)}")
