"""``s3prl-ekd evaluate``: train and test the tasks with s3prl's runner and write one score table.

Here are the command's arguments and its course alone: plan, run, write, show. Each step is in a file of its own.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from s3prl_ekd.console import Console
from s3prl_ekd.device import default_device
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import robustness
from s3prl_ekd.evaluate.cost import upstream_cost
from s3prl_ekd.evaluate.devices import add_running_arguments, check_devices, given_devices, slots
from s3prl_ekd.evaluate.dry_run import commands_text
from s3prl_ekd.evaluate.folder_lock import locked_folders
from s3prl_ekd.evaluate.grid_table import grid_tables
from s3prl_ekd.evaluate.marker import Results
from s3prl_ekd.evaluate.model_plans import plan_models
from s3prl_ekd.evaluate.models import check_names
from s3prl_ekd.evaluate.plan import ModelPlan
from s3prl_ekd.evaluate.presets import preset, preset_names
from s3prl_ekd.evaluate.progress import Board
from s3prl_ekd.evaluate.records import write_records
from s3prl_ekd.evaluate.refusals import check_earlier_scores, tell_second_rows
from s3prl_ekd.evaluate.run import check_marker
from s3prl_ekd.evaluate.schedule import run_all
from s3prl_ekd.evaluate.scores_file import FILE_NAME
from s3prl_ekd.evaluate.shard import parse_shard
from s3prl_ekd.evaluate.table import score_table
from s3prl_ekd.evaluate.tasks import TASKS
from s3prl_ekd.task_names import PAPER_TASKS
from s3prl_ekd.writable import make_writable

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Train and test the tasks with s3prl's own runner, score the predictions again independently, and write "
        "OUT/scores.json, OUT/scores.md. With several learning rates the one that is best on dev is tested. Several "
        "models, each a folder OUT/LABEL, stand side by side. Run the same command again to continue after an "
        "interruption; other models, seeds and tasks add to what OUT holds."
    )
    _add_models(parser)
    parser.add_argument("--data", type=Path, required=True, help="what s3prl-ekd prepare wrote")
    parser.add_argument(
        "--tasks", default=",".join(PAPER_TASKS), metavar="T,T",
        help=f"some of {','.join(TASKS)} (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, scores.json and scores.md")
    about = "; ".join(f"{name}: {preset(name).about}" for name in preset_names())
    parser.add_argument("--preset", default="superb", metavar="NAME", help=f"{about} (default: %(default)s)")
    parser.add_argument(
        "--lr", action="append", default=[], metavar="[TASK:]RATE,RATE,...",
        help="learning rates to search, for one task or all (default: as the preset says); repeatable",
    )  # fmt: skip
    parser.add_argument("--folds", help="ER folds, e.g. fold1,fold2 (default: all; the score is their mean)")
    parser.add_argument(
        "--seeds", "--seed", default="1337", metavar="N,N,...",
        help="the table shows mean and standard error of several (default: %(default)s)",
    )  # fmt: skip
    add_running_arguments(parser, "runs")
    parser.add_argument(
        "--shard", metavar="I/N",
        help="do the I-th of N shares of the runs alone, beside the other shares on other machines (a job array: "
        "--shard $SLURM_ARRAY_TASK_ID/8). The same call without --shard then writes the scores",
    )  # fmt: skip
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="[TASK:]KEY=VALUE",
        help="s3prl's -o, for one task or all",
    )
    parser.add_argument(
        "--upstream-feature-normalize",
        "--upstream_feature_normalize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="s3prl's option of that name (default: as the preset says)",
    )
    parser.add_argument(
        "--cache-states", metavar="DIR",
        help="store the hidden states of a frozen model in DIR and reuse them for all epochs, rates, folds and seeds "
        "(0.2 MB per second of speech and 1000 values per frame). Clips are encoded alone; remove DIR when done",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="redo runs made with other settings in OUT and replace their scores; other rows of a table stay",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the run_downstream.py commands of the whole grid, or what is refused, and stop",
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    """Declare the options that name what is evaluated."""
    models = parser.add_argument_group(
        "models",
        "each repeatable. With a LABEL, a model is a row of a table; below rows NAME@1, NAME@2, ... stands their mean. "
        "One --ckpt and one --upstream without labels are a single model: -u NAME -k PATH of run_downstream.py",
    )
    models.add_argument(
        "-k", "--ckpt", action="append", dest="given", type=partial(_given, "ckpt"), metavar="[LABEL=]PATH",
        help="a student: states-N.ckpt, its experiment folder (newest), or hf:OWNER/NAME",
    )  # fmt: skip
    models.add_argument(
        "--teacher", action="append", dest="given", type=partial(_given, "teacher"), metavar="[LABEL=]SOURCE",
        help="a teacher, as ekd.teachers[].source names it (embedded:tiny_hubert, hubert_base, a file, a folder, "
        "hf:OWNER/NAME)",
    )  # fmt: skip
    models.add_argument(
        "-u", "--upstream", action="append", dest="given", type=partial(_given, "upstream"), metavar="[LABEL=]NAME",
        help="any upstream of s3prl's hub as a baseline (fbank, hubert_base)",
    )  # fmt: skip
    models.add_argument(
        "--untrained", action="append", dest="given", type=partial(_given, "untrained"),
        metavar="[LABEL=]MODEL", help="this student, untrained: what -g of run_pretrain.py takes",
    )  # fmt: skip
    models.add_argument(
        "--models",
        type=Path,
        metavar="YAML",
        help="a list of models: mappings of label, ckpt, teacher, upstream, untrained; layer, feature: -l, -s of "
        "run_downstream.py",
    )
    models.add_argument("--label", help="name of a single model in tables (default: from the checkpoint or upstream)")


def _given(kind: str, text: str) -> tuple[str, str]:
    """The kind and the value of one option: all kinds fill one list, so that rows stand in the command line's order."""
    return kind, text


def run(args: argparse.Namespace) -> int:
    """Carry the command out; returns 0.

    Raises:
        EkdError: what the user can correct; a run that failed.
    """
    devices = given_devices(args)
    shard = None if args.shard is None else parse_shard(args.shard)
    plans = _checked_plans(args)
    check_names([plan.upstream for plan in plans])
    tell_second_rows(plans, args.out)
    if shard is not None:
        plans = shard.share(plans)
        if not plans:
            log.warning("--shard %s: nothing to do: the runs that may be apart are fewer than the shards", shard)
            return 0
    devices = devices or [default_device()]  # asks torch, whose import takes longer than all the checks before
    jobs = args.jobs or len(devices)
    runs = [one for plan in plans for one in plan.runs]
    console = Console()
    if args.dry_run:
        console.out(commands_text(runs, slots(devices, jobs)), highlight=False)
        return 0
    check_devices(devices)
    if runs[0].cache is not None:
        make_writable(runs[0].cache, f"--cache-states {runs[0].cache}")
    labels = ", ".join(plan.upstream.label for plan in plans)
    share = "" if shard is None else f"shard {shard}, "
    where = f"{share}{len(runs)} runs of s3prl's runner on {', '.join(devices)} -> {args.out}"
    console.print(f"[bold]{escape(labels)}[/]: {escape(where)}", highlight=False, soft_wrap=True)
    costs = [upstream_cost(plan.upstream) for plan in plans] if shard is None else []
    with locked_folders([args.out, *(plan.out for plan in plans)], "--out ", shared=shard is not None):
        plans = _checked_plans(args)  # again: a call that had the folder may have ended since
        plans = plans if shard is None else shard.share(plans)
        records = _carry_out(args, plans, costs, devices, jobs, console)
    if shard is not None:
        console.print(f"[dim]shard {shard} is done; the call without --shard writes the scores[/]", highlight=False)
        return 0
    for table in [*grid_tables(records), score_table(records)]:
        console.print_table(table)
    console.print(f"[dim]{escape(str(args.out / FILE_NAME))}[/]", highlight=False, soft_wrap=True)
    return 0


def _checked_plans(args: argparse.Namespace) -> list[ModelPlan]:
    """The plan of each model; refuses what does not go with what ``--out`` holds."""
    plans = plan_models(args)
    if not args.overwrite:
        check_earlier_scores(plans, args.out, args.preset)
        for one in (run for plan in plans for run in plan.runs):
            check_marker(one)
    return plans


def _carry_out(
    args: argparse.Namespace,
    plans: Sequence[ModelPlan],
    costs: Sequence[dict[str, int] | None],
    devices: Sequence[str],
    jobs: int,
    console: Console,
) -> list[dict[str, Any]]:
    """Do the runs and write the records, after an interruption or a failure those of the tasks that are done.

    A shard writes none: it has a part of them alone, and others are at work in the same folders.
    """

    def write() -> list[dict[str, Any]]:
        if args.shard is not None:
            return []
        records = write_records(plans, costs, results, args.preset, devices, args.out)
        if (args.out / robustness.FILE_NAME).is_file():
            robustness.write_robustness(args.out)  # without the tests of runs that this call did again
        return records

    runs = [one for plan in plans for one in plan.runs]
    results: Results = {}
    try:
        with Board(console, max(10, *(len(one.key) for one in runs))) as board:
            run_all(runs, board, jobs, args.overwrite, devices, results, args.keep_going)
    except (KeyboardInterrupt, EkdError) as error:
        try:
            if write():
                scores = escape(str(args.out / FILE_NAME))
                console.print(f"[dim]{scores} holds the tasks that are done[/]", highlight=False, soft_wrap=True)
        except EkdError as another:  # must not hide why the runs ended
            log.warning("%s", another)
        if isinstance(error, KeyboardInterrupt):
            console.print("[dim]run the same command again to resume[/]", highlight=False)
        raise
    return write()
