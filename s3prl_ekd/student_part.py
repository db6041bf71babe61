"""What a checkpoint holds of a student, all that brings it back without a teacher: its ``EKD`` part.

Tensors, lists, strings and numbers only. ``student_checkpoint.py`` finds such a part on a disk and makes the student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from s3prl_ekd.checked import check_values
from s3prl_ekd.config import ModelConfig
from s3prl_ekd.config.model_file import Mode
from s3prl_ekd.distill.targets import TargetSet
from s3prl_ekd.errors import EkdError, reading
from s3prl_ekd.model.encoder import Dropout
from s3prl_ekd.model.student import Student
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.teachers.files import CONFIG

CHECKPOINT_KEY = "EKD"
CHECKPOINT_FORMAT = 1
START_KEY = "UpstreamStudent"
"""In a downstream checkpoint of ``-f``, the :func:`start_of` the student that is tuned there."""
# what every checkpoint's EKD part holds
_SECTIONS = {"shape": dict, "encoder": dict, "heads": dict, "head_sets": list}


class _Read(BaseModel):
    """What is read of a checkpoint's configuration and head sets; further keys, of another version, may be there."""

    model_config = ConfigDict(strict=True)


class _Teacher(_Read):
    name: str
    source: str
    layers: list[int]


class _Ekd(_Read):
    teachers: list[_Teacher]
    mode: Mode
    cosine_weight: float
    l1_weight: float = 1.0
    initialise_from: str | None
    residual_heads: list[list[str]] = []


class _Student(_Read):
    dropout: float = Field(default=0.0, ge=0, le=1)
    attention_dropout: float = Field(default=0.0, ge=0, le=1)
    activation_dropout: float = Field(default=0.0, ge=0, le=1)
    feature_grad_mult: float = Field(default=1.0, ge=0)


class _Config(_Read):
    ekd: _Ekd
    student: _Student


class _Heads(_Read):
    name: str
    labels: list[str]
    width: int = Field(ge=1)
    reads: list[int] = []


class _Folder(_Read):
    """What a transformers folder's config.json says of the same; the defaults are transformers'."""

    hidden_dropout: float = Field(default=0.1, ge=0, le=1)
    attention_dropout: float = Field(default=0.1, ge=0, le=1)
    activation_dropout: float = Field(default=0.1, ge=0, le=1)
    feature_grad_mult: float = Field(default=1.0, ge=0)  # a key of ``export hf``'s; transformers has no such factor


class _Part(_Read):
    config: _Config | None = None
    head_sets: list[_Heads]


def student_state(
    student: Student, config: ModelConfig, target_sets: Sequence[TargetSet], objective: str | None = None
) -> dict[str, Any]:
    """What a checkpoint holds under ``EKD``: enough to rebuild the student, and its heads, without any teacher.

    ``objective``: the class that it was trained by in place of this package's loss, where a script brought one.
    """
    return {
        "format": CHECKPOINT_FORMAT,
        "config": config.model_dump(mode="json"),
        "objective": objective,
        "shape": student.encoder.shape.to_dict(),
        "encoder": _on_cpu(student.encoder),
        "heads": _on_cpu(student.heads),
        "head_sets": [_head_set(target) for target in target_sets],
        "mask": {} if student.mask is None else _on_cpu(student.mask),  # training only, so no part of the encoder
    }


def _head_set(target: TargetSet) -> dict[str, Any]:
    said = {"name": target.name, "labels": list(target.labels), "width": target.width}
    return said | {"reads": list(target.reads)} if target.reads else said  # as before there was such a key


def _on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in module.state_dict().items()}


def same_weights(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts have the same names and, bit for bit, the same tensors."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def checked_part(part: Any, file: Path, key: str) -> dict[str, Any]:
    """An ``EKD`` part, or what stands for one under another ``key``, that can be one.

    Raises:
        EkdError: it cannot.
    """
    if not isinstance(part, dict):
        raise EkdError(f"{file}: {key} is a {type(part).__name__}, expected a dictionary")
    if part.get("format") != CHECKPOINT_FORMAT:
        raise EkdError(f"{file}: checkpoint format {part.get('format')!r}; this version reads {CHECKPOINT_FORMAT}")
    for section, kind in _SECTIONS.items():
        if not isinstance(part.get(section), kind):
            what = f"is a {type(part[section]).__name__}" if section in part else "is missing"
            raise EkdError(f"{file}: damaged student checkpoint: {key}.{section} {what}")
    read = {"config": part.get("config"), "head_sets": part["head_sets"]}
    check_values(_Part, read, f"{file}: damaged student checkpoint", key)
    with reading(f"{file}: damaged student checkpoint"):
        EncoderShape.from_dict(part["shape"])
    return part


def start_of(part: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`read_checkpoint` gives, less weights and heads: with its weights of now, a tuned student again."""
    return {key: value for key, value in part.items() if key not in ("encoder", "heads", "head_sets")}


def trained_with(part: Mapping[str, Any], path: str | Path) -> tuple[Dropout, float]:
    """Of an ``EKD`` part: the dropout of its training, and ``feature_grad_mult``; none of both where it knows nothing.

    Args:
        part: as :func:`read_checkpoint` gives it.
        path: what was read, for messages.

    Raises:
        EkdError: the config.json of a transformers folder has a dropout that is none.
    """
    if "transformers" in part:
        there = {name: part["transformers"][name] for name in _Folder.model_fields if name in part["transformers"]}
        folder = check_values(_Folder, there, f"{path}: {CONFIG}")
        rates = folder.hidden_dropout, folder.attention_dropout, folder.activation_dropout
        return Dropout(*rates), folder.feature_grad_mult
    student = _Student(**((part.get("config") or {}).get("student", {})))
    return Dropout(student.dropout, student.attention_dropout, student.activation_dropout), student.feature_grad_mult
