"""The trial of a kernel: what is said of the kernel, and what of the GPU alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from s3prl_ekd.kernels import try_kernel


def failing(error: Exception) -> Callable[[], None]:
    def trial() -> None:
        raise error

    return trial


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_a_full_gpu_says_nothing_of_the_kernel(error: Exception) -> None:
    """Whoever finds it full: a kernel that is left out is left out to the end of the process."""
    with pytest.raises(type(error)):
        try_kernel(failing(error), "slower")


def test_any_other_failure_does() -> None:
    lacks = RuntimeError("out of resource: shared memory, Required: 114688, Hardware limit: 101376")
    assert try_kernel(failing(lacks), "slower") is None
