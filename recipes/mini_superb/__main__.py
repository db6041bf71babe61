"""Distil and evaluate every row of experiment.yaml; go on where an earlier call stopped.

python -m recipes.mini_superb --speech ../shared/speech --work result/mini_superb
python -m recipes.mini_superb.tables

--speech DIR holds pretrain, asr, sid and er, each with a manifest.tsv. What a row needs that is there already is kept.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from recipes.command import carry_out
from recipes.mini_superb import scores
from recipes.mini_superb.settings import Row, read_experiment, rows
from recipes.mini_superb.students import Students, call, write_config
from recipes.mini_superb.tables import HERE, RESULTS
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.tasks import TASKS, parse_tasks

logger = logging.getLogger(__name__)

SETS = ("pretrain", "asr", "sid", "er")


def main(argv: list[str] | None = None) -> int:
    """Carry the experiment out; returns the exit status."""
    return carry_out(run, _parser().parse_args(argv))


def run(args: argparse.Namespace) -> None:
    """Every row that is asked for at the first seed, then at the next; results are kept as soon as there are any."""
    experiment = read_experiment(args.experiment)
    work = args.work.resolve()
    data = prepare(args.speech.resolve(), work)
    chosen = rows(experiment)
    unknown = set(args.only or []) - {row.name for row in chosen}
    if unknown:
        names = ", ".join(row.name for row in chosen)
        raise EkdError(f"--only: no row {sorted(unknown)[0]!r} (there are {names})")
    chosen = [row for row in chosen if args.only is None or row.name in args.only]
    seeds = experiment.evaluation.seeds if args.seeds is None else args.seeds
    tasks = [task.name for task in parse_tasks(args.tasks)]
    how = ["--device", args.device, "--jobs", str(args.jobs)]
    students = Students(experiment, work, data, args.device)
    for seed in seeds:
        for row in chosen:
            started = time.monotonic()
            model = model_words(students, row, seed)
            made = time.monotonic() - started
            folder = scores.evaluate(experiment, row, model, seed, work, data, tasks, how)
            scores.keep(folder, students.folder(row.name, seed), work, args.results / row.name / f"seed{seed}")
            spent = time.monotonic() - started - made
            logger.info("seed %d, %s: student %.0f s, scores %.0f s", seed, row.name, made, spent)


def model_words(students: Students, row: Row, seed: int) -> list[str]:
    """What names a row's model to ``s3prl-ekd evaluate``; students are distilled for it."""
    if row.kind == "upstream":
        return ["--upstream", row.what]
    if row.kind in ("teacher", "untrained_teacher"):
        return ["--teacher", row.what]
    if row.kind == "untrained":
        config = write_config(students.experiment, row.what, students.folder(row.name, seed))
        return ["--untrained", str(config)]
    return ["--ckpt", str(students.checkpoint(row, seed))]


def prepare(speech: Path, work: Path) -> Path:
    """What ``s3prl-ekd prepare`` makes of the speech, made unless it is there."""
    data = work / "data"
    missing = [name for name in SETS if not (speech / name / "manifest.tsv").is_file()]
    if missing:
        raise EkdError(f"--speech {speech}: no {missing[0]}/manifest.tsv")
    if not all((data / f"{name}.yaml").is_file() for name in ("pretrain", "pr", "asr", "sid", "er")):
        manifests = [str(speech / name / "manifest.tsv") for name in SETS]
        call(["s3prl-ekd", "prepare", "--manifest", *manifests, "--out", str(data)], work / "prepare.log")
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
    parser.add_argument("--tasks", default=",".join(TASKS), help="some of the four (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="evaluation runs at a time (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
