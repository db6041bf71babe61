"""The clips of a batch, put one by one into the memory that a worker shares with the main process.

A list of clips that is stacked at the end, and copied to shared memory after that, costs a third of what reading the
clips costs: each step takes fresh memory, which the system must clear first. Here each clip is copied once, while it
is still in the processor's cache.
"""

from __future__ import annotations

import shutil

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from s3prl_ekd.errors import EkdError

SHARED = "/dev/shm"  # where Linux keeps what processes share
MIB = 2**20


class Rows:
    """Up to ``clips`` rows of ``samples`` float32; memory is taken when the first one comes.

    ::

        rows = Rows(24, 250_000)
        rows.append(wave)      # (250_000,) float32
        rows.tensor()          # (1, 250_000)
    """

    def __init__(self, clips: int, samples: int) -> None:
        self._shape, self._count = (clips, samples), 0
        self._rows: Tensor | None = None

    def __len__(self) -> int:
        return self._count

    def append(self, wave: np.ndarray) -> None:
        """Copy one clip, (samples,) float32, into the next row."""
        if self._rows is None:
            self._rows = batch_memory(self._shape)
        self._rows[self._count] = torch.from_numpy(wave)
        self._count += 1

    def tensor(self) -> Tensor:
        """(rows appended, samples), a view of the rows."""
        return torch.empty(0, self._shape[1]) if self._rows is None else self._rows[: self._count]


def batch_memory(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised, in shared memory where a worker asks: sending it to the main process copies nothing.

    All tensors of a batch must come from here. Other memory of a worker is copied into shared memory on its way, by a
    thread whose failure nobody hears of: with no room left the main process would wait for ever.

    Raises:
        EkdError: there is no room for it.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    size = shape[0] * shape[1] * dtype.itemsize
    try:
        # as torch's own default_collate does; share_memory_() would copy the uninitialised memory
        storage = torch.UntypedStorage._new_shared(size)
    except RuntimeError as error:
        raise EkdError(
            f"pretrain_expert.datarc.num_workers: no shared memory for {size / MIB:.1f} MiB of a batch{_left()}; use "
            "fewer workers (0 needs none), or make it larger (docker run --shm-size=4g)"
        ) from error
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]  # as documented


def _left() -> str:
    """What is left of it, where the system shows it as a folder."""
    try:
        usage = shutil.disk_usage(SHARED)
    except OSError:
        return ""
    return f": {SHARED} has {usage.free / MIB:.1f} of {usage.total / MIB:.1f} MiB left"
