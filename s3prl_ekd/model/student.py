"""The student: an encoder with prediction heads; its initialisation from a teacher; its checkpoint.

The checkpoint is the part of s3prl's ``states-N.ckpt`` under the key ``EKD``: tensors, lists, strings and numbers only.
A transformers folder (``s3prl-ekd export hf``, a published DistilHuBERT) is read as a checkpoint without heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from s3prl_ekd.checkpoints import read_torch_file
from s3prl_ekd.config import ModelConfig, StudentConfig, load_model_config
from s3prl_ekd.distill.targets import TargetSet
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.encoder import Dropout, Encoder, EncoderOutput
from s3prl_ekd.model.heads import HeadSet
from s3prl_ekd.model.masking import SpanMask
from s3prl_ekd.model.shape import EncoderShape, conv_layers
from s3prl_ekd.teachers import sources

CHECKPOINT_KEY = "EKD"
CHECKPOINT_FORMAT = 1
START_FIELDS = ("conv_layers", "conv_norm", "conv_bias", "width", "ffn_width", "heads", "pre_norm",
                "pos_conv_kernel", "pos_conv_groups", "pos_conv_depth")  # fmt: skip
"""Fields of a shape that must agree where weights of one encoder start another."""


def student_shape(config: StudentConfig, where: str = "student") -> EncoderShape:
    """The encoder shape of a configured student: plain attention, post-norm, GroupNorm front end, no feature norm."""
    try:
        return EncoderShape(
            conv_layers=conv_layers(config.conv_layers),
            feature_norm=False,
            width=config.width,
            layers=config.layers,
            ffn_width=config.ffn_width,
            heads=config.heads,
            pos_conv_kernel=config.pos_conv_kernel,
            pos_conv_groups=config.pos_conv_groups,
        )
    except ValueError as error:
        raise EkdError(f"{where}: {error}") from error


def student_like(teacher: EncoderShape) -> dict[str, Any]:
    """The ``student`` section with a teacher's widths, so that its weights can start the student; depth is apart."""
    return {
        "width": teacher.width,
        "ffn_width": teacher.ffn_width,
        "heads": teacher.heads,
        "conv_layers": [list(layer) for layer in teacher.conv_layers],
        "pos_conv_kernel": teacher.pos_conv_kernel,
        "pos_conv_groups": teacher.pos_conv_groups,
    }


class Student(nn.Module):
    """Encoder plus one head set per target set; everything that is trained.

    Args:
        config: the student's numbers.
        targets: the plan; empty for a student without heads.
    """

    def __init__(self, config: StudentConfig, targets: Sequence[TargetSet] = ()) -> None:
        super().__init__()
        shape = student_shape(config)
        dropout = Dropout(config.dropout, config.attention_dropout, config.activation_dropout)
        self.encoder = Encoder(shape, dropout, config.feature_grad_mult)
        self.heads = nn.ModuleDict({t.name: HeadSet(shape.width, len(t.labels), t.width) for t in targets})
        self.mask = SpanMask(shape.width, config.mask) if config.mask is not None else None

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> tuple[EncoderOutput, dict[str, Tensor]]:
        """wave (B, N), lengths (B,) or None -> the encoder's output, predictions (B, n, T, width) per head set."""
        out = self.encoder(wave, lengths, states=[self.encoder.shape.layers], replace=self.mask)
        last = out.states[self.encoder.shape.layers]
        return out, {name: heads(last) for name, heads in self.heads.items()}


def initialise_student(
    student: Encoder,
    teacher: Encoder,
    where: str = "ekd.initialise_from",
    choice: Literal["first", "spread"] | Sequence[int] = "first",
) -> list[str]:
    """Copy a teacher's conv stack, projection, positional convolution and first transformer layers (DistilHuBERT).

    ``choice`` selects other layers than the first ones: see :func:`start_layers`.

    The norm before layer 1 keeps its own start, as in s3prl's distiller. The teacher's norm on conv features has no
    counterpart in the student.

    Returns:
        names of the parts copied, for the log.

    Raises:
        EkdError: shapes differ, or the teacher's attention is WavLM's.
    """
    ours, theirs = student.shape, teacher.shape
    check_start(ours, theirs, where)
    chosen = start_layers(choice, ours.layers, theirs.layers, where)
    parts: list[tuple[str, nn.Module | None, nn.Module | None]] = [
        ("conv stack", student.frontend, teacher.frontend),
        ("projection", student.projection, teacher.projection),
        ("positional convolution", student.position, teacher.position),
        *((_renamed(i + 1, l), student.layers[i], teacher.layers[l - 1]) for i, l in enumerate(chosen)),
    ]
    copied = []
    for name, target, source in parts:
        if target is not None and source is not None:
            target.load_state_dict({key: value.float() for key, value in source.state_dict().items()})
            copied.append(name)
    return copied


def check_start(student: EncoderShape, teacher: EncoderShape, where: str = "ekd.initialise_from") -> None:
    """Raise EkdError where a student of one shape cannot take up weights of a teacher of another."""
    if teacher.attention != "plain":
        raise EkdError(f"{where}: WavLM's gated attention has no place in the student; name a HuBERT teacher")
    for field in START_FIELDS:
        ours, theirs = getattr(student, field), getattr(teacher, field)
        if ours != theirs:
            raise EkdError(
                f"{where}: {field} is {ours} in the student, {theirs} in the teacher, so weights cannot be copied; "
                "use null for random weights"
            )


def start_layers(
    choice: Literal["first", "spread"] | Sequence[int], count: int, depth: int, where: str = "ekd.initialise_from"
) -> list[int]:
    """Teacher layers, counted from 1, that start a student of ``count`` layers from a teacher of ``depth``.

    first: 1, 2, ...; spread: every k-th from 1 on with k = depth / count (DistilBERT, arXiv 1910.01108: one of two);
    or the list itself.

    Raises:
        EkdError: the teacher has too few layers, or a list does not fit.
    """
    if count > depth:
        raise EkdError(f"{where}: the student has {count} layers, the teacher only {depth}")
    if choice == "first":
        return list(range(1, count + 1))
    if choice == "spread":
        return [1 + i * depth // count for i in range(count)]
    if len(choice) != count or not all(1 <= layer <= depth for layer in choice):
        key = where.replace("initialise_from", "initialise_layers")
        raise EkdError(f"{key}: {list(choice)}: expected {count} layers (the student's) from 1 to {depth}")
    return list(choice)


def _renamed(ours: int, theirs: int) -> str:
    return f"layer {ours}" if ours == theirs else f"layer {ours} from {theirs}"


def student_state(student: Student, config: ModelConfig, target_sets: Sequence[TargetSet]) -> dict[str, Any]:
    """What a checkpoint holds under ``EKD``: enough to rebuild the student, and its heads, without any teacher."""
    return {
        "format": CHECKPOINT_FORMAT,
        "config": config.model_dump(mode="json"),
        "shape": student.encoder.shape.to_dict(),
        "encoder": {name: value.cpu() for name, value in student.encoder.state_dict().items()},
        "heads": {name: value.cpu() for name, value in student.heads.state_dict().items()},
        "head_sets": [{"name": t.name, "labels": list(t.labels), "width": t.width} for t in target_sets],
        # training only, so no part of the encoder
        "mask": {}
        if student.mask is None
        else {name: value.cpu() for name, value in student.mask.state_dict().items()},
    }


def newest_checkpoint(path: str | Path) -> Path:
    """The file itself, or the newest ``states-*.ckpt`` of an experiment folder; a transformers folder as it is.

    Raises:
        EkdError: no such file, or a folder without checkpoints.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("states-*.ckpt"))
        if not files and (path / "config.json").is_file():
            return path
        if not files:
            raise EkdError(f"{path}: no states-*.ckpt in this folder, and no config.json of a transformers model")
        return files[0] if len(files) == 1 else max(files, key=_step)
    if not path.is_file():
        raise EkdError(f"{path}: no such checkpoint")
    return path


def _step(file: Path) -> tuple[int, float]:
    """Order of checkpoints: by training step (names and times can mislead), a damaged file before all others."""
    try:
        step = read_torch_file(file, mmap=True).get("Step")
    except EkdError:
        return -1, 0.0
    return int(step or 0), file.stat().st_mtime


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The ``EKD`` part of a checkpoint (a file, or a folder's newest), or its like from a transformers folder.

    Raises:
        EkdError: unreadable, or the checkpoint of another model.
    """
    file = newest_checkpoint(path)
    if file.is_dir():
        return _read_transformers(file)
    states = read_torch_file(file)
    part = states.get(CHECKPOINT_KEY)
    if part is None:
        keys = ", ".join(map(str, list(states)[:6]))
        raise EkdError(f"{file}: not a checkpoint of `run_pretrain.py -u ekd` (it holds {keys}, no {CHECKPOINT_KEY!r})")
    if part.get("format") != CHECKPOINT_FORMAT:
        raise EkdError(f"{file}: checkpoint format {part.get('format')!r}; this version reads {CHECKPOINT_FORMAT}")
    return part


def _read_transformers(folder: Path) -> dict[str, Any]:
    """A transformers folder in the form of a checkpoint's ``EKD`` part: no heads, no configuration."""
    encoder = sources.load(sources.describe(str(folder), "student"), "student")
    return {
        "format": CHECKPOINT_FORMAT,
        "config": None,
        "shape": encoder.shape.to_dict(),
        "encoder": encoder.state_dict(),
        "heads": {},
        "head_sets": [],
    }


def is_student(path: str | Path) -> bool:
    """Whether this is a checkpoint of ours; a transformers folder is not, other upstreams read those too."""
    try:
        file = newest_checkpoint(path)
        return file.is_file() and CHECKPOINT_KEY in read_torch_file(file, mmap=True)
    except EkdError:
        return False


def load_student(path: str | Path) -> tuple[Encoder, nn.ModuleDict, dict[str, Any]]:
    """Encoder and heads of a checkpoint, in eval mode on the CPU, and the checkpoint's ``EKD`` part."""
    part = read_checkpoint(path)
    try:
        encoder = Encoder(EncoderShape.from_dict(part["shape"]))
        encoder.load_state_dict(part["encoder"])
        heads = nn.ModuleDict(
            {s["name"]: HeadSet(encoder.shape.width, len(s["labels"]), s["width"]) for s in part["head_sets"]}
        )
        heads.load_state_dict(part["heads"])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise EkdError(f"{path}: damaged student checkpoint ({str(error).splitlines()[0]})") from error
    return encoder.eval(), heads.eval(), part


def untrained_student(config_file: str | Path, seed: int = 0) -> Encoder:
    """A student of a configuration with random weights, the same ones each time: the baseline to stand beside."""
    config = load_model_config(config_file)
    student_shape(config.student, f"{config_file}: student")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Student(config.student).encoder.eval()
