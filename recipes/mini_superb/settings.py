"""What experiment.yaml may say, and the rows that follow from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from s3prl_ekd.checked import Checked, check_values, read_yaml
from s3prl_ekd.config import ModelConfig, load_model_config
from s3prl_ekd.errors import EkdError, naming
from s3prl_ekd.evaluate.presets import parse_overrides, preset
from s3prl_ekd.evaluate.rates import parse_rates, parse_seeds
from s3prl_ekd.variants import BASE, variant_file

OWN = {"teachers", "initialise_from", "precision", "teacher_precision", "cache_targets"}
"""Keys of ``ekd`` that are the experiment's own."""


class Distillation(Checked):
    """The budget of every student."""

    steps: int = Field(ge=2)
    """Optimiser steps."""
    batch_seconds: float = Field(gt=0)
    """Audio a batch."""
    crop_seconds: float = Field(gt=0)
    """Longest crop."""
    lr: float = Field(gt=0)
    """Highest learning rate."""
    warmup: float = Field(gt=0, lt=1)
    """Share of the steps that warm up."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of student and teachers, said rather than left to the device, so that a row is the same wherever it is made."""
    cache_targets: bool = False
    """Have the teachers compute once for all rows and seeds (docs/target_cache.md). Clips are then fixed windows."""


class Evaluation(Checked):
    """How every row is evaluated, and how often everything is repeated."""

    preset: str
    """Of ``s3prl-ekd evaluate``."""
    seeds: list[int] = Field(min_length=1)
    """Each is that of a student's distillation and of the downstream training. Rates are picked with the first."""
    lr: dict[str, list[float]]
    """Rates to choose from, by task."""
    override: list[str] = []
    """``--override`` of ``s3prl-ekd evaluate``."""


class Experiment(Checked):
    """The whole experiment."""

    teachers: dict[str, str]
    """Source in a variant's file -> source here."""
    initialise_from: str
    """Start of every student."""
    students: list[str] = Field(min_length=1)
    """Variants to distil."""
    from_random: list[str] = []
    """Variants once more, from random weights instead of the common start: rows VARIANT_from_random."""
    ablations: dict[str, dict[str, Any]] = {}
    """Row -> keys of ``ekd`` that it changes in the paper's recipe, config_model.yaml."""
    longer: dict[str, int] = {}
    """Variant -> optimiser steps: once more, distilled for longer than every row; rows VARIANT_longer."""
    merged: dict[str, list[str]] = {}
    """Row -> students whose weights are averaged."""
    distillation: Distillation
    evaluation: Evaluation


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    kind: Literal["student", "merged", "start", "untrained", "teacher", "untrained_teacher", "upstream"]
    what: str
    """student: the variant; merged: nothing; teacher: the source; upstream: s3prl's name."""
    parts: tuple[str, ...] = ()
    """merged: the students."""
    from_random: bool = False
    """student: whether it starts from random weights."""
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """student: keys of ``ekd`` that it changes in its variant."""
    steps: int | None = None
    """student: optimiser steps, where they are not every row's."""

    def read_variant(self) -> ModelConfig:
        """The variant as it is for full-size teachers, with this row's changes.

        Raises:
            EkdError: a change that no configuration takes.
        """
        return load_model_config(variant_file(self.what), changes={"ekd": self.changes})


def read_experiment(file: Path) -> Experiment:
    """Read and check an experiment's file.

    Raises:
        EkdError: the file and the key, and what was expected.
    """
    experiment: Experiment = check_values(Experiment, read_yaml(file), str(file))
    for key, names in (("students", experiment.students), ("from_random", experiment.from_random)):
        for index, name in enumerate(names):
            if not variant_file(name).is_file():
                raise EkdError(f"{file}: {key}[{index}]: {name!r} is no file of pretrain/ekd/variants/")
    for name, steps in experiment.longer.items():
        if not variant_file(name).is_file():
            raise EkdError(f"{file}: longer.{name}: is no file of pretrain/ekd/variants/")
        if steps <= experiment.distillation.steps:
            usual = experiment.distillation.steps
            raise EkdError(f"{file}: longer.{name}: expected more steps than every row's {usual}, found {steps}")
    for key, named in (("merged", experiment.merged), ("ablations", experiment.ablations)):
        for name in named:
            if re.fullmatch(r"\w[\w.+-]*", name) is None:
                raise EkdError(f"{file}: {key}.{name}: names a folder; expected letters, digits and _ . + -")
    for name, parts in experiment.merged.items():
        unknown = [part for part in parts if part not in experiment.students]
        if unknown or len(parts) < 2:
            raise EkdError(f"{file}: merged.{name}: expected two or more of the students, found {parts}")
    for name, changes in experiment.ablations.items():
        where = f"{file}: ablations.{name}"
        taken = sorted(OWN & changes.keys())
        if taken:
            raise EkdError(f"{where}.{taken[0]}: is the experiment's, the same for every row")
        if not changes:
            raise EkdError(f"{where}: changes nothing")
        with naming(where):
            Row(name, "student", BASE, changes=changes).read_variant()
    with naming(file):
        rows(experiment)
    _check_evaluation(experiment.evaluation, f"{file}: evaluation")
    return experiment


def _check_evaluation(evaluation: Evaluation, where: str) -> None:
    """See that ``s3prl-ekd evaluate`` will take what it gets once the first student is distilled.

    Raises:
        EkdError: it will not; begins with ``where``.
    """
    with naming(where):
        preset(evaluation.preset)
        parse_overrides(evaluation.override)
        parse_seeds(",".join(map(str, evaluation.seeds)))
        parse_rates([f"{task}:{','.join(map(repr, rates))}" for task, rates in evaluation.lr.items()])


def rows(experiment: Experiment) -> list[Row]:
    """Every row, in the order in which they are made: what others build on comes first.

    Raises:
        EkdError: two rows of one name.
    """
    teachers = list(experiment.teachers.values())
    names = {source: re.sub(r"[^\w.+-]+", "-", Path(source.removeprefix("embedded:")).name) for source in teachers}
    found = [
        Row("fbank", "upstream", "fbank"),
        *(Row(names[source], "teacher", source) for source in teachers),
        *(Row(f"untrained_{names[source]}", "untrained_teacher", f"random:{source}") for source in teachers[:1]),
        Row("untrained", "untrained", BASE),
        Row("start", "start", BASE),
        *(Row(name, "student", name) for name in experiment.students),
        *(Row(f"{name}_from_random", "student", name, from_random=True) for name in experiment.from_random),
        *(Row(name, "student", BASE, changes=changes) for name, changes in experiment.ablations.items()),
        *(Row(f"{name}_longer", "student", name, steps=steps) for name, steps in experiment.longer.items()),
        *(Row(name, "merged", "", tuple(parts)) for name, parts in experiment.merged.items()),
    ]
    named = [row.name for row in found]
    doubled = sorted({name for name in named if named.count(name) > 1})
    if doubled:
        raise EkdError(
            f"two rows are called {doubled[0]!r}: students, ablations, merged and teachers need names of their own"
        )
    return found
