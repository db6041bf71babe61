"""The SUPERB public-set submission: ``predict.zip`` from the experiment folders of ``s3prl-ekd evaluate``.

The site scores only the utterances that a prediction file holds and silently leaves a task out when one is unknown or a
fold of ER is missing. So everything is compared with the runner's own reference files first, and the site's scoring is
repeated here. Which file of s3prl goes where in the zip: s3prl's submit/submit.py.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import editdistance

from s3prl_ekd.corpora import fluent_commands, speech_commands
from s3prl_ekd.corpora.layout_emotion import SUPERB_EMOTIONS
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.kept_scores import scored_runs
from s3prl_ekd.evaluate.marker import MARKER
from s3prl_ekd.evaluate.score import separator
from s3prl_ekd.evaluate.scores_file import FILE_NAME, by_seed, read_scores, run_folder, runs_of
from s3prl_ekd.evaluate.tasks import TASKS, Task, parse_tasks
from s3prl_ekd.whole_file import whole_file
from s3prl_ekd.writable import output_file

log = logging.getLogger(__name__)

FOLDS = tuple(f"fold{number}" for number in range(1, 6))
# Utterances of SUPERB's public test sets: test-clean, VoxCeleb1's identification split, IEMOCAP's five sessions, and
# those of Speech Commands v0.01 and Fluent Speech Commands
FULL = {
    "pr": 2620,
    "sid": 8251,
    "er": 1085 + 1023 + 1151 + 1031 + 1241,
    "asr": 2620,
    "ks": speech_commands.TEST_UTTERANCES,
    "ic": fluent_commands.TEST_UTTERANCES,
}
LIMIT = 50 * 10**6  # bytes: the site's form takes no larger file
ALL_FOLDS = "the site scores ER only with all five folds"
# The site's name of a task's predictions below predict/
PLACES = {
    "pr": "pr_public/predict.ark",
    "sid": "sid_public/predict.txt",
    "er": "er_{fold}_public/predict.txt",
    "asr": "asr_public/predict.ark",
    "ks": "ks_public/predict.txt",
    "ic": "ic_public/predict.csv",
}


@dataclass(frozen=True)
class Prediction:
    """One file of the submission, checked."""

    task: Task
    source: Path
    place: str
    """Its path in the zip."""
    score: float
    """As the site computes it: a fraction, an error rate for PR and ASR, else an accuracy."""
    utterances: int


def export_public(
    runs: Path, out: Path, tasks: str | None = None, seed: int | None = None
) -> tuple[Path, dict[str, float]]:
    """Collect, check, score and zip the predictions below ``runs``.

    Args:
        runs: the ``--out`` folder of ``s3prl-ekd evaluate`` (or its ``runs`` folder). Where evaluate has left its
            ``scores.json``, the runs that it names are submitted and no others.
        out: the zip file.
        tasks: e.g. ``pr,sid``; None for every task that is in scores.json or, without one, has a run.
        seed: whose predictions, where the evaluation has several seeds.

    Returns:
        the zip file, and the site's score by task (ER: mean of its five folds).

    Raises:
        EkdError: no runs, a task that scores.json does not list, several seeds and none named, a missing or double
            utterance, a missing fold, a label the site does not know, or too large.
    """
    output_file(out, ".zip")
    earlier = _earlier(out)
    named = None if tasks is None else parse_tasks(tasks)
    home = _evaluation(runs)
    tested: dict[str, dict[str, Any]] = {}
    if home is None:
        chosen, places = _by_name(runs, named, seed)
    else:
        listed = read_scores(home)["tasks"]
        chosen = _listed(home, listed, named)
        tested = {task.name: _tested(home, task.name, listed[task.name], seed) for task in chosen}
        places = {task.name: _recorded(home, task, tested[task.name]) for task in chosen}
    predictions = [one for task in chosen for one in _collect(task, places[task.name])]
    scores = {}
    for task in chosen:
        parts = [one for one in predictions if one.task is task]
        scores[task.name] = sum(one.score for one in parts) / len(parts)
        count = sum(one.utterances for one in parts)
        if count != FULL[task.name]:
            log.warning(
                "%s: %d utterances, SUPERB's test set has %d: no SUPERB score", task.name, count, FULL[task.name]
            )
    if home is not None:
        _agree_with_record(home, scores, tested)
    gone = [task.name for task in TASKS.values() if task.name in earlier and task not in chosen]
    if gone:
        log.warning("%s: replaced; the earlier one held %s too", out, ", ".join(gone))
    with whole_file(out) as partial:
        # a zip knows no time before 1980, which some copies of a file have
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            for one in predictions:
                archive.write(one.source, f"predict/{one.place}")
        size = partial.stat().st_size
        if size >= LIMIT:
            raise EkdError(f"{out}: {size / 1e6:.0f} MB; the site takes less than {LIMIT / 1e6:.0f} MB")
    return out, scores


def _earlier(out: Path) -> set[str]:
    """The tasks in an earlier zip at ``out``.

    Raises:
        EkdError: something else is there.
    """
    if not out.exists():
        return set()
    try:
        with zipfile.ZipFile(out) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise EkdError(f"--out {out}: exists and is not a zip file ({error}); name another") from error
    folders = {name: place.partition("/")[0].partition("_")[0] for name, place in PLACES.items()}
    if not all(name.startswith("predict/") for name in names):
        raise EkdError(f"--out {out}: exists and is not an earlier submission (predict/...); name another")
    return {name for name, folder in folders.items() if any(one.startswith(f"predict/{folder}_") for one in names)}


def score_lines(scores: Mapping[str, float]) -> list[str]:
    """One line for each task: the site's score, a fraction, and in percent."""
    return [f"{name} {TASKS[name].metric}: {score:.6f} ({100 * score:.2f} %)" for name, score in scores.items()]


def site_score(task: Task, predictions: Mapping[str, str], references: Mapping[str, str]) -> float:
    """The site's scoring (backend/calculate.py) of one prediction file, as a fraction.

    PR and ASR: edit distance over ``split(" ")`` summed, by the references' tokens summed; the others: exact matches.
    """
    if task.metric == "acc":
        return sum(predictions[name] == references[name] for name in predictions) / len(predictions)
    errors = tokens = 0
    for name, text in predictions.items():
        reference = references[name].split(" ")
        errors += editdistance.eval(text.split(" "), reference)
        tokens += len(reference)
    return errors / tokens


def _evaluation(runs: Path) -> Path | None:
    """The folder of the scores.json that says which runs count; None where evaluate has left none."""
    above = [runs.resolve().parent] if runs.resolve().name == "runs" else []
    return next((folder for folder in [runs, *above] if (folder / FILE_NAME).is_file()), None)


def _listed(home: Path, listed: Mapping[str, Any], named: Sequence[Task] | None) -> list[Task]:
    """The tasks to submit, of those in scores.json.

    The file leaves out tasks that have a folder below ``runs`` and no valid score: another model's, or outdated ones.
    """
    for task in named or ():
        if task.name not in listed:
            raise EkdError(
                f"{home / FILE_NAME}: {task.name} is not in it (any run of it there is outdated or another model's); "
                "run s3prl-ekd evaluate again"
            )
    chosen = [task for task in TASKS.values() if task.name in listed] if named is None else list(named)
    if not chosen:
        raise EkdError(f"{home / FILE_NAME}: holds no score of {', '.join(TASKS)}")
    return chosen


def _tested(home: Path, name: str, task: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    """Of a task's record in scores.json the run to submit: at one seed, and at the learning rate that was picked."""
    seeds = by_seed(task)
    if seed is None and len(seeds) == 1:
        return next(iter(seeds.values()))
    there = ", ".join(map(str, seeds))
    if seed is None:
        raise EkdError(
            f"{home / FILE_NAME}: {name} was tested at the seeds {there}, and the site takes one prediction; choose "
            "with --seed"
        )
    if seed not in seeds:
        raise EkdError(f"--seed {seed}: {name} was not tested at it; {home / FILE_NAME} has {there}")
    return seeds[seed]


def _recorded(home: Path, task: Task, tested: Mapping[str, Any]) -> dict[str | None, Path]:
    """Fold (None without folds) -> the experiment folder that scores.json names."""
    parts = runs_of(tested)
    folders: dict[str | None, Path] = {}
    for fold in FOLDS if task.folded else (None,):
        if fold not in parts:
            raise EkdError(f"{home / FILE_NAME}: {task.name} {fold} is not in it: {ALL_FOLDS}")
        folders[fold] = run_folder(home, parts[fold])
    for seed, _, folder, marker in scored_runs(tested, home):
        if marker is None and (folder / MARKER).is_file():
            raise EkdError(f"{folder}: is not the run of seed {seed} that {home / FILE_NAME} names; that one is gone")
    return folders


def _by_name(
    runs: Path, named: Sequence[Task] | None, seed: int | None
) -> tuple[list[Task], dict[str, dict[str | None, Path]]]:
    """Tasks and their folders where there is no scores.json: those that evaluate/plan.py gives a single run."""
    if seed is not None:
        raise EkdError(f"--seed {seed}: {runs} holds no {FILE_NAME} that says which runs are of that seed")
    root = runs / "runs" if (runs / "runs").is_dir() else runs
    places: dict[str, dict[str | None, Path]] = {
        task.name: {fold: root / f"{task.name}-{fold}" for fold in FOLDS} if task.folded else {None: root / task.name}
        for task in TASKS.values()
    }
    found = [task for task in TASKS.values() if any(folder.is_dir() for folder in places[task.name].values())]
    chosen = found if named is None else list(named)
    if not chosen:
        raise EkdError(f"--runs {runs}: holds no run of {', '.join(TASKS)}; s3prl-ekd evaluate --out {runs} makes them")
    return chosen, places


def _collect(task: Task, folders: Mapping[str | None, Path]) -> list[Prediction]:
    predictions = []
    for fold, folder in folders.items():
        if not folder.is_dir():
            rest = f": {ALL_FOLDS}" if task.folded else ""
            raise EkdError(f"{folder}: no run of {task.name}{f' {fold}' if fold else ''} there{rest}")
        source = folder / task.hypothesis.format(fold=fold)
        ours, truth = _read(source), _read(folder / task.reference.format(fold=fold))
        missing, unknown = sorted(truth.keys() - ours.keys()), sorted(ours.keys() - truth.keys())
        if missing:
            raise EkdError(f"{source}: {len(missing)} of {len(truth)} utterances are missing, such as {missing[0]}")
        if unknown:
            raise EkdError(f"{source}: {unknown[0]} is no utterance of the test set; the site would not score the task")
        if task.name == "er":
            strange = sorted(set(ours.values()) - {*SUPERB_EMOTIONS})
            if strange:
                raise EkdError(f"{source}: label {strange[0]!r}; the site knows {', '.join(SUPERB_EMOTIONS)}")
        place = PLACES[task.name].format(fold=fold)
        predictions.append(Prediction(task, source, place, site_score(task, ours, truth), len(truth)))
    return predictions


def _read(path: Path) -> dict[str, str]:
    """Read ``{utterance: text}``: the first space (or comma) separates, as on the site; the text is kept as it is."""
    if not path.is_file():
        raise EkdError(f"{path}: not found; s3prl's runner writes it when it tests a checkpoint (-m evaluate)")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise EkdError(f"{path}: is not plain text, which the site asks for") from error
    table: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        name, _, text = line.partition(separator(path))
        if not name:
            raise EkdError(f"{path}:{number}: expected an utterance's name, {separator(path)!r}, and its prediction")
        if name in table:
            raise EkdError(f"{path}:{number}: utterance {name} appears twice")
        table[name] = text
    if not table:
        raise EkdError(f"{path}: holds no utterance")
    return table


def _agree_with_record(home: Path, scores: Mapping[str, float], tested: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the predictions give the scores in evaluate's scores.json.

    Raises:
        EkdError: they are of another run.
    """
    for name, score in scores.items():
        recorded = tested[name][TASKS[name].metric]
        if abs(recorded - 100 * score) > 0.05:
            raise EkdError(
                f"{home / FILE_NAME}: {name} {TASKS[name].metric} is {recorded:.2f}, but the prediction files give "
                f"{100 * score:.2f}; they are of another run"
            )
