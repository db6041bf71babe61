"""Out of GPU memory in pretraining: what s3prl's runner leaves undone when a batch does not fit, and what users read.

The runner catches the error of a batch, prints the step, calls ``torch.cuda.empty_cache()``, drops the gradients and
goes on with the next batch. :class:`LeftOut` takes the place of that one call, since three things are missing:

- the error that is being handled holds the batch's activations, so that there is nothing to give back;
- after a failed pass back the runner's variable ``loss`` holds the graph until another loss takes its place: the next
  batch would need the memory of two, fail in its turn, and so on for ever;
- where no batch fits, the runner goes on for ever, without a step.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

from s3prl_ekd.data.batches import Batch
from s3prl_ekd.errors import EkdError

log = logging.getLogger(__name__)

LIMIT = 10  # batches in a row that do not fit, after which there is no hope of a step
ADVICE = "set a smaller pretrain_expert.datarc.batch_seconds or train_batch_size (docs/faq.md, Out of memory)"


class LeftOut:
    """Stands in for ``torch.cuda.empty_cache`` in the runner's ``except`` clause: frees what the batch held, and warns.

    Args:
        empty_cache: the real one.
    """

    def __init__(self, empty_cache: Callable[[], None]) -> None:
        self._empty_cache = empty_cache
        self._step, self._in_a_row = -1, 0

    def __call__(self) -> None:
        """Raises EkdError where :data:`LIMIT` batches in a row did not fit."""
        thrown = sys.exception().__traceback__
        step, batch = _release(thrown.tb_frame)
        traceback.clear_frames(thrown)  # the variables of the expert's and torch's functions
        self._empty_cache()
        self._in_a_row = self._in_a_row + 1 if step == self._step else 1
        self._step = step
        if self._in_a_row == LIMIT:
            raise EkdError(f"out of GPU memory at step {step}: {LIMIT} batches in a row do not fit; {ADVICE}") from None
        size = f" of {batch.clips} clips, {batch.seconds:.0f} s of audio," if isinstance(batch, Batch) else ""
        log.warning("step %d: a batch%s does not fit into the GPU's memory and is left out; %s", step, size, ADVICE)


def _release(runner: Any) -> tuple[int, Any]:
    """Cut the loss in the frame of ``Runner.train`` off its graph; return the step and the batch."""
    variables = runner.f_locals
    step, batch, loss = variables["global_step"], variables.get("data"), variables.get("loss")
    if isinstance(variables, dict):
        # Python below 3.13 keeps this copy for as long as the frame lives, and with it the batch and the error
        variables.clear()
    if isinstance(loss, torch.Tensor) and loss.grad_fn is not None:
        loss.detach_()
    return step, batch
