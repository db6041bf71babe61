"""The sources of a report, read: pretraining folders (``metrics.jsonl``) and evaluation folders (``scores.json``).

Nothing is drawn or written here.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.marker import read_marker
from s3prl_ekd.evaluate.run import layer_weights, load_downstream_checkpoint
from s3prl_ekd.evaluate.scores_file import FILE_NAME, by_seed, read_models, run_folder, runs_of, told_apart
from s3prl_ekd.metrics_file import METRICS, VALIDATION, read_metrics

log = logging.getLogger(__name__)


@dataclass
class Pretraining:
    """One experiment folder of ``run_pretrain.py -u ekd``."""

    folder: Path
    metrics: list[dict[str, Any]]  # one a log step, see below
    configs: dict[str, str] = field(default_factory=dict)  # file name -> YAML text
    validation: list[dict[str, Any]] = field(default_factory=list)  # one a checkpoint, as ``metrics``
    label: str = ""  # tells it from the report's other runs; "" is the name

    def __post_init__(self) -> None:
        self.label = self.label or self.name

    @property
    def name(self) -> str:
        """The experiment's name: its folder's."""
        return self.folder.resolve().name

    @property
    def speed(self) -> float | None:
        """Seconds of audio trained on in a second, the median of the log steps; None where none was logged."""
        speeds = sorted(
            line["audio_seconds_per_second"] for line in self.metrics if line.get("audio_seconds_per_second")
        )
        return speeds[len(speeds) // 2] if speeds else None

    def heads(self) -> list[str]:
        """``<teacher>.<layer>`` of every prediction head, teachers in the order they were given, layers ascending."""
        names = list(dict.fromkeys(name for line in self.metrics for name in line.get("heads", {})))
        order = {teacher: rank for rank, teacher in enumerate(dict.fromkeys(split_head(name)[0] for name in names))}
        first = {name: int(re.split("[+-]", split_head(name)[1])[0]) for name in names}
        return sorted(names, key=lambda name: (order[split_head(name)[0]], first[name]))


@dataclass
class Evaluation:
    """One model's output folder of ``s3prl-ekd evaluate``."""

    folder: Path
    scores: dict[str, Any]
    layer_weights: dict[str, list[float]] = field(default_factory=dict)  # task -> softmax weight of each hidden state


def read_results(folders: list[Path]) -> tuple[list[Pretraining], list[Evaluation]]:
    """Read result folders, each once, by what they hold; warns of each that cannot be used beside others that can.

    Raises:
        EkdError: none can be used; why the first cannot.
    """
    pretrainings: list[Pretraining] = []
    evaluations: list[Evaluation] = []
    unusable: list[EkdError] = []
    seen: set[Path] = set()
    rows: set[tuple[Path, str]] = set()
    for folder in folders:
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        try:
            own_pretrainings, own_evaluations = _read_folder(folder)
        except EkdError as error:
            unusable.append(error)
            continue
        pretrainings += own_pretrainings
        own_folders = len({one.folder for one in own_evaluations}) == len(own_evaluations)
        for one in own_evaluations:  # a table's row has a folder of its own, which may be named too (table/*)
            row = one.folder.resolve(), "" if own_folders else one.scores["label"]
            if row not in rows:
                rows.add(row)
                evaluations.append(one)
    if unusable and not pretrainings and not evaluations:
        raise unusable[0]
    for reason in unusable:
        log.warning("left out: %s", reason)
    names = Counter(run.name for run in pretrainings)
    for run in pretrainings:
        if names[run.name] > 1:
            run.label = f"{run.name} ({run.folder})"
    models = told_apart([(one.folder, one.scores) for one in evaluations])
    for one, (_, record) in zip(evaluations, models, strict=True):
        one.scores = record  # figures tell models by their labels
    return pretrainings, evaluations


def _read_folder(folder: Path) -> tuple[list[Pretraining], list[Evaluation]]:
    """What one result folder holds; it may be of both kinds."""
    has_metrics, has_scores = (folder / METRICS).is_file(), (folder / FILE_NAME).is_file()
    if not has_metrics and not has_scores:
        raise EkdError(f"{folder}: holds neither {METRICS} (run_pretrain.py) nor {FILE_NAME} (s3prl-ekd evaluate)")
    return (
        [read_pretraining(folder)] if has_metrics else [],
        [_evaluation(own, scores) for own, scores in read_models(folder)] if has_scores else [],
    )


def read_pretraining(folder: Path) -> Pretraining:
    """Read the metrics and the copies of the configuration in an experiment folder.

    Raises:
        EkdError: no metrics yet, or a file that cannot be read.
    """
    path = folder / METRICS
    lines = read_metrics(path)
    if not lines:
        raise EkdError(f"{path}: no log step yet; pretraining writes one line every runner.log_step")
    configs = {file.name: _text(file) for file in sorted(folder.glob("*.y*ml")) if not file.name.startswith("args")}
    held_out = folder / VALIDATION
    return Pretraining(folder, lines, configs, read_metrics(held_out) if held_out.is_file() else [])


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EkdError(f"{file}: cannot be read ({error})") from error


def _evaluation(folder: Path, scores: dict[str, Any]) -> Evaluation:
    """Add to one model's scores the layer weights that its downstream trainings learned."""
    weights: dict[str, list[float]] = {}
    for name, record in scores["tasks"].items():
        runs = [(seed, run) for seed, part in by_seed(record).items() for run in runs_of(part).values()]
        found = [row for seed, run in runs if (row := _layer_weights(folder, seed, run))]
        if found:
            weights[name] = [sum(column) / len(found) for column in zip(*found, strict=True)]
    return Evaluation(folder, scores, weights)


def _layer_weights(folder: Path, seed: int | None, run: Mapping[str, Any]) -> list[float]:
    """A tested run's; of a record that does not hold them, its checkpoint's, where that is still there and still its.

    Empty where they are not known, or the task read a single state.
    """
    noted: list[float] | None = run.get("layer_weights")
    if noted is not None:
        return noted
    path = Path(run["checkpoint"])
    # The folder may have been moved since: look beside scores.json first.
    here = run_folder(folder, run) / path.name
    path = here if here.is_file() else path
    if not path.is_file() or not _is_still_of(seed, path.parent):
        return []
    try:
        return layer_weights(load_downstream_checkpoint(path))
    except EkdError as error:  # the scores do not depend on it
        log.warning("%s: left out of the layer weights", error)
        return []


def _is_still_of(seed: int | None, run: Path) -> bool:
    """Whether a run's folder still holds the run of that seed.

    Not where another seed has been trained in it since (it would count twice), nor while one is training there now.
    """
    try:
        marker = read_marker(run)
    except EkdError:
        return False
    return marker is None or (marker.state == "finished" and seed in (None, marker.settings.get("seed")))


def split_head(name: str) -> tuple[str, str]:
    """Split ``"hubert.4"`` into ``("hubert", "4")``, ``"average.4+8"`` into ``("average", "4+8")``; without one, 0."""
    teacher, _, layer = name.rpartition(".")
    return (teacher, layer) if teacher and re.fullmatch(r"\d+(?:[+-]\d+)*", layer) else (name, "0")
