"""From the configuration to teachers: first a check that costs nothing, then the frozen ensemble.

``check_model`` and ``check_teachers`` run before anything is downloaded; ``load_teachers`` loads, ``freeze`` makes the
ensemble.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from s3prl_ekd.config import MIN_SAMPLES, ModelConfig, TeacherConfig
from s3prl_ekd.data.distort import Distorter
from s3prl_ekd.distill.objective import Objective
from s3prl_ekd.distill.residual import plan_residuals
from s3prl_ekd.distill.targets import MAX_FRAME_DIFFERENCE, TargetSet, TeacherLayers, plan_targets
from s3prl_ekd.errors import EkdError, naming
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.model.student import check_start, start_layers, student_shape
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.source_names import S3PRL
from s3prl_ekd.spelling import repeated
from s3prl_ekd.student_checkpoint import is_student, load_student, newest_checkpoint, read_checkpoint
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.ensemble import FrozenTeachers, TeacherEncoder
from s3prl_ekd.teachers.files import CONFIG
from s3prl_ekd.teachers.names import model_path
from s3prl_ekd.teachers.sources import TeacherSource

logger = logging.getLogger(__name__)

FILE = "config_model.yaml"


@dataclass(frozen=True)
class TeacherPlan:
    """What the configuration asks for, known to be possible."""

    config: ModelConfig
    file: str
    """Its name, for messages."""
    sources: dict[str, TeacherSource]
    """Teacher name -> its source."""
    target_sets: list[TargetSet]
    layers: list[TeacherLayers]
    """What the targets need to know of each teacher."""
    initialiser: TeacherSource | None
    """Where the student's first weights come from; one of ``sources``, another one, or a trained student."""

    def where(self, name: str) -> str:
        """File and key of a teacher's source, for messages."""
        return f"{self.file}: ekd.teachers[{list(self.sources).index(name)}].source"


@dataclass(frozen=True)
class CheckedModel:
    """What of a pretraining can be made without a teacher's weights and without its data."""

    plan: TeacherPlan
    objective: Objective
    distorter: Distorter | None
    """None where nothing is distorted."""


def check_model(
    config: ModelConfig, file: str = FILE, starts: bool = True, objective: type[Objective] = Objective
) -> CheckedModel:
    """All that can be checked of a configuration before a teacher is loaded: for the pretrain task and for doctor.

    As with :func:`sources.describe`, a teacher ``s3prl:NAME`` is downloaded and loaded to know its shape.

    Args:
        config: the checked model configuration.
        file: its name, for messages.
        starts: whether the student takes its first weights from ``initialise_from``; one that goes on has its own.
        objective: the class of the loss.

    Raises:
        EkdError: file and key, and what was expected.
    """
    distorter = check_without_teachers(config, file)
    plan = check_teachers(config, file, starts)
    loss = objective(config.ekd, plan.target_sets, plan.layers, file)
    for name, parameter in loss.named_parameters():
        if parameter.requires_grad:
            raise EkdError(
                f"the loss {objective.__name__} has the parameter {name}, which would not be trained: s3prl's runner "
                "optimises the student and its heads alone; a buffer can hold a number that the class itself changes"
            )
    return CheckedModel(plan, loss, distorter)


def check_without_teachers(config: ModelConfig, file: str = FILE) -> Distorter | None:
    """The part of :func:`check_model` that needs no teacher's shape: the student's own, its start's kind, distortion.

    Raises:
        EkdError: file and key, and what was expected.
    """
    with naming(file):
        _check_student(config)
    if config.distortion is None:
        return None
    logger.info("[distortion] setup %s", config.distortion.setup)
    return Distorter(config.distortion, file)


def _check_student(config: ModelConfig) -> EncoderShape:
    """The student's shape, where what it starts from is of a kind that it can start from."""
    shape = student_shape(config.student)
    start = config.ekd.initialise_from
    named = {teacher.name: teacher.source for teacher in config.ekd.teachers}
    if start is not None and named.get(start, start).startswith(S3PRL):
        raise EkdError(
            f"ekd.initialise_from: {start} is an s3prl expert; the student can start from our own encoders only"
        )
    return shape


def check_teachers(config: ModelConfig, file: str = FILE, starts: bool = True) -> TeacherPlan:
    """Check every teacher's name, layers and width against what its source has.

    Args:
        config: the checked model configuration.
        file: its name, for messages.
        starts: as of :func:`check_model`.

    Raises:
        EkdError: file and key, and what was expected.
    """
    ekd = config.ekd
    with naming(file):
        student = _check_student(config)
        found = {
            teacher.name: _check_teacher(teacher, ekd.targets.tap, student, f"ekd.teachers[{index}]")
            for index, teacher in enumerate(ekd.teachers)
        }
        layers = [TeacherLayers(t.name, tuple(t.layers), found[t.name].shape.width) for t in ekd.teachers]
        planned = plan_targets(ekd.mode, layers) + plan_residuals(ekd.residual_heads, layers)
        target_sets = [replace(target, reads=tuple(ekd.student_layers or ())) for target in planned]
        doubled = repeated([target.name for target in target_sets])
        if doubled is not None:
            raise EkdError(
                f"ekd.residual_heads: the difference would have the name of a teacher, {doubled!r}; rename that teacher"
            )
        start = ekd.initialise_from if starts else None
        initialiser = None if start is None else found.get(start) or describe_start(start)
        if initialiser is not None:
            check_start(student, initialiser.encoder_shape, ekd.initialise_parts)
            if ekd.initialise_parts == "all":
                start_layers(ekd.initialise_layers, student.layers, initialiser.shape.layers)
    return TeacherPlan(config, file, found, target_sets, layers, initialiser)


def describe_start(source: str, where: str = "ekd.initialise_from") -> TeacherSource:
    """What a student may start from: a teacher's source, or a student's checkpoint (an experiment folder's newest).

    Raises:
        EkdError: as of :func:`sources.describe`, or of :func:`read_checkpoint`.
    """
    path = model_path(source)
    if path is not None and path.is_dir():
        ours = not (path / CONFIG).is_file() and any(path.glob("states-*.ckpt"))
    else:
        ours = path is not None and is_student(path)
    if path is None or not ours:
        return sources.describe(source, where)
    with naming(where):
        file = newest_checkpoint(path).resolve()  # a run keeps which one it was
        shape = EncoderShape.from_dict(read_checkpoint(file)["shape"])
    return TeacherSource(str(file), "student", "student", shape, file)


def _check_teacher(teacher: TeacherConfig, tap: str, student: EncoderShape, key: str) -> TeacherSource:
    """What a teacher is, of which a student of this shape can learn all that is asked for; ``key``: of the teacher."""
    if hasattr(nn.ModuleDict(), teacher.name):  # of an instance: __init__ sets `training`
        raise EkdError(f"{key}.name: {teacher.name!r} is a word of torch's; take another name")
    if "bias" in teacher.name:  # s3prl's optimizers go by the names of weights
        raise EkdError(
            f"{key}.name: {teacher.name!r}: s3prl would treat all weights of a head with 'bias' in its name as biases,"
            " without weight decay; choose another name"
        )
    source = sources.describe(teacher.source, f"{key}.source")
    shape = source.shape
    too_deep = [layer for layer in teacher.layers if layer > shape.layers]
    if too_deep:
        raise EkdError(f"{key}.layers: {too_deep[0]} > {shape.layers}, the layers of {teacher.source}")
    if tap == "ffn" and source.kind == "s3prl":
        raise EkdError(f"{key}.source: {teacher.source} has no feed-forward blocks to tap (targets.tap: ffn)")
    if tap == "ffn" and 0 in teacher.layers:
        raise EkdError(f"{key}.layers: layer 0 has no feed-forward block (tap: ffn)")
    if shape.hop != student.hop:
        raise EkdError(
            f"{key}.source: {teacher.source} has a frame every {shape.hop} samples, the student every {student.hop}"
        )
    ours, theirs = max(
        ((student.frames(n), shape.frames(n)) for n in range(MIN_SAMPLES, MIN_SAMPLES + student.hop)),
        key=lambda pair: abs(pair[0] - pair[1]),
    )
    if abs(ours - theirs) > MAX_FRAME_DIFFERENCE:
        raise EkdError(
            f"student.conv_layers: {ours} frames of a clip that has {theirs} in {teacher.source}; they may "
            f"differ by {MAX_FRAME_DIFFERENCE}"
        )
    return source


def pinned(plan: TeacherPlan) -> ModelConfig:
    """The configuration with the commit behind every model of the Hugging Face Hub, so that it goes on as it began."""
    config = plan.config.model_copy(deep=True)
    for teacher in config.ekd.teachers:
        teacher.source = plan.sources[teacher.name].pinned
    if plan.initialiser is not None and config.ekd.initialise_from not in plan.sources:
        config.ekd.initialise_from = plan.initialiser.pinned
    return config


def load_teachers(plan: TeacherPlan) -> dict[str, TeacherEncoder]:
    """Load every teacher's encoder, in fp32 on the CPU."""
    encoders = {}
    for name, source in plan.sources.items():
        encoders[name] = _load(source, plan.where(name))
        depth, width = source.shape.layers, source.shape.width
        logger.info("[ekd] teacher %s: %s (%s, %d layers of %d)", name, source.pinned, source.family, depth, width)
    return encoders


def freeze(plan: TeacherPlan, encoders: dict[str, TeacherEncoder]) -> FrozenTeachers:
    """The ensemble, in its configured precision. Takes the encoders over: read their weights before."""
    layers, ekd = {teacher.name: teacher.layers for teacher in plan.layers}, plan.config.ekd
    return FrozenTeachers(encoders, layers, ekd.teacher_precision, ekd.targets.tap)


def load_teacher(source: str | Path, where: str = "teacher") -> Encoder:
    """One frozen teacher, in eval mode on the CPU.

    Args:
        source: as ``ekd.teachers[].source`` of config_model.yaml: embedded:NAME, a hub name, hf:OWNER/NAME, a file,
            a folder.
        where: who names it, for messages.

    Raises:
        EkdError: no such source, it cannot be read or downloaded, or it is an s3prl expert, no encoder of ours.
    """
    encoder = _load(sources.describe(str(source), where), where)
    if not isinstance(encoder, Encoder):
        raise EkdError(f"{where} {source}: is an upstream of s3prl's own; use its name in s3prl's hub (-u) instead")
    return encoder.eval().requires_grad_(False)


class Start(NamedTuple):
    """What a student takes its first weights from."""

    encoder: Encoder
    heads: Mapping[str, nn.Module]
    """By target set; of a trained student's checkpoint only."""
    head_sets: Sequence[Mapping[str, Any]]
    """What the checkpoint says of each of them: name, labels, width, reads."""


def load_initialiser(plan: TeacherPlan, encoders: dict[str, TeacherEncoder]) -> Start | None:
    """What starts the student: a teacher already loaded, or one loaded for this alone, or a trained student."""
    if plan.initialiser is None:
        return None
    start, where = plan.config.ekd.initialise_from, f"{plan.file}: ekd.initialise_from"
    if plan.initialiser.kind == "student":
        with naming(where), _own_draws():
            student = load_student(plan.initialiser.source)
        if plan.config.ekd.initialise_parts == "conv_stack":
            return Start(student.encoder, {}, [])
        return Start(student.encoder, dict(student.heads.items()), student.part["head_sets"])
    encoder = encoders[start] if start in encoders else _load(plan.initialiser, where)
    assert isinstance(encoder, Encoder)  # else check_teachers would have refused it
    return Start(encoder, {}, [])


def _load(source: TeacherSource, where: str) -> TeacherEncoder:
    with _own_draws():
        return sources.load(source, where)


def _own_draws() -> AbstractContextManager[None]:
    """Encoders draw random weights before they load theirs: the run's own draws must not depend on what is loaded."""
    return torch.random.fork_rng(devices=[])
