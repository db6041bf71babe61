"""``s3prl-ekd evaluate``: train and test the four tasks with s3prl's runner and write one score table.

This file is the command line only: it reads what is asked, makes the plan, hands it over, and shows what came out.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from s3prl_ekd.bridge.arguments import make_writable
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.cost import upstream_cost
from s3prl_ekd.evaluate.devices import check_devices, parse_devices, slots, visible
from s3prl_ekd.evaluate.grid import finished_runs, searches
from s3prl_ekd.evaluate.grid_table import grid_markdown, grid_tables
from s3prl_ekd.evaluate.models import Upstream, check_names, choose_models
from s3prl_ekd.evaluate.plan import Run, make_plan
from s3prl_ekd.evaluate.presets import parse_overrides, preset, preset_names
from s3prl_ekd.evaluate.process import sigterm_as_interrupt
from s3prl_ekd.evaluate.progress import Board
from s3prl_ekd.evaluate.rates import choose_rates, parse_seeds
from s3prl_ekd.evaluate.results import FILE_NAME, collect, earlier_record, made_by, with_earlier_tasks, write_scores
from s3prl_ekd.evaluate.schedule import Results, run_all
from s3prl_ekd.evaluate.table import score_markdown, score_table
from s3prl_ekd.evaluate.tasks import TASKS, parse_tasks

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Train and test the tasks with s3prl's own runner, score the predictions again independently, and write "
        "OUT/scores.json, OUT/scores.md. With several learning rates the one that is best on dev is tested. Several "
        "models, each a folder OUT/LABEL, stand side by side. Run the same command again to continue after an "
        "interruption."
    )
    _add_models(parser)
    parser.add_argument("--data", type=Path, required=True, help="what s3prl-ekd prepare wrote")
    parser.add_argument("--tasks", default=",".join(TASKS), help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, scores.json and scores.md")
    about = "; ".join(f"{name}: {preset(name)['about']}" for name in preset_names())
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
    parser.add_argument(
        "--devices", "--device", metavar="DEVICE,...",
        help="cpu, cuda, or cuda:0,cuda:1,... (default: cuda if there is one)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one a device)")
    parser.add_argument(
        "--override", action="append", default=[], metavar="[TASK:]KEY=VALUE", help="s3prl's -o, for one task or all"
    )
    parser.add_argument(
        "--upstream-feature-normalize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="s3prl's option of that name (default: as the preset says)",
    )
    parser.add_argument(
        "--cache-states", metavar="DIR",
        help="encode clips alone and keep the hidden states of those that come back in DIR (0.2 MB a second of speech "
        "for each thousand numbers a frame), for all epochs, rates, folds and seeds; remove it when done",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="redo runs made with other settings in OUT")
    parser.add_argument("--dry-run", action="store_true", help="print the native commands of the whole grid and stop")


def _add_models(parser: argparse.ArgumentParser) -> None:
    """The options that name what is evaluated."""
    models = parser.add_argument_group("models", "each repeatable; one --ckpt and one --upstream without labels are "
                                       "one model, s3prl's -u NAME -k FILE")  # fmt: skip
    models.add_argument(
        "--ckpt", action="append", dest="given", type=partial(_given, "ckpt"), metavar="[LABEL=]PATH",
        help="a student: states-N.ckpt, or its experiment folder (newest)",
    )  # fmt: skip
    models.add_argument(
        "--teacher", action="append", dest="given", type=partial(_given, "teacher"), metavar="[LABEL=]SOURCE",
        help="a teacher, as ekd.teachers[].source names it (embedded:tiny_hubert, hubert_base, a file, a folder)",
    )  # fmt: skip
    models.add_argument(
        "--upstream", action="append", dest="given", type=partial(_given, "upstream"), metavar="[LABEL=]NAME",
        help="any upstream of s3prl's hub as a baseline (fbank, hubert_base)",
    )  # fmt: skip
    models.add_argument(
        "--untrained", action="append", dest="given", type=partial(_given, "untrained"),
        metavar="[LABEL=]CONFIG_MODEL", help="this student, untrained: what -g of run_pretrain.py takes",
    )  # fmt: skip
    models.add_argument(
        "--models",
        type=Path,
        metavar="YAML",
        help="a list of models: mappings of label, ckpt, teacher, upstream, untrained",
    )
    models.add_argument("--label", help="name of a single model in tables (default: from the checkpoint or upstream)")


def _given(kind: str, text: str) -> tuple[str, str]:
    """All ways to name a model fill one list, so that rows stand in the order of the command line."""
    return kind, text


def run(args: argparse.Namespace) -> int:
    """Carry the command out; returns 0. :class:`EkdError` for what the user can mend."""
    devices = parse_devices(args.devices)
    jobs = len(devices) if args.jobs is None else args.jobs
    if jobs < 1:
        raise EkdError(f"--jobs {args.jobs}: expected 1 or more")
    plans = plan_models(args, devices)
    runs = [one for _, own in plans for one in own]
    console = Console()
    if args.dry_run:
        console.out(commands_text(runs, slots(devices, jobs)), highlight=False)
        return 0
    check_devices(devices)
    if runs[0].cache is not None:
        make_writable(runs[0].cache, f"--cache-states {runs[0].cache}")
    if len(plans) > 1:
        check_names([own[0].upstream for _, own in plans])
    costs = [upstream_cost(one.name, one.checkpoint, one.model_config) for one in (own[0].upstream for _, own in plans)]
    labels = ", ".join(own[0].upstream.label for _, own in plans)
    where = f"{len(runs)} runs of s3prl's runner on {', '.join(devices)} -> {args.out}"
    console.print(f"[bold]{labels}[/]: {where}", highlight=False)
    with only_one(args.out):
        records = _carry_out(args, plans, costs, devices, jobs, console)
    for table in [*grid_tables(records), score_table(records)]:
        console.print(table)
    console.print(f"[dim]{args.out / FILE_NAME}[/]", highlight=False)
    return 0


def _carry_out(
    args: argparse.Namespace,
    plans: list[tuple[Path, list[Run]]],
    costs: list[dict[str, int] | None],
    devices: list[str],
    jobs: int,
    console: Console,
) -> list[dict[str, Any]]:
    """Do the runs and write the records, also of what is done when the rest does not get done."""
    runs = [one for _, own in plans for one in own]
    results: Results = {}
    try:
        with sigterm_as_interrupt(), Board(console, max(10, *(len(one.key) for one in runs))) as board:
            run_all(runs, board, jobs, args.overwrite, devices, results)
    except (KeyboardInterrupt, EkdError) as error:
        try:
            if write_records(args, plans, costs, results, devices):
                console.print(f"[dim]{args.out / FILE_NAME} holds the tasks that are done[/]", highlight=False)
        except EkdError as another:  # must not hide why the runs ended
            log.warning("%s", another)
        if isinstance(error, KeyboardInterrupt):
            console.print("[dim]the same command goes on[/]", highlight=False)
        raise
    return write_records(args, plans, costs, results, devices)


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Refuse a second call on the same ``--out``: both would train in one folder.

    Raises:
        EkdError: another one is at work there.
    """
    make_writable(out, f"--out {out}")
    with open(out / ".evaluate.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            reason = "another s3prl-ekd evaluate is at work there; wait for it, or take another"
            raise EkdError(f"--out {out}: {reason}") from error
        except OSError:
            pass  # a file system without locks
        yield


def write_records(
    args: argparse.Namespace,
    plans: list[tuple[Path, list[Run]]],
    costs: list[dict[str, int] | None],
    results: Results,
    devices: Sequence[str],
) -> list[dict[str, Any]]:
    """Write ``scores.json`` and ``scores.md`` of each model, and of all where there are several; the records.

    Args:
        plans: each model's folder and its runs; one without a finished task keeps what an earlier call wrote of it.
    """
    folders, records, done = [], [], False
    for (out, planned), cost in zip(plans, costs, strict=True):
        runs = finished_runs(planned, results)
        if runs:
            record = collect(runs[0].upstream, runs, results, args.preset, cost, devices)
            record = with_earlier_tasks(record, out)
            write_scores(record, out)
            write_markdown([record], out)
            done = True
        elif len(plans) > 1:
            record = earlier_record(made_by(planned[0].upstream, planned, args.preset), out)
        else:
            record = None
        if record is None:
            continue
        folders.append(out.name)
        records.append(record)
    if not done:
        return []
    if len(plans) > 1:
        entries = [{"folder": folder, **record} for folder, record in zip(folders, records, strict=True)]
        write_scores({"models": entries}, args.out)
        write_markdown(records, args.out)
    return records


def plan_models(args: argparse.Namespace, devices: Sequence[str]) -> list[tuple[Path, list[Run]]]:
    """Each model's folder and its runs; everything that can be wrong with the call is found here."""
    tasks = parse_tasks(args.tasks)
    chosen = preset(args.preset)
    if not args.data.is_dir():
        raise EkdError(f"--data {args.data}: no such folder; s3prl-ekd prepare ... --out {args.data} makes it")
    given = parse_overrides(args.override)
    rates = choose_rates(chosen["grid"], args.lr, given)
    _check_effect(args, [task.name for task in tasks])
    seeds = parse_seeds(args.seeds)
    models = choose_models(args.given or [], args.models, args.label)
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
            normalize=chosen["normalize"]
            if args.upstream_feature_normalize is None
            else args.upstream_feature_normalize,
            **where,
        )

    if len(models) == 1:
        return [(out, plan(models[0], out=out))]
    return [(out / one.folder, plan(one, out=out / one.folder, prefix=f"{one.folder}/")) for one in models]


def _check_effect(args: argparse.Namespace, tasks: list[str]) -> None:
    """Refuse what is said of a task that ``--tasks`` leaves out."""
    for option, items in (("--lr", args.lr), ("--override", args.override)):
        for item in items:
            task = item.partition(":")[0].strip().lower()
            if task in TASKS and task not in tasks:
                raise EkdError(f"{option} {item}: {task} is not among --tasks {','.join(tasks)}")
    if args.folds and "er" not in tasks:
        raise EkdError(f"--folds {args.folds}: is for er, which is not among --tasks {','.join(tasks)}")


def cache_folder(text: str) -> Path:
    """The folder of ``--cache-states``, absolute.

    Raises:
        EkdError: no name of a folder, or one that s3prl's ``-o`` cannot carry.
    """
    if not text.strip() or "=" in text or ",," in text:
        raise EkdError(f"--cache-states {text!r}: expected a folder without '=' and ',,' in its name")
    return Path(text).expanduser().resolve()


def write_markdown(records: list[dict[str, Any]], out: Path) -> None:
    """Write ``OUT/scores.md``: the score table, then the grid."""
    grid = grid_markdown(records)
    (out / "scores.md").write_text(score_markdown(records) + (f"\n## Learning rates\n\n{grid}" if grid else ""))


def commands_text(runs: list[Run], places: Sequence[str] = ("cpu",)) -> str:
    """The native commands of a plan, ready to paste into a shell; runs are dealt over ``places`` in turn."""
    lines = []
    number = 0
    for search in searches(runs):
        tests = []
        for one in search.runs:
            gpu = [f"{key}={value}" for key, value in visible(places[number % len(places)]).items()]
            number += 1
            lines += [f"# {one.key}: {one.task.title}", shlex.join([*gpu, *one.train_command()])]
            test = shlex.join([*gpu, *one.evaluate_command(one.expdir / one.task.best_checkpoint)])
            if len(search.rates) == 1:
                lines.append(test)
            else:
                tests += [f"# {one.key}: if lr {one.rate:g} is the best on dev", test]
        lines += tests
    return "\n".join(lines)
