"""The SUPERB hidden-set submission: the folder that organisers load, made from a student's checkpoint.

Its model code is ``superb_expert.py``, copied as it is; its checks are in ``validate.py``; its card in ``cards.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from s3prl_ekd.errors import EkdError, reading
from s3prl_ekd.export import cards, superb_expert
from s3prl_ekd.export.files import CARD, export_folder, write_license
from s3prl_ekd.export.isolated import TASKS
from s3prl_ekd.model.student import heads_read
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.student_checkpoint import load_student
from s3prl_ekd.student_part import same_weights
from s3prl_ekd.torch_file import read_torch_file, write_torch_file
from s3prl_ekd.whole_file import whole_file, write_whole

log = logging.getLogger(__name__)

FORMAT = 1
MARKER = "expert.py"  # tells a folder of this export
REQUIREMENTS = "torch>=1.13\n"


def export_superb(
    checkpoint: Path, out: Path, keep_heads: bool = False, task_states: Mapping[str, Sequence[int]] | None = None
) -> Path:
    """Write ``expert.py``, ``model.pt``, ``requirements.txt``, ``README.md`` and ``LICENSE`` into ``out``.

    Args:
        checkpoint: a student: ``states-N.ckpt``, an experiment folder, or a transformers folder.
        out: a new or empty folder, or one that such an export wrote before.
        keep_heads: append the training heads' predictions to ``hidden_states``.
        task_states: task -> numbers of the hidden states that it shall get; other tasks get all.

    Raises:
        EkdError: a checkpoint that the expert cannot compute, an unknown task, a state that does not exist.
    """
    encoder, heads, part = load_student(checkpoint)
    shape = encoder.shape
    _check_shape(shape, checkpoint)
    weights: dict[str, Tensor] = dict(encoder.state_dict())
    head_sets: list[list[Any]] = []
    names = ["projected conv features", *(f"transformer layer {index + 1}" for index in range(shape.layers))]
    if keep_heads:
        if not part["head_sets"]:
            raise EkdError(f"--heads: {checkpoint} holds no heads")
        for head_set in part["head_sets"]:
            if head_set["width"] != shape.width:
                raise EkdError(
                    f"--heads: head set {head_set['name']!r} predicts {head_set['width']} channels, but all hidden "
                    f"states of a submission must have the same {shape.width}"
                )
            head_sets.append([head_set["name"], list(heads_read(head_set["labels"], head_set.get("reads", ()), shape))])
            names += [f"prediction of {head_set['name']}.{label}" for label in head_set["labels"]]
        weights |= {f"heads.{name}": value for name, value in heads.state_dict().items()}
    chosen = _check_tasks(task_states or {}, len(names))
    model = {
        "format": FORMAT,
        "shape": shape.to_dict(),
        "head_sets": head_sets,
        "task_states": chosen,
        "weights": {name: value.detach().cpu().clone() for name, value in weights.items()},
    }
    with export_folder(out, MARKER):
        card, requirements, same = out / CARD, out / "requirements.txt", _holds(out, model)
        edited = card.is_file() and cards.is_edited(card.read_text("utf-8", "replace"))
        if edited and not same:
            raise EkdError(f"{card}: was edited, or another version wrote it, for another model; name another folder")
        if not same:
            card.unlink(missing_ok=True)  # a kill from here on must not leave it beside this model
        expert = Path(superb_expert.__file__)
        if (out / "expert.py").is_file() and (out / "expert.py").read_bytes() != expert.read_bytes():
            log.warning("%s: replaced; it was edited, or another version wrote it", out / "expert.py")
        write_whole(out / "expert.py", expert.read_text(encoding="utf-8"))
        with whole_file(out / "model.pt") as partial, partial.open("wb") as stream:
            write_torch_file(model, stream)
        if requirements.is_file() and requirements.read_text(errors="replace") != REQUIREMENTS:
            log.info("%s: stays as it is: it was edited", requirements)
        else:
            write_whole(requirements, REQUIREMENTS)
        if edited:
            log.info("%s: stays as it is: the model is the same, and the file was edited", card)
        else:
            write_whole(card, cards.superb_card(part, shape, names, chosen))
        write_license(out)
    return out


def _holds(out: Path, model: Mapping[str, Any]) -> bool:
    """Whether an earlier export there is of the same model."""
    try:
        with reading("model.pt"):
            there = read_torch_file(out / "model.pt")
            same = all(there[key] == model[key] for key in model if key != "weights")
            return same and same_weights(there["weights"], model["weights"])
    except EkdError:  # none there, or a damaged one
        return False


def parse_task_states(items: Sequence[str]) -> dict[str, list[int]]:
    """``["PR=2", "SID=0,1"]`` -> ``{"PR": [2], "SID": [0, 1]}``.

    Raises:
        EkdError: not of that form, or a task named twice.
    """
    chosen: dict[str, list[int]] = {}
    for item in items:
        task, equals, numbers = item.partition("=")
        parts = [number.strip() for number in numbers.split(",")]
        if not equals or not all(part.isdecimal() for part in parts):
            raise EkdError(f"--task-layers {item!r}: expected TASK=NUMBERS, such as PR=2 or SID=0,1,2")
        if task in chosen:
            raise EkdError(f"--task-layers: {task} is named twice")
        chosen[task] = [int(part) for part in parts]
    return chosen


def _check_tasks(task_states: Mapping[str, Sequence[int]], count: int) -> dict[str, list[int]]:
    for task, states in task_states.items():
        if task not in TASKS:
            raise EkdError(f"--task-layers: no task {task!r}; expected some of {', '.join(TASKS)}")
        wrong = [state for state in states if not 0 <= state < count]
        if wrong or not states:
            raise EkdError(f"--task-layers {task}: no hidden state {wrong or 'given'}; there are 0..{count - 1}")
    return {task: list(states) for task, states in task_states.items()}


def _check_shape(shape: EncoderShape, checkpoint: Path) -> None:
    expected = {"attention": "plain", "padding_rule": "conv", "pos_conv_depth": 1}
    for field, value in expected.items():
        if getattr(shape, field) != value:
            raise EkdError(f"{checkpoint}: {field} is {getattr(shape, field)!r}; the SUPERB expert needs {value!r}")
