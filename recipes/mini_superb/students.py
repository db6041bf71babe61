"""A row's student: its configuration, its distillation by ``run_pretrain.py -u ekd``, its place in the work folder."""

from __future__ import annotations

import json
import shlex
import threading
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from recipes.mini_superb.calls import Calls
from recipes.mini_superb.settings import Distillation, Experiment, Row, rows
from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.config import load_model_config
from s3prl_ekd.data.target_folder import INDEX, CacheFolder
from s3prl_ekd.errors import EkdError
from s3prl_ekd.export.merge import merge_checkpoints
from s3prl_ekd.file_digest import file_digest
from s3prl_ekd.metrics_file import METRICS, read_metrics
from s3prl_ekd.model.student import Student, initialise_student, student_like
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.student_checkpoint import newest_checkpoint
from s3prl_ekd.student_part import CHECKPOINT_KEY, student_state
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.build import load_teacher
from s3prl_ekd.teachers.fingerprint import weights_digest
from s3prl_ekd.variants import BASE, variant_file
from s3prl_ekd.whole_file import whole_file

DISTILLATION = "distillation.json"
MADE_BY = "made_by.json"


def model_config(experiment: Experiment, row: Row) -> dict[str, Any]:
    """A file on top of the row's variant: small teachers in their places, a student of their width, one start.

    Layers keep their place in proportion: 4, 8, 12 of 12 are 2, 4, 6 of 6.

    Raises:
        EkdError: the variant names a source that the experiment has nothing for; no student can start from the
            experiment's ``initialise_from``.
    """
    file, config = variant_file(row.what), row.read_variant()
    shape = sources.describe(experiment.initialise_from, "initialise_from").shape
    if not isinstance(shape, EncoderShape):
        raise EkdError(f"initialise_from: {experiment.initialise_from}: is an upstream of s3prl's own; name an encoder")
    teachers = []
    for teacher in config.ekd.teachers:
        if teacher.source not in experiment.teachers:
            raise EkdError(f"{file}: ekd.teachers: the experiment has nothing for {teacher.source!r}")
        own = sources.describe(experiment.teachers[teacher.source], "teachers")
        depth = sources.describe(teacher.source, "teachers").shape.layers
        layers = [layer * own.shape.layers // depth for layer in teacher.layers]
        teachers.append({"name": teacher.name, "source": own.source, "layers": layers})
    return {
        "base": file.name,
        "ekd": {
            "teachers": teachers,
            "initialise_from": None if row.from_random else experiment.initialise_from,
            "precision": experiment.distillation.precision,
            "teacher_precision": experiment.distillation.precision,
            **row.changes,
        },
        "student": {"layers": config.student.layers, **student_like(shape)},
        "task": {"sequence_length": int(experiment.distillation.crop_seconds * SAMPLE_RATE)},
    }


def every_target(experiment: Experiment) -> dict[str, Any]:
    """A configuration whose teachers and layers are those of all variants together: it fills the target cache."""
    every = Row("every_target", "student", BASE, from_random=True)
    config, base = model_config(experiment, every), every.read_variant().ekd
    layers: dict[tuple[str, str], set[int]] = {}
    for row in (row for row in rows(experiment) if row.kind == "student"):
        own = row.read_variant()
        same = (own.ekd.targets.tap, own.ekd.cache_precision) == (base.targets.tap, base.cache_precision)
        if not same or (own.distortion is not None and own.distortion.setup != "clean_teacher"):
            raise EkdError(f"distillation.cache_targets: the targets of {row.name} are no part of one cache; use false")
        for teacher in model_config(experiment, row)["ekd"]["teachers"]:
            layers.setdefault((teacher["name"], teacher["source"]), set()).update(teacher["layers"])
    config["ekd"]["teachers"] = [
        {"name": name, "source": source, "layers": sorted(found)} for (name, source), found in layers.items()
    ]
    return config


def write_config(config: dict[str, Any], folder: Path, targets: Path | None = None) -> Path:
    """``model.yaml`` of a row or of the target cache; ``targets``: where its teachers' states are kept."""
    if targets is not None:
        config = config | {"ekd": config["ekd"] | {"cache_targets": str(targets)}}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False, default_flow_style=None))
    return file


class Students:
    """The students of an experiment, each made once a seed; whoever needs one that is being made waits for it.

    Args:
        experiment: rows and budget.
        work: gets ``students/ROW/seedN``, and ``targets`` where the experiment caches them.
        data: what ``s3prl-ekd prepare`` made.
        device: of the distillation.
        call: runs it.
    """

    def __init__(self, experiment: Experiment, work: Path, data: Path, device: str, call: Calls) -> None:
        self.experiment, self.work, self.data, self.device, self.call = experiment, work, data, device, call
        self._locks: dict[Path, threading.Lock] = {}
        self.targets = work / "targets" if experiment.distillation.cache_targets else None
        self._digests: dict[str, str | None] = {}

    def folder(self, row: str, seed: int) -> Path:
        """Where a row's student of a seed is."""
        return self.work / "students" / row / f"seed{seed}"

    def checkpoint(self, row: Row, seed: int) -> Path:
        """A checkpoint that ``--ckpt`` takes, made unless it is there.

        Raises:
            EkdError: the distillation failed, or what is there was made with other settings.
        """
        folder = self.folder(row.name, seed)
        with self._locks.setdefault(folder, threading.Lock()):
            return self._checkpoint(row, seed, folder)

    def _checkpoint(self, row: Row, seed: int, folder: Path) -> Path:
        if row.kind == "merged":
            parts = [newest_checkpoint(self.checkpoint(Row(part, "student", part), seed)) for part in row.parts]
            claim(folder, {"parts": dict(zip(row.parts, map(file_digest, parts), strict=True))})
            return _once(folder / "merged.ckpt", lambda out: merge_checkpoints(parts, out))
        config = model_config(self.experiment, row)
        budget = self._budget(row) if row.kind == "student" else None
        made_of = None if budget is None else budget.model_dump()
        claim(folder, {"model": config, "distillation": made_of, "weights": self._weights(config)})
        file = write_config(config, folder, self.targets if row.kind == "student" else None)
        if row.kind == "start":
            return _once(folder / "start.ckpt", lambda out: _write_start(file, out))
        if budget is not None and not (folder / DISTILLATION).is_file():
            if self.targets is not None:
                with self._locks.setdefault(self.targets, threading.Lock()):
                    self._fill(self.targets)
            self._distil(file, folder, seed, budget)
        return folder / "run"

    def _budget(self, row: Row) -> Distillation:
        """A row's own steps in every row's budget."""
        budget = self.experiment.distillation
        return budget if row.steps is None else budget.model_copy(update={"steps": row.steps})

    def _weights(self, config: dict[str, Any]) -> dict[str, str | None]:
        """The digests of all weights that a configuration names: another release may ship others by the same name."""
        names = {teacher["source"] for teacher in config["ekd"]["teachers"]}
        names |= {config["ekd"]["initialise_from"]} - {None}
        for name in names - self._digests.keys():
            self._digests[name] = weights_digest(sources.describe(name, "teachers"), "teachers", download=True)
        return {name: self._digests[name] for name in sorted(names)}

    def _fill(self, targets: Path) -> None:
        """Have the teachers of all rows compute what is missing in the target cache."""
        folder, config, budget = self.work / "filling", every_target(self.experiment), self.experiment.distillation
        made_by = {"model": config, "batch_seconds": budget.batch_seconds, "weights": self._weights(config)}
        claim(folder, made_by, "target cache", f" and {targets}")
        if (targets / INDEX).is_file() and CacheFolder(targets, "cache_targets").is_complete():
            return
        words = ["s3prl-ekd", "targets", "-g", str(write_config(config, folder, targets))]
        words += ["-c", str(self._write_runner(folder, 0, budget)), "--device", self.device]
        self.call(words, folder / "targets.log")

    def _write_runner(self, folder: Path, seed: int, budget: Distillation) -> Path:
        """``runner.yaml`` of a distillation."""
        runner = yaml.safe_load((self.data / "pretrain.yaml").read_text())
        log, save = max(1, budget.steps // 60), max(1, budget.steps // 6)
        runner["runner"] |= {"total_steps": budget.steps, "log_step": log, "save_step": save, "max_keep": 1}
        runner["optimizer"] |= {"lr": budget.lr, "warmup_proportion": budget.warmup}
        # one worker reads thousands of times faster than students learn; a second would take a core from them
        datarc = {"batch_seconds": budget.batch_seconds, "num_workers": 1, "seed": seed}
        runner["pretrain_expert"]["datarc"] |= datarc
        file = folder / "runner.yaml"
        file.write_text(yaml.safe_dump(runner, sort_keys=False))
        return file

    def _distil(self, config: Path, folder: Path, seed: int, budget: Distillation) -> None:
        words = ["run_pretrain.py", "-u", "ekd", "-a", "-p", str(folder / "run"), "-g", str(config)]
        words += ["-c", str(self._write_runner(folder, seed, budget)), "--device", self.device, "--seed", str(seed)]
        clock = folder / "seconds.txt"  # of all calls, so that an interrupted distillation is not a fast one
        before, started = float(clock.read_text()) if clock.is_file() else 0.0, time.monotonic()
        try:
            self.call(words, folder / "pretrain.log")
        finally:
            clock.write_text(f"{before + time.monotonic() - started:.1f}")
        lines = read_metrics(folder / "run" / METRICS)
        facts = {
            "command": shlex.join(words),
            "steps": lines[-1]["step"],
            "loss": [lines[0]["loss"], lines[-1]["loss"]],
            "seconds": float(clock.read_text()),
        }
        (folder / DISTILLATION).write_text(json.dumps(facts, indent=1) + "\n")


def claim(folder: Path, made_by: dict[str, Any], what: str = "student", also: str = "") -> None:
    """Refuse a folder of other settings: what it holds would be kept, whatever is asked now.

    Raises:
        EkdError: it is one, and how to go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, text = folder / MADE_BY, json.dumps(made_by, indent=1, sort_keys=True)
    if file.is_file() and file.read_text() != text:
        raise EkdError(
            f"{file}: this {what} was made with other settings; name another --work, or remove {folder}{also}"
        )
    file.write_text(text)


def _write_start(config_file: Path, out: Path) -> None:
    """A checkpoint of the student before its first step: what the teacher's first layers are worth by themselves."""
    config = load_model_config(config_file)
    assert config.ekd.initialise_from is not None
    student = Student(config.student)
    teacher = load_teacher(config.ekd.initialise_from, "initialise_from")
    initialise_student(student.encoder, teacher)
    torch.save({CHECKPOINT_KEY: student_state(student, config, []), "Step": 0}, out)


def _once(out: Path, make: Any) -> Path:
    """``make(path)`` unless ``out`` is there; whole or not at all."""
    if not out.is_file():
        with whole_file(out) as partial:
            make(partial)
    return out
