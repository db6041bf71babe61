"""``s3prl-ekd evaluate``: train and test the four tasks with s3prl's runner and write one score table.

This file is the command line only: it names the upstream, makes the plan, and hands it over.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rich.console import Console

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.plan import Run, Upstream, make_plan
from s3prl_ekd.evaluate.presets import parse_overrides, preset, preset_names
from s3prl_ekd.evaluate.progress import Board
from s3prl_ekd.evaluate.results import collect, write_scores
from s3prl_ekd.evaluate.run import run_all
from s3prl_ekd.evaluate.table import score_markdown, score_table
from s3prl_ekd.evaluate.tasks import TASKS, parse_tasks

STUDENT = "ekd_student"  # the hub name under which the bridge registers our upstream


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Train and test the tasks with s3prl's own runner, score the predictions again independently, and write "
        "OUT/scores.json, OUT/scores.md. Run the same command again to continue after an interruption."
    )
    parser.add_argument("--ckpt", type=Path, help="a student: states-N.ckpt, or its experiment folder (newest)")
    parser.add_argument("--upstream", help="instead: any upstream of s3prl's hub as a baseline (fbank, hubert_base)")
    parser.add_argument("--untrained", type=Path, metavar="CONFIG_MODEL_YAML", help="instead: this student, untrained")
    parser.add_argument("--data", type=Path, required=True, help="what s3prl-ekd prepare wrote")
    parser.add_argument("--tasks", default=",".join(TASKS), help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, scores.json and scores.md")
    parser.add_argument("--label", help="name of this row in tables (default: from the checkpoint or upstream)")
    parser.add_argument("--preset", default="superb", help=f"one of {', '.join(preset_names())} (default: %(default)s)")
    parser.add_argument("--folds", help="ER folds, e.g. fold1,fold2 (default: all; the score is their mean)")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--device", help="cuda or cpu (default: cuda if there is one)")
    parser.add_argument(
        "--override", action="append", default=[], metavar="[TASK:]KEY=VALUE", help="s3prl's -o, for one task or all"
    )
    parser.add_argument(
        "--upstream-feature-normalize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="s3prl's option of that name (default: as the preset says)",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="redo runs made with other settings in OUT")
    parser.add_argument("--dry-run", action="store_true", help="print the native commands and stop")


def run(args: argparse.Namespace) -> int:
    """Carry the command out; returns 0. :class:`EkdError` for what the user can mend."""
    tasks = parse_tasks(args.tasks)
    chosen = preset(args.preset)
    if not args.data.is_dir():
        raise EkdError(f"--data {args.data}: no such folder; s3prl-ekd prepare ... --out {args.data} makes it")
    if args.jobs < 1:
        raise EkdError(f"--jobs {args.jobs}: expected 1 or more")
    given = parse_overrides(args.override)
    normalize = args.upstream_feature_normalize
    runs = make_plan(
        tasks,
        data=args.data.resolve(),
        out=args.out.resolve(),
        upstream=choose_upstream(args.ckpt, args.upstream, args.untrained, args.label),
        overrides={name: {**chosen["tasks"][name], **given[name]} for name in TASKS},
        folds=[fold.strip() for fold in args.folds.split(",") if fold.strip()] if args.folds else None,
        seed=args.seed,
        device=args.device or default_device(),
        normalize=chosen["normalize"] if normalize is None else normalize,
    )
    console = Console()
    if args.dry_run:
        console.out(commands_text(runs), highlight=False)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    upstream = runs[0].upstream
    console.print(f"[bold]{upstream.label}[/]: {len(runs)} runs of s3prl's runner on {runs[0].device} -> {args.out}")
    with Board(console) as board:
        results = run_all(runs, board, args.jobs, args.overwrite)
    record = collect(upstream, runs, results, args.preset)
    path = write_scores(record, args.out)
    (args.out / "scores.md").write_text(score_markdown([record]))
    console.print(score_table([record]))
    console.print(f"[dim]{path}[/]", highlight=False)
    return 0


def choose_upstream(ckpt: Path | None, name: str | None, untrained: Path | None, label: str | None) -> Upstream:
    """Exactly one thing to evaluate; ``--upstream NAME --ckpt FILE`` is s3prl's ``-u NAME -k FILE``."""
    if untrained is not None and (ckpt is not None or name is not None):
        raise EkdError("--untrained: stands alone, without --ckpt and --upstream")
    if untrained is not None:
        if not untrained.is_file():
            raise EkdError(
                f"--untrained {untrained}: not found; expected a config_model.yaml of run_pretrain.py -u ekd"
            )
        return Upstream(STUDENT, label or "untrained student", model_config=untrained.resolve())
    if ckpt is not None:
        if not ckpt.exists():
            raise EkdError(f"--ckpt {ckpt}: not found; expected a states-N.ckpt file or an experiment folder")
        path = ckpt.resolve() if name else student_checkpoint(ckpt)
        return Upstream(name or STUDENT, label or f"{path.parent.name}/{path.stem}", checkpoint=path)
    if name is None:
        raise EkdError("nothing to evaluate: give --ckpt CKPT, --upstream NAME or --untrained CONFIG_MODEL_YAML")
    return Upstream(name, label or name)


def student_checkpoint(path: Path) -> Path:
    """The student's checkpoint file (a folder's newest), read once so that a wrong one fails here and not in a run."""
    from s3prl_ekd.model.student import newest_checkpoint, read_checkpoint  # torch: not needed for --help

    file = newest_checkpoint(path).resolve()
    read_checkpoint(file)
    return file


def commands_text(runs: list[Run]) -> str:
    """The native commands of a plan, ready to paste into a shell."""
    lines = []
    for one in runs:
        lines.append(f"# {one.key}: {one.task.title}")
        lines.append(shlex.join(one.train_command()))
        lines.append(shlex.join(one.evaluate_command(one.expdir / one.task.best_checkpoint)))
    return "\n".join(lines)


def default_device() -> str:
    """``cuda`` where PyTorch sees a GPU, else ``cpu``."""
    import torch  # a --help needs no torch

    return "cuda" if torch.cuda.is_available() else "cpu"
