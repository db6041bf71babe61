"""One student by interpolating the weights of several that started from the same weights.

``theta = sum_i w_i * theta_i`` with ``sum_i w_i = 1``: distil one student per teacher from one initialisation, then
merge. It is the baseline that multi-teacher training has to beat. (Task arithmetic for speech students: arXiv
2505.13270.)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from s3prl_ekd.errors import EkdError, reading
from s3prl_ekd.export.shares import shares_of
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.student_checkpoint import load_student, newest_checkpoint
from s3prl_ekd.student_part import CHECKPOINT_KEY
from s3prl_ekd.torch_file import read_torch_file, write_torch_file
from s3prl_ekd.whole_file import whole_file
from s3prl_ekd.writable import output_file

logger = logging.getLogger(__name__)

KINSHIP = 0.5
"""Cosine of two students' weights below which they hardly began as one: independent random weights have about 0.1."""


def merge_checkpoints(files: Sequence[Path], out: Path, weights: Sequence[float] | None = None) -> Path:
    """Merge checkpoints into one that loads wherever a student's does.

    Args:
        files: two or more students.
        out: file to write.
        weights: one for each file, not negative; scaled to add to 1. None: equal.

    Raises:
        EkdError: unreadable files, unfitting weights, students of different shapes, or an ``out`` that would take the
            place of a training's checkpoint.
    """
    shares = shares_of(files, weights)
    _check_place(files, out)
    output_file(out)
    parts = [load_student(file).part for file in files]
    merged = merge(parts, shares, [str(file) for file in files])
    members = map(_members, files, shares, parts)
    merged["merged"] = [member for some in members for member in some]
    with whole_file(out) as partial, partial.open("wb") as stream:
        write_torch_file({CHECKPOINT_KEY: merged}, stream)
    for file, share in zip(files, shares, strict=True):
        logger.info("%.3f x %s", share, file)
    kept = ", ".join(s["name"] for s in merged["head_sets"]) or "none"
    logger.info("%s: written; head sets kept: %s", out, kept)
    return out


def _members(file: Path, share: float, part: dict[str, Any]) -> list[dict[str, Any]]:
    """What a model card counts: the student; of one that was merged before, those that it was merged from."""
    tuned = part.get("fine_tuned")
    if "merged" not in part:
        return [{"file": str(file), "weight": share, "fine_tuned": tuned}]
    with reading(f"{file}: damaged student checkpoint"):
        return [
            {"file": one["file"], "weight": share * one["weight"], "fine_tuned": tuned or one.get("fine_tuned")}
            for one in part["merged"]
        ]


def merge(parts: Sequence[dict[str, Any]], shares: Sequence[float], names: Sequence[str]) -> dict[str, Any]:
    """The ``EKD`` part of a checkpoint whose tensors are interpolated.

    Head sets that all students have are interpolated too; others are left out, since their encoder is gone.

    Raises:
        EkdError: encoders of different shapes.
    """
    first = parts[0]
    shapes = [EncoderShape.from_dict(part["shape"]).to_dict() for part in parts]  # fills in what old files lack
    for shape in shapes:
        if not shape["normalize"]:
            del shape["normalize_eps"]  # has no effect then, and a transformers folder brings its library's own
    for part, shape, name in zip(parts[1:], shapes[1:], names[1:], strict=True):
        differing = [key for key, value in shapes[0].items() if shape.get(key) != value]
        if differing:
            key = differing[0]
            raise EkdError(
                f"{name}: {key} is {shape[key]}, in {names[0]} {shapes[0][key]}; "
                "only students of one shape and one start can be merged"
            )
        kinship = _cosine(first["encoder"], part["encoder"])
        if kinship < KINSHIP:
            logger.warning(
                "%s and %s do not look like students of one initialisation (cosine of their weights %.2f); "
                "interpolating them is unlikely to work", names[0], name, kinship,
            )  # fmt: skip
    common = [s for s in first["head_sets"] if all(s in part["head_sets"] for part in parts)]
    prefixes = tuple(f"{s['name']}." for s in common)
    heads = [{k: v for k, v in part["heads"].items() if prefixes and k.startswith(prefixes)} for part in parts]
    return {
        **{key: value for key, value in first.items() if key != "fine_tuned"},  # was before the merging
        "config": _config([part.get("config") for part in parts]),
        "encoder": _interpolate([part["encoder"] for part in parts], shares),
        "heads": _interpolate(heads, shares),
        "head_sets": common,
        "mask": {},
    }


def _config(configs: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The first student's configuration with the teachers of all: a model card must name every one."""
    known = [config for config in configs if config is not None]
    if len(known) < len(configs):
        return None
    teachers: list[dict[str, Any]] = []
    for config in known:
        for teacher in config["ekd"]["teachers"]:
            if any(teacher["source"] == other["source"] for other in teachers):
                continue
            name, names = teacher["name"], [other["name"] for other in teachers]
            teachers.append(teacher | {"name": f"{name}_{len(teachers) + 1}" if name in names else name})
    return known[0] | {"ekd": known[0]["ekd"] | {"teachers": teachers}}


def _check_place(files: Sequence[Path], out: Path) -> None:
    """A merged student has no optimizer and no step: nothing that a training can be continued from."""
    place = out.resolve()
    for file in files:
        taken = newest_checkpoint(file).resolve()
        if place == taken or taken in place.parents:
            raise EkdError(f"--out {out}: is the input {file}, or lies in it; name a file elsewhere")
    for other in sorted(place.parent.glob("states-*.ckpt")):
        if _of_a_run(other):
            raise EkdError(
                f"--out {out}: {out.parent} is the experiment folder of a training ({other.name}), whose newest "
                "checkpoint is taken for the model; name a file elsewhere"
            )


def _of_a_run(file: Path) -> bool:
    """Whether a training wrote this checkpoint; a merged one holds the student alone."""
    try:
        return set(read_torch_file(file, mmap=True)) != {CHECKPOINT_KEY}
    except EkdError:
        return True  # damaged: none of ours, which are there whole or not at all


def _interpolate(states: Sequence[dict[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """In fp64, so that merging a student with itself gives its very weights."""
    return {
        name: sum(share * state[name].double() for share, state in zip(shares, states, strict=True)).to(value.dtype)  # type: ignore[union-attr]
        for name, value in states[0].items()
    }


def _cosine(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Cosine of all matrices taken as one vector; norms' gains and biases, alike in any student, left out."""
    names = [name for name, value in a.items() if value.dim() > 1]
    dot = sum(float((a[name].double() * b[name].double()).sum()) for name in names)
    norms = [sum(float(state[name].double().square().sum()) for name in names) ** 0.5 for state in (a, b)]
    return dot / max(norms[0] * norms[1], 1e-30)
