"""A row's evaluation by ``s3prl-ekd evaluate``, and what of it is kept: ``results/ROW/seedN/``.

- ``scores.json``: as the command wrote it; of the first seed with the dev scores of every learning rate
- ``items.json``: errors and tokens of every test utterance, so that noise of the test set can be told from progress
- ``distillation.json``: of students, their budget and losses
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jiwer

from recipes.mini_superb.settings import Row
from recipes.mini_superb.students import DISTILLATION, Students
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.score import edit_counts, outcomes, read_predictions
from s3prl_ekd.evaluate.scores_file import read_scores, runs_of
from s3prl_ekd.evaluate.tasks import TASKS, Task

ITEMS, SCORES = "items.json", "scores.json"


def evaluate(
    students: Students, row: Row, model: list[str], seed: int, folder: Path, tasks: list[str], how: list[str]
) -> None:
    """Evaluate a row at a seed, into ``folder`` (ROW/seedN). What is done is kept, by ``s3prl-ekd evaluate`` itself.

    Hidden states are kept for all of it; they are gone afterwards (half a gigabyte a student). The first seed
    searches the learning rates, the others take what it picked.

    Args:
        students: of the experiment.
        model: what names the row's model to ``s3prl-ekd evaluate``.
        tasks: of the four; others' scores that are there stay.
        how: further words of that command (``--device``, ``--jobs``).

    Raises:
        EkdError: the first seed of this row has not been evaluated yet, or the evaluation failed.
    """
    settings = students.experiment.evaluation
    words = ["s3prl-ekd", "evaluate", *model, "--label", row.name, "--data", str(students.data), "--out", str(folder)]
    words += ["--tasks", ",".join(tasks), "--preset", settings.preset, "--seeds", str(seed), *how]
    states = folder / "states"
    words += ["--cache-states", str(states)]
    for item in settings.override:
        if item.partition(":")[0] not in set(TASKS) - set(tasks):  # evaluate refuses what is of no task of its own
            words += ["--override", item]
    rates = settings.lr
    if seed != settings.seeds[0]:
        first = folder.with_name(f"seed{settings.seeds[0]}") / SCORES
        if not first.is_file():
            raise EkdError(f"{first}: not there; learning rates are picked with seed {settings.seeds[0]}, the first")
        rates = {name: [record["lr"]] for name, record in read_scores(first)["tasks"].items()}
        missing = [name for name in tasks if name not in rates]
        if missing:
            raise EkdError(f"{first}: has no {missing[0]}, whose learning rate is picked there; finish that seed first")
        earlier = read_scores(folder / SCORES)["tasks"] if (folder / SCORES).is_file() else {}
        if any(name in earlier and earlier[name].get("lr") not in rates[name] for name in tasks):
            words.append("--overwrite")  # the first seed picks another rate now, on dev: no choice by this seed's test
    for task, choices in rates.items():
        if task not in tasks:
            continue
        words += ["--lr", f"{task}:{','.join(map(repr, choices))}"]
    students.call(words, folder / "evaluate.log")
    shutil.rmtree(states, ignore_errors=True)


def keep(folder: Path, student: Path, work: Path, target: Path) -> None:
    """Copy what the tables need into ``target``, without paths of this machine.

    Args:
        folder: the evaluation's.
        student: the student's, which may not be there.
        work: the experiment's; its path becomes WORK.
    """
    target.mkdir(parents=True, exist_ok=True)

    here, there = (json.dumps(text)[1:-1] for text in (f"{Path(sys.executable).parent}/", str(work)))  # as in the files

    def portable(file: Path) -> str:
        return file.read_text().replace(here, "").replace(there, "WORK")

    (target / SCORES).write_text(portable(folder / SCORES))
    tasks = read_scores(folder / SCORES)["tasks"]
    found = {name: items(TASKS[name], record, folder / "runs") for name, record in tasks.items()}
    (target / ITEMS).write_text(json.dumps(found, separators=(",", ":")) + "\n")
    if (student / DISTILLATION).is_file():
        (target / DISTILLATION).write_text(portable(student / DISTILLATION))


def items(task: Task, record: dict[str, Any], runs: Path) -> dict[str, list[int]]:
    """utterance -> [errors, tokens] of a tested run; behind them ER's fold, or ASR's [errors, tokens] of characters."""
    found: dict[str, list[int]] = {}
    for number, (fold, part) in enumerate(runs_of(record).items(), 1):
        folder = runs / part["folder"]
        for name, one in outcomes(task, folder, fold).items():
            found[name] = [int(one.errors), one.tokens] + [number] * (fold is not None)
        if task.name == "asr":
            said = read_predictions(folder / task.hypothesis)
            for name, text in read_predictions(folder / task.reference).items():
                found[name] += edit_counts(said[name], text, jiwer.process_characters)
    return found
