"""Out of GPU memory in training: what s3prl's runners leave undone when a batch does not fit, and what users read.

Both runners catch the error of a batch, print the step, call ``torch.cuda.empty_cache()``, drop the gradients and go on
with the next batch. They know it by the words of torch's allocator; :func:`words` puts these into errors that Triton,
cuBLAS and the driver word otherwise. :class:`SkipBatch` takes the place of the call, since four things are missing:

- the error that is being handled holds the batch's activations, so that there is nothing to give back;
- after a failed pass back the runner's variables hold the graph until others take their place: the next batch would
  need the memory of two, fail in its turn, and so on for ever;
- the batches that were accumulated for the same step are dropped too, but stay counted, and their loss stays in the
  step's: the next step would be made of fewer than the others, and its loss in tensorboard too large;
- where no batch fits, the runner goes on for ever, without a step.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.data.batches import Batch
from s3prl_ekd.errors import EkdError, is_out_of_memory

log = logging.getLogger(__name__)

LIMIT = 10  # batches in a row that do not fit, after which there is no hope of a step
PRETRAINING = "set a smaller pretrain_expert.datarc.batch_seconds or train_batch_size (docs/faq.md, Out of memory)"
DOWNSTREAM = (
    "set a smaller batch size, or run fewer trainings on this GPU side by side (evaluate --jobs; docs/faq.md, Out of "
    "memory)"
)
_GRAPH = ("loss", "features", "data", "wavs", "e")  # the runners' variables that can hold a batch's memory


class SkipBatch:
    """Stands in for ``torch.cuda.empty_cache`` in a runner: frees what a batch held that did not fit, and warns.

    Where no error is being handled (s3prl's evaluations call it as well) it is the real one.

    Args:
        empty_cache: the real one.
        advice: what the user can do, for messages.
    """

    def __init__(self, empty_cache: Callable[[], None], advice: str = PRETRAINING) -> None:
        self._empty_cache, self._advice = empty_cache, advice
        self._step, self._in_a_row = -1, 0

    def __call__(self) -> None:
        """Raises EkdError where :data:`LIMIT` batches in a row did not fit."""
        error = sys.exception()
        thrown = None if error is None else error.__traceback__
        if thrown is None:
            self._empty_cache()
            return
        step, size = _release(thrown.tb_frame)
        traceback.clear_frames(thrown)  # the variables of the expert's and torch's functions
        self._empty_cache()
        self._in_a_row = self._in_a_row + 1 if step == self._step else 1
        self._step = step
        if self._in_a_row == LIMIT:
            raise EkdError(
                f"out of GPU memory at step {step}: {LIMIT} batches in a row do not fit; {self._advice}"
            ) from None
        log.warning(
            "step %d: a batch%s does not fit into the GPU's memory and is skipped; %s", step, size, self._advice
        )


def words(value: object) -> str:
    """Stands in for ``str`` in a runner, which calls an error a full GPU's where it reads "CUDA out of memory"."""
    if isinstance(value, RuntimeError) and is_out_of_memory(value):
        return f"CUDA out of memory: {value}"
    return str(value)


def _release(runner: FrameType) -> tuple[int, str]:
    """Take a batch out of the frame of ``Runner.train``; returns the step, and the batch's size in words."""
    found = dict(runner.f_locals)
    changed: dict[str, Any] = {name: None for name in _GRAPH if name in found}
    if "backward_steps" in found:
        accumulated = found.get("gradient_accumulate_steps") or 1  # downstream, known after the first pass forward
        changed["backward_steps"] = found["backward_steps"] - found["backward_steps"] % accumulated
    if "all_loss" in found:  # pretraining's sum of the step's losses, for tensorboard
        changed["all_loss"] = 0
    _set_variables(runner, changed)
    return found["global_step"], _size(found)


def _size(variables: Mapping[str, Any]) -> str:
    batch, wavs = variables.get("data"), variables.get("wavs")
    if isinstance(batch, Batch):
        return f" of {batch.clips} clips, {batch.seconds:.0f} s of audio,"
    if wavs is not None:
        return f" of {len(wavs)} clips, {sum(map(len, wavs)) / SAMPLE_RATE:.0f} s of audio,"
    return ""


def _set_variables(frame: FrameType, values: Mapping[str, Any]) -> None:
    """Give variables of a running function other values.

    ``f_locals`` writes through since Python 3.13. Before, it is a copy that the interpreter takes over when a debugger
    asks it to (PEP 558), and that lives as long as the frame, with all that it holds.
    """
    variables = frame.f_locals
    for name, value in values.items():
        variables[name] = value
    if isinstance(variables, dict):
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
        variables.clear()
