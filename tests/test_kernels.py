"""The trial of a kernel: what is said of the kernel, and what of the GPU alone."""

from __future__ import annotations

import pytest
import torch

from s3prl_ekd.kernels import try_kernel


def trial_that_raises(error: Exception) -> None:
    def trial() -> None:
        raise error

    try_kernel(trial, "slower")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("Triton Error [CUDA]: out of memory")],
)
def test_a_full_gpu_says_nothing_of_the_kernel(error: Exception) -> None:
    """In words that s3prl's runners know: they leave the batch out, and the next one tries again."""
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        trial_that_raises(error)


def test_any_other_failure_does() -> None:
    trial_that_raises(RuntimeError("Triton Error [CUDA]: device kernel image is invalid"))
