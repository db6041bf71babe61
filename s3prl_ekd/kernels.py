"""Whether kernels of our own are used on a GPU: where they may be, and the trial that comes first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from s3prl_ekd.errors import is_out_of_memory

logger = logging.getLogger(__name__)
Found = TypeVar("Found")

FUSED = {"enable_fp_fusion": True}
"""Of every launch: a product and the sum that it goes into are one instruction. Triton 3.9 warns that 3.10 will have to
be asked for it."""


def can_launch(x: Tensor) -> bool:
    """A kernel may be launched on ``x`` here: it is on a GPU, and nobody records operators to run them later."""
    return x.is_cuda and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def try_kernel(trial: Callable[[], Found], otherwise: str) -> Found | None:
    """What a trial of a kernel returns; None where its compiler, driver or operator fails, whatever it raises.

    An error of a full GPU is raised: it says nothing of the kernel, which the next batch tries again.
    """
    try:
        return trial()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logger.info("[ekd] %s: %s", otherwise, error)
        return None
