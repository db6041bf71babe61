"""The student: an encoder with prediction heads, and its initialisation from a teacher.

Its checkpoint is in ``student_checkpoint.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from s3prl_ekd.config import StudentConfig
from s3prl_ekd.distill.targets import TargetSet
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.clips import heard
from s3prl_ekd.model.encoder import Dropout, Encoder, EncoderOutput
from s3prl_ekd.model.heads import HeadSet
from s3prl_ekd.model.masking import SpanMask
from s3prl_ekd.shape import EncoderShape, conv_layers

START_FIELDS = ("conv_layers", "conv_norm", "conv_bias", "square_projection", "width", "ffn_width", "heads", "pre_norm",
                "pos_conv_kernel", "pos_conv_groups", "pos_conv_depth")  # fmt: skip
"""Fields of a shape that must agree where weights of one encoder start another."""
CONV_FIELDS = ("conv_layers", "conv_norm", "conv_bias")
"""Those of the conv stack, which can be all that is taken."""
Parts = Literal["all", "conv_stack"]


def student_shape(config: StudentConfig) -> EncoderShape:
    """The encoder shape of a configured student: plain attention, no norm on the conv features.

    Raises:
        EkdError: numbers that make no encoder.
    """
    try:
        return EncoderShape(
            conv_layers=conv_layers(config.conv_layers),
            conv_norm=config.conv_norm,
            conv_bias=config.conv_bias,
            feature_norm=False,
            width=config.width,
            layers=config.layers,
            ffn_width=config.ffn_width,
            heads=config.heads,
            pre_norm=config.pre_norm,
            pos_conv_kernel=config.pos_conv_kernel,
            pos_conv_groups=config.pos_conv_groups,
            normalize=config.normalize,
        )
    except ValueError as error:
        raise EkdError(f"student: {error}") from error


def student_like(teacher: EncoderShape) -> dict[str, Any]:
    """The ``student`` section with a teacher's widths and norms, so that its weights can start it; depth is apart."""
    return {
        "width": teacher.width,
        "ffn_width": teacher.ffn_width,
        "heads": teacher.heads,
        "conv_layers": [list(layer) for layer in teacher.conv_layers],
        "conv_norm": teacher.conv_norm,
        "conv_bias": teacher.conv_bias,
        "pre_norm": teacher.pre_norm,
        "normalize": teacher.normalize,
        "pos_conv_kernel": teacher.pos_conv_kernel,
        "pos_conv_groups": teacher.pos_conv_groups,
    }


class Student(nn.Module):
    """Encoder plus one head set per target set; everything that is trained.

    Args:
        config: the student's numbers.
        targets: the plan; empty for a student without heads.

    Attributes:
        reads: for each head of all sets, the number of the hidden state that it reads.
    """

    def __init__(self, config: StudentConfig, targets: Sequence[TargetSet] = ()) -> None:
        super().__init__()
        shape = student_shape(config)
        dropout = Dropout(config.dropout, config.attention_dropout, config.activation_dropout)
        self.encoder = Encoder(shape, dropout, config.feature_grad_mult)
        sets = {t.name: HeadSet(shape.width, t.width, heads_read(t.labels, t.reads, shape)) for t in targets}
        self.heads = nn.ModuleDict(sets)
        self.reads = tuple(number for heads in sets.values() for number in heads.reads)
        self.mask = SpanMask(shape.width, config.mask) if config.mask is not None else None

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> tuple[EncoderOutput, dict[str, Tensor]]:
        """wave (B, N), lengths (B,) or None -> the encoder's output, predictions (B, n, T, width) per head set."""
        shape = self.encoder.shape
        states = {shape.layers, *self.reads}
        out = self.encoder(heard(shape, wave, lengths), lengths, states=states, replace=self.mask)
        return out, {name: heads(out.states) for name, heads in self.heads.items()}


def heads_read(labels: Sequence[str], reads: Sequence[int], shape: EncoderShape) -> tuple[int, ...]:
    """For each head of a set, the number of the student's state that it reads: as the set says, else the last one."""
    return tuple(reads) or (shape.layers,) * len(labels)


def initialise_student(
    student: Encoder,
    teacher: Encoder,
    choice: Literal["first", "spread"] | Sequence[int] = "first",
    parts: Parts = "all",
) -> list[str]:
    """Copy a teacher's conv stack, projection, positional convolution and first transformer layers (DistilHuBERT).

    ``choice`` selects other layers than the first ones: see :func:`start_layers`. ``parts`` may be the conv stack
    alone.

    A teacher's norm on conv features has no counterpart in the student; where there is one, the norm before layer 1
    (of a pre-norm student, after its last) keeps its own start, as in s3prl's distiller. Of an encoder without, a
    student itself, that norm is copied too.

    A student as wide as its conv channels has no projection. Its transformers folder has one, since HubertModel must:
    the identity, which is left out.

    Returns:
        names of the parts copied, for the log.

    Raises:
        EkdError: shapes differ, the teacher's attention is WavLM's, or it has a projection that the student lacks.
    """
    ours, theirs = student.shape, teacher.shape
    check_start(ours, theirs, parts)
    if parts == "conv_stack":
        _copy(student.frontend, teacher.frontend)
        return ["conv stack"]
    if student.projection is None and teacher.projection is not None and not _is_identity(teacher.projection):
        raise EkdError(
            f"ekd.initialise_from: its projection changes the conv features, and a student as wide as its convolutions "
            f"({ours.width}) has none, so weights cannot be copied; use null for random weights"
        )
    chosen = start_layers(choice, ours.layers, theirs.layers)
    norm = "last norm" if ours.pre_norm else "norm before layer 1"
    pairs: list[tuple[str, nn.Module | None, nn.Module | None]] = [
        ("conv stack", student.frontend, teacher.frontend),
        ("projection", student.projection, teacher.projection),
        ("positional convolution", student.position, teacher.position),
        (norm, student.norm, teacher.norm if teacher.feature_norm is None else None),
        *((_renamed(i + 1, l), student.layers[i], teacher.layers[l - 1]) for i, l in enumerate(chosen)),
    ]
    copied = []
    for name, target, source in pairs:
        if target is not None and source is not None:
            _copy(target, source)
            copied.append(name)
    return copied


def _copy(target: nn.Module, source: nn.Module) -> None:
    target.load_state_dict({key: value.float() for key, value in source.state_dict().items()})


def initialise_heads(
    heads: Mapping[str, nn.Module],
    targets: Sequence[TargetSet],
    trained: Mapping[str, nn.Module],
    head_sets: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Copy those of a trained student's heads that predict what the new student's are to, from the same of its states.

    Args:
        heads: the new student's, by target set.
        targets: what they predict.
        trained: the other one's.
        head_sets: what its checkpoint says of them: name, labels, width, reads.

    Returns:
        names of the head sets copied.
    """
    copied = []
    said = {one["name"]: (tuple(one["labels"]), tuple(one.get("reads", ()))) for one in head_sets}
    for target in targets:
        if said.get(target.name) != (target.labels, target.reads):
            continue
        ours, theirs = heads[target.name].state_dict(), trained[target.name].state_dict()
        if all(value.shape == theirs[name].shape for name, value in ours.items()):
            heads[target.name].load_state_dict(theirs)
            copied.append(target.name)
    return copied


def check_start(student: EncoderShape, teacher: EncoderShape, parts: Parts = "all") -> None:
    """Raise EkdError where a student of one shape cannot take up weights of a teacher of another."""
    if teacher.attention != "plain" and parts == "all":
        raise EkdError(
            "ekd.initialise_from: WavLM's gated attention has no place in the student; name a HuBERT teacher, or add "
            "initialise_parts: conv_stack"
        )
    for field in START_FIELDS if parts == "all" else CONV_FIELDS:
        ours, theirs = getattr(student, field), getattr(teacher, field)
        if field == "square_projection" and theirs and not teacher.feature_norm:
            continue  # perhaps an exported student's, the identity: its weights will tell
        if ours != theirs:
            other = "" if field in CONV_FIELDS else ", or initialise_parts: conv_stack"
            raise EkdError(
                f"ekd.initialise_from: {field} is {ours} in the student, {theirs} in the teacher, so weights cannot be "
                f"copied; use null for random weights{other}"
            )


def start_layers(choice: Literal["first", "spread"] | Sequence[int], count: int, depth: int) -> list[int]:
    """Teacher layers, counted from 1, that start a student of ``count`` layers from a teacher of ``depth``.

    first: 1, 2, ...; spread: every k-th from 1 on with k = depth / count (DistilBERT, arXiv 1910.01108: one of two);
    or the list itself.

    Raises:
        EkdError: the teacher has too few layers, or a list does not fit.
    """
    if count > depth:
        raise EkdError(f"ekd.initialise_from: the student has {count} layers, the teacher only {depth}")
    if choice == "first":
        return list(range(1, count + 1))
    if choice == "spread":
        return [1 + i * depth // count for i in range(count)]
    if len(choice) != count or not all(1 <= layer <= depth for layer in choice):
        expected = f"expected {count} layers (the student's) from 1 to {depth}"
        raise EkdError(f"ekd.initialise_layers: {list(choice)}: {expected}")
    return list(choice)


def _is_identity(projection: nn.Linear) -> bool:
    identity = torch.eye(*projection.weight.shape, dtype=projection.weight.dtype, device=projection.weight.device)
    return torch.equal(projection.weight, identity) and not projection.bias.any()


def _renamed(ours: int, theirs: int) -> str:
    return f"layer {ours}" if ours == theirs else f"layer {ours} from {theirs}"
