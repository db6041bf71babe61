"""Distil and evaluate every row of experiment.yaml; go on where an earlier call stopped.

python -m recipes.mini_superb --speech $SPEECH --work result/mini_superb
python -m recipes.mini_superb.tables

--speech DIR holds pretrain, asr, sid and er, each with a manifest.tsv. What a row needs that is there already is kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recipes.command import carry_out
from recipes.mini_superb.calls import Calls
from recipes.mini_superb.schedule import Rows, make
from recipes.mini_superb.settings import read_experiment, rows
from recipes.mini_superb.students import Students, claim
from recipes.mini_superb.tables import HERE, RESULTS
from s3prl_ekd.device import usable_cpus
from s3prl_ekd.errors import EkdError, naming
from s3prl_ekd.evaluate.tasks import parse_tasks
from s3prl_ekd.file_digest import file_digest
from s3prl_ekd.signals import Signals, leave
from s3prl_ekd.task_names import PAPER_TASKS

SETS = ("pretrain", "asr", "sid", "er")


def main(argv: list[str] | None = None, signals: Signals | None = None) -> int:
    """Carry the experiment out; returns the exit status."""
    return carry_out(run, _parser().parse_args(argv), signals)


def run(args: argparse.Namespace) -> None:
    """Every row that is asked for at the first seed, then at the next; results are kept as soon as there are any."""
    if args.parallel < 1 or args.jobs < 1:
        raise EkdError(f"--parallel {args.parallel} --jobs {args.jobs}: expected 1 or more")
    experiment = read_experiment(args.experiment)
    chosen = rows(experiment)
    unknown = set(args.only or []) - {row.name for row in chosen}
    if unknown:
        names = ", ".join(row.name for row in chosen)
        raise EkdError(f"--only: no row {sorted(unknown)[0]!r} (there are {names})")
    chosen = [row for row in chosen if args.only is None or row.name in args.only]
    seeds = experiment.evaluation.seeds if args.seeds is None else args.seeds
    tasks = [task.name for task in parse_tasks(args.tasks)]
    work = args.work.resolve()
    cores = usable_cpus()
    call = Calls(max(1, cores // args.parallel // args.jobs) if args.parallel > 1 else None)
    data = prepare(args.speech.resolve(), work, call)
    how = ["--device", args.device, "--jobs", str(args.jobs)]
    students = Students(experiment, work, data, args.device, call)
    make(Rows(students, tasks, how, args.results), chosen, seeds, args.parallel)


def prepare(speech: Path, work: Path, call: Calls) -> Path:
    """What ``s3prl-ekd prepare`` makes of the speech, made unless it is there.

    Raises:
        EkdError: the speech has no manifests, or what is there was made of others.
    """
    data = work / "data"
    manifests = {name: speech / name / "manifest.tsv" for name in SETS}
    missing = [name for name, file in manifests.items() if not file.is_file()]
    if missing:
        raise EkdError(f"--speech {speech}: no {missing[0]}/manifest.tsv")
    with naming(f"--speech {speech}"):
        claim(work, {"speech": {name: file_digest(file) for name, file in manifests.items()}}, "experiment")
    if not all((data / f"{name}.yaml").is_file() for name in ("pretrain", "pr", "asr", "sid", "er")):
        call(
            ["s3prl-ekd", "prepare", "--manifest", *map(str, manifests.values()), "--out", str(data)],
            work / "prepare.log",
        )
    return data


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.mini_superb", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--speech", type=Path, required=True, help="folder of pretrain, asr, sid, er")
    parser.add_argument("--work", type=Path, default=Path("result/mini_superb"), help="default: %(default)s")
    parser.add_argument("--experiment", type=Path, default=HERE / "experiment.yaml", help="default: the recipe's own")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: the recipe's own results/")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="some rows (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", help="some of them (default: the experiment's)")
    parser.add_argument(
        "--tasks", default=",".join(PAPER_TASKS), help="some of those of evaluate (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="evaluation runs at a time (default: %(default)s)")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="rows at a time (default: %(default)s)")
    return parser


if __name__ == "__main__":
    listening = Signals()
    sys.exit(leave(main(signals=listening)))
