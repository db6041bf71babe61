"""What the readers of a ``scores.json`` rely on in a model's record, checked when it is read; more may stand in one.

Keys with a default are what records of older versions lack, or what stands only where there is something to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from s3prl_ekd.checked import check_values
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.tasks import TASKS

NOT_SCORES = "not a scores.json of s3prl-ekd evaluate"
_Kind = TypeVar("_Kind")


class _Part(BaseModel):
    """Numbers are percent where nothing else is said."""

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True)


class Rescored(_Part):
    """Our own numbers, from the prediction files."""

    agrees: bool = True
    """With the runner's."""
    per: float | None = None
    wer: float | None = None
    acc: float | None = None
    cer: float | None = None
    majority: float | None = None
    """What the commonest answer would score."""


class Score(_Part):
    """What is said of a run, a seed and a task alike."""

    per: float | None = None
    wer: float | None = None
    acc: float | None = None
    rescored: Rescored
    dev: float | None
    seconds: float
    """Of all trainings behind it, and of the tests."""
    commands: list[str]
    lr: float | None
    """None: not the same for all seeds, or not named by the configuration."""
    steps: int
    n_utterances: int


class TestedRun(Score):
    """A run of one fold."""

    folder: str
    """Its name in the record's ``runs``."""
    checkpoint: str
    versions: dict[str, str] = {}
    """Of the packages whose code decides a score."""
    layer_weights: list[float] | None = None
    """Softmax weight of each hidden state, from state 0; empty where the task read a single one."""


class Rate(_Part):
    """A learning rate of a grid."""

    lr: float
    dev: float | None
    picked: bool
    seconds: float = 0.0
    """Of its trainings, and of the tests where there were any."""
    folds: dict[str, float | None] = {}
    """Dev score of each."""


class SeedScore(Score):
    """A seed's record of a task: that of its only run, or the mean over folds."""

    folder: str | None = None
    checkpoint: str | None = None
    versions: dict[str, str] = {}
    layer_weights: list[float] | None = None
    folds: dict[str, TestedRun] = {}
    grid: list[Rate] = []
    overrides: dict[str, str] = {}
    data_sha256: str | None = None

    @model_validator(mode="after")
    def _has_runs(self) -> SeedScore:
        for key in ("folds", "grid"):
            if key in self.model_fields_set and not getattr(self, key):
                raise ValueError(f"{key}: expected one or more")
        for key in ("folder", "checkpoint"):
            if not self.folds and getattr(self, key) is None:
                raise ValueError(f"{key}: required key is missing")
        if self.grid and not any(rate.picked for rate in self.grid):
            raise ValueError("grid: expected a rate that was picked")
        return self


class SeveralSeeds(Score):
    """A task's means over several seeds."""

    seeds: dict[str, SeedScore]
    """By the seed's number."""
    standard_error: dict[Literal["per", "wer", "acc", "cer"], float]
    """Of the means."""
    chance: float | None = None

    @field_validator("seeds")
    @classmethod
    def _are_numbers(cls, seeds: dict[str, SeedScore]) -> dict[str, SeedScore]:
        if not seeds or not all(seed.isdecimal() for seed in seeds):
            raise ValueError(f"expected whole numbers, found {', '.join(seeds) or 'none'}")
        return seeds


class OneSeed(SeedScore):
    """A task of one seed."""

    seed: int | None = None
    """None: the record's."""
    chance: float | None = None


class Cost(_Part):
    """Of the upstream."""

    params: int
    macs: int
    """As the SUPERB challenge counts them."""


class Record(_Part):
    """One model, less its tasks."""

    label: str
    upstream: str
    """s3prl's name."""
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    config: str | None = Field(None, alias="model_config")
    feature: str | None = None
    """The key of the upstream's output that tasks read (s3prl's -s); None: all hidden states."""
    layer: int | None = None
    """The only state of these (s3prl's -l); None: their weighted sum."""
    preset: str
    data: str | None = None
    normalize: bool | None = None
    cache_states: bool | None = None
    seed: int
    """The first one."""
    folder: str = ""
    """In a table: where the model's own record is."""
    cost: Cost | None = None
    versions: dict[str, str]
    machine: dict[str, Any]
    tasks: dict[str, dict[str, Any]]

    @field_validator("label")
    @classmethod
    def _is_printable(cls, label: str) -> str:
        if not label.isprintable():  # a terminal would obey it
            raise ValueError(f"expected printable characters, found {label!r}")
        return label


def check_record(path: Path, record: Any, prefix: str) -> dict[str, Any]:
    """A model's record as it was read, where it is one.

    Args:
        path: the file.
        prefix: the record's key in it, of a table; else empty.

    Raises:
        EkdError: names the file and the first key that is missing or of another kind.
    """
    file = f"{path}: {NOT_SCORES}"
    if not isinstance(record, dict):
        raise EkdError(f"{file}: {prefix or 'the whole'}: expected a mapping of keys")
    check_values(Record, record, file, prefix)
    for name, values in record["tasks"].items():
        key = f"{prefix}.tasks.{name}".removeprefix(".")
        task = check_values(SeveralSeeds if "seeds" in values else OneSeed, values, file, key)
        metric = TASKS[name].metric if name in TASKS else None
        for below, part in _parts(task):
            if metric is not None and getattr(part, metric) is None:
                raise EkdError(f"{file}: {key}{below}.{metric}: expected a number")
    return record


def _parts(task: OneSeed | SeveralSeeds) -> Iterator[tuple[str, Score]]:
    """A task's scores down to those of its runs, each with its key below the task's."""
    yield "", task
    seeds: dict[str, SeedScore] = {"": task} if isinstance(task, OneSeed) else _below("seeds", task.seeds)
    for key, part in seeds.items():
        yield key, part
        yield from ((key + below, run) for below, run in _below("folds", part.folds).items())


def _below(key: str, parts: dict[str, _Kind]) -> dict[str, _Kind]:
    return {f".{key}.{name}": part for name, part in parts.items()}
