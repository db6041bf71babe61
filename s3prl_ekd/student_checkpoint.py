"""A student's checkpoint, found and read back by everything that takes a student.

It is one part of s3prl's ``states-N.ckpt`` (``student_part.py``).
A transformers folder (``s3prl-ekd export hf``, a published DistilHuBERT), here or on the Hugging Face Hub, is read as a
checkpoint without heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from s3prl_ekd.config import load_model_config
from s3prl_ekd.errors import EkdError, naming, reading
from s3prl_ekd.model.encoder import Dropout, Encoder
from s3prl_ekd.model.heads import HeadSet
from s3prl_ekd.model.student import Student, heads_read, student_shape
from s3prl_ekd.random_state import seeded
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.source_names import HF, split_hub_model
from s3prl_ekd.student_part import CHECKPOINT_FORMAT, CHECKPOINT_KEY, START_KEY, checked_part, trained_with
from s3prl_ekd.teachers import embedded, huggingface, sources
from s3prl_ekd.teachers.files import CONFIG, read_json, transformers_weights
from s3prl_ekd.teachers.names import check_source
from s3prl_ekd.torch_file import newest, read_torch_file


def newest_checkpoint(path: str | Path) -> Path:
    """The file itself, or the newest ``states-*.ckpt`` of an experiment folder; a transformers folder as it is.

    Of a model of the Hugging Face Hub (``hf:OWNER/NAME``, or a file of it) it is what lies in the cache, downloaded.

    Raises:
        EkdError: no such file or model, or a folder without checkpoints.
    """
    if str(path).startswith(HF):
        return _published(str(path), "student")[0]
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("states-*.ckpt"))
        found = files[0] if len(files) == 1 else newest(files, partial(read_torch_file, mmap=True))
        if found is None and not (path / "config.json").is_file():
            raise EkdError(f"{path}: no states-*.ckpt in this folder, and no config.json of a transformers model")
        return found or path
    if not path.is_file():
        of_teacher = str(path) in sources.HUB or str(path).startswith(embedded.PREFIX)
        hint = ", but a teacher's name: s3prl_ekd.load_teacher, or -u ekd_teacher" if of_teacher else ""
        raise EkdError(f"{path}: no such checkpoint{hint}")
    return path


def _published(source: str, where: str) -> tuple[Path, str]:
    """A student of the Hugging Face Hub: folder or file in the cache, and the source with its commit."""
    check_source(source, where)
    if split_hub_model(source).file is not None:
        file = huggingface.locate(source, where)
        return file, huggingface.pinned(source, file)
    described = sources.describe(source, where)
    folder = sources.weights_path(described, where)
    assert folder is not None  # else it would have raised
    return folder, described.pinned


def pinned_student(source: str, where: str) -> str:
    """``hf:OWNER/NAME`` or ``hf:OWNER/NAME/FILE`` with the commit that it has now; it is downloaded, and read once.

    Args:
        source: a source that begins with ``hf:``.
        where: the option, for messages.

    Raises:
        EkdError: no such model, or none that is a student.
    """
    _, found = _published(source, where)
    with naming(where):
        read_checkpoint(found)
    return found


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The ``EKD`` part of a checkpoint (a file, or a folder's newest), or its like from a transformers folder.

    A downstream checkpoint of ``-u ekd_student -f`` gives the fine-tuned student.

    Raises:
        EkdError: unreadable, or the checkpoint of another model.
    """
    file = newest_checkpoint(path)
    if file.is_dir():
        return _read_transformers(file)
    states = read_torch_file(file)
    part = states.get(CHECKPOINT_KEY)
    if part is None and _is_fine_tuned(states):
        return _read_fine_tuned(file, states)
    if part is None:
        keys = ", ".join(map(str, list(states)[:6]))
        raise EkdError(f"{file}: not a checkpoint of `run_pretrain.py -u ekd` (it holds {keys}, no {CHECKPOINT_KEY!r})")
    return checked_part(part, file, CHECKPOINT_KEY)


def _is_fine_tuned(states: Mapping[str, Any]) -> bool:
    """Whether these are the states of a downstream run that trained a student too (``-f``)."""
    upstream = getattr(states.get("Args"), "upstream", None)
    return isinstance(states.get("Upstream"), Mapping) and str(upstream).startswith("ekd_student")


def _read_fine_tuned(file: Path, states: Mapping[str, Any]) -> dict[str, Any]:
    """The student that a downstream run began with, with the weights that it has there now; no heads.

    Raises:
        EkdError: the run began with an untrained student; or its file is of an earlier version, which did not hold what
            it began with, and that checkpoint is gone.
    """
    start = getattr(states["Args"], "upstream_ckpt", None)
    if start is None:
        raise EkdError(f"{file}: a fine-tuned student that began untrained: no checkpoint says its shape")
    if START_KEY not in states and not (start.startswith(HF) or Path(start).exists()):
        raise EkdError(f"{file}: a fine-tuned student; the checkpoint that it began with, {start}, is not there")
    before = states[START_KEY] if START_KEY in states else read_checkpoint(start)
    task = str(getattr(states["Args"], "downstream", None))
    weights = {
        name.removeprefix("encoder."): value
        for name, value in states["Upstream"].items()
        if name.startswith("encoder.")
    }
    now: dict[str, Any] = {"encoder": weights, "heads": {}, "head_sets": []}
    part = checked_part({**before, **now} if isinstance(before, Mapping) else before, file, START_KEY)
    return part | {"fine_tuned": f"{part['fine_tuned']}, {task}" if "fine_tuned" in part else task}


def _read_transformers(folder: Path) -> dict[str, Any]:
    """A transformers folder in the form of a checkpoint's ``EKD`` part: no heads, no configuration."""
    shape = sources.describe(str(folder), "student").encoder_shape
    with naming("student"):
        weights = transformers_weights(folder)
        encoder = sources.from_transformers(shape, weights, folder)
    mask = [value.float() for name, value in weights.items() if name.endswith("masked_spec_embed")]
    return {
        "format": CHECKPOINT_FORMAT,
        "config": None,
        "shape": shape.to_dict(),
        "encoder": encoder.state_dict(),
        "heads": {},
        "head_sets": [],
        "mask": {"vector": mask[0]} if mask else {},
        "transformers": read_json(folder / CONFIG),
    }


def is_student(path: str | Path) -> bool:
    """Whether this is a checkpoint of ours; a transformers folder is not, other upstreams read those too."""
    if str(path).startswith(HF) and split_hub_model(str(path)).file is None:
        return False
    try:
        file = newest_checkpoint(path)
        if file.is_dir():
            return False
        states = read_torch_file(file, mmap=True)
        return CHECKPOINT_KEY in states or _is_fine_tuned(states)
    except EkdError:
        return False


class LoadedStudent(NamedTuple):
    """A student from a checkpoint, in eval mode on the CPU."""

    encoder: Encoder
    heads: nn.ModuleDict
    """Its prediction heads by target set; empty where the checkpoint holds none (a transformers folder)."""
    part: dict[str, Any]
    """The checkpoint's ``EKD`` part: configuration, shape, weights."""


def load_student(path: str | Path, for_training: bool = False) -> LoadedStudent:
    """Load a checkpoint of ``run_pretrain.py -u ekd``, a folder's newest one, or a folder of ``s3prl-ekd export hf``.

    Args:
        path: of it.
        for_training: give the encoder the dropout, and the factor on the gradient of its conv stack, that it was
            trained with. They have no effect in eval mode.

    Raises:
        EkdError: unreadable, or the checkpoint of another model.
    """
    part = read_checkpoint(path)
    dropout, feature_grad_mult = trained_with(part, path) if for_training else (Dropout(), 1.0)
    with reading(f"{path}: damaged student checkpoint"):
        encoder = Encoder(EncoderShape.from_dict(part["shape"]), dropout, feature_grad_mult)
        encoder.load_state_dict(part["encoder"])
        heads = nn.ModuleDict({one["name"]: _heads(one, encoder.shape) for one in part["head_sets"]})
        heads.load_state_dict(part["heads"])
    return LoadedStudent(encoder.eval(), heads.eval(), part)


def _heads(said: Mapping[str, Any], shape: EncoderShape) -> HeadSet:
    reads = heads_read(said["labels"], said.get("reads", ()), shape)
    if len(reads) != len(said["labels"]) or not all(0 <= number <= shape.layers for number in reads):
        raise ValueError(f"head set {said['name']}: reads {list(reads)} of {shape.layers} layers")
    return HeadSet(shape.width, said["width"], reads)


def untrained_student(config_file: str | Path) -> Encoder:
    """A student of a configuration with random weights, the same ones each time: the baseline to stand beside."""
    config = load_model_config(config_file)
    with naming(config_file):
        student_shape(config.student)
    with seeded(0):
        return Student(config.student).encoder.eval()
