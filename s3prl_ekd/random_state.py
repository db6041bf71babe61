"""The random states of one process: as plain numbers that a checkpoint may hold, and draws beside them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """State of torch's generators (the CPU's, the current GPU's), numpy's and Python's."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": _plain(np.random.get_state()),
        "python": _plain(random.getstate()),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on from a :func:`random_state`; a GPU's is left out where there is no GPU now, or was none."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu())
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What torch draws on the CPU inside the block follows from ``seed``; afterwards the run's own draws go on.

    ``torch.manual_seed`` seeds every GPU as well, which ``fork_rng`` without devices does not put back: dropout on a
    GPU would then be that of this seed, whatever the run's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _plain(state: Iterable[Any]) -> list[Any]:
    return [part.tolist() if isinstance(part, np.ndarray) else list(part) if isinstance(part, tuple) else part
            for part in state]  # fmt: skip
