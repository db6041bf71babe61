"""Scores computed from the runner's prediction files, independently of the runner, and compared with what it printed.

PR and ASR: edit distance over reference length, summed over utterances (jiwer). The others: exact matches, of IC in all
three slots. All in percent. The score that counts stays the runner's own; this module tells whether the two agree.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jiwer

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.tasks import Task

_Process = Callable[[str, str], jiwer.WordOutput | jiwer.CharacterOutput]

TOLERANCE = 0.01  # percentage points: the runner averages accuracies in float32 and prints them unrounded


def read_predictions(path: Path) -> dict[str, str]:
    """Read ``{utterance: text}`` from a prediction file: one utterance a line, the first space (or comma) separates.

    Raises:
        EkdError: the file is missing, empty, or names an utterance twice.
    """
    if not path.is_file():
        raise EkdError(f"{path}: not found; s3prl's runner writes it when it tests a checkpoint")
    table: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        utterance, _, text = line.partition(separator(path))
        if utterance in table:
            raise EkdError(f"{path}:{number}: utterance {utterance} appears twice")
        table[utterance] = " ".join(text.split())
    if not table:
        raise EkdError(f"{path}: holds no utterance")
    return table


def separator(path: Path) -> str:
    """What stands behind an utterance's name in a prediction file."""
    return "," if path.suffix == ".csv" else " "


def word_error_rate(hypotheses: dict[str, str], references: dict[str, str]) -> float:
    """Word (or phoneme) error rate in percent, over all utterances of ``references``."""
    return _edit_rate(hypotheses, references, jiwer.process_words)


def character_error_rate(hypotheses: dict[str, str], references: dict[str, str]) -> float:
    """Character error rate in percent; the space between two words is a character."""
    return _edit_rate(hypotheses, references, jiwer.process_characters)


def accuracy(hypotheses: dict[str, str], references: dict[str, str]) -> float:
    """Exact matches over the utterances of ``references``, in percent."""
    return 100.0 * sum(hypotheses[name] == label for name, label in references.items()) / len(references)


def majority_share(labels: dict[str, str]) -> float:
    """Share of the most frequent label in percent: the score of always answering it."""
    return 100.0 * Counter(labels.values()).most_common(1)[0][1] / len(labels)


def rescore(task: Task, folder: Path, fold: str | None = None) -> dict[str, float | int]:
    """Score one tested run from its files: ``{metric: percent, "n_utterances": int, ["cer"], ["majority"]}``."""
    hypotheses, references = _read_both(task, folder, fold)
    if task.metric == "acc":
        scores: dict[str, float | int] = {"acc": accuracy(hypotheses, references)}
        scores["majority"] = majority_share(references)
    else:
        scores = {task.metric: word_error_rate(hypotheses, references)}
    if task.name == "asr":
        scores["cer"] = character_error_rate(hypotheses, references)
    scores["n_utterances"] = len(references)
    return scores


@dataclass(frozen=True)
class Outcome:
    """How one utterance was recognised."""

    errors: float
    """Edits, or 1 for a wrong class; a mean over seeds is not whole."""
    tokens: int
    """What they are out of: words or phonemes of the reference, or one class."""
    reference: str


def outcomes(task: Task, folder: Path, fold: str | None = None) -> dict[str, Outcome]:
    """How a tested run did on each utterance; the task's score is all errors over all tokens.

    Raises:
        EkdError: prediction files are missing, or do not go together.
    """
    hypotheses, references = _read_both(task, folder, fold)
    found = {}
    for name, reference in references.items():
        if task.metric == "acc":
            errors, tokens = int(hypotheses[name] != reference), 1
        else:
            errors, tokens = edit_counts(hypotheses[name], reference, jiwer.process_words)
        found[name] = Outcome(errors, tokens, reference)
    return found


def _read_both(task: Task, folder: Path, fold: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """Hypotheses and references of a tested run."""
    hypotheses = read_predictions(folder / task.hypothesis.format(fold=fold))
    references = read_predictions(folder / task.reference.format(fold=fold))
    if hypotheses.keys() != references.keys():
        odd = sorted(hypotheses.keys() ^ references.keys())
        raise EkdError(f"{folder}: {task.hypothesis.format(fold=fold)} and its reference differ: only one has {odd[0]}")
    return hypotheses, references


def runner_scores(task: Task, output: str, split: str) -> list[float]:
    """Every ``<split> <metric>: x`` that the runner printed, in order, in percent."""
    # No anchor at the start of the line: tqdm's bar and the runner's prints share a terminal line.
    pattern = re.compile(rf"(?<![\w-]){re.escape(split)} {task.metric}: ([0-9.]+(?:e-?\d+)?|nan)")
    return [task.runner_scale * float(value) for value in pattern.findall(output)]


def best(task: Task, values: list[float]) -> float | None:
    """The value that the runner would keep a checkpoint for; ``None`` of none. NaN (divergence) is no value."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return None
    return min(known) if task.lower_is_better else max(known)


def agrees(ours: float, runners: float) -> bool:
    """Whether two scores in percent are the same number up to rounding."""
    return abs(ours - runners) <= TOLERANCE


def edit_counts(hypothesis: str, reference: str, process: _Process) -> tuple[int, int]:
    """(errors, tokens of the reference) of one utterance; ``process``: jiwer's process_words or process_characters."""
    if not reference:
        # jiwer refuses an empty reference; every hypothesised token is then one insertion.
        return len(hypothesis.split() if process is jiwer.process_words else hypothesis), 0
    result = process(reference, hypothesis)
    errors = result.substitutions + result.deletions + result.insertions
    return errors, result.substitutions + result.deletions + result.hits


def _edit_rate(hypotheses: dict[str, str], references: dict[str, str], process: _Process) -> float:
    counts = [edit_counts(hypotheses[name], reference, process) for name, reference in references.items()]
    errors, tokens = (sum(column) for column in zip(*counts, strict=True))
    if tokens == 0:
        raise EkdError("error rate: every reference is empty")
    return 100.0 * errors / tokens
