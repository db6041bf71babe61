"""Stand-ins for packages that two of s3prl's tasks import and a run in one process never calls.

Installing them would bring much along that nothing here uses. The registry is ``shims.py``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from s3prl_ekd.compat.modules import stand_in
from s3prl_ekd.errors import EkdError


def not_installed(package: str) -> Callable[[], bool]:
    """A test for :class:`shims.Shim`: there is no such package to import."""
    return lambda: importlib.util.find_spec(package) is None


def apply_catalyst() -> None:
    """``catalyst.data.sampler`` with the one class that KS asks of it: a sampler's draw, shared among ranks."""
    from torch.utils.data import DistributedSampler, Sampler

    class DistributedSamplerWrapper(DistributedSampler[int]):
        """Each rank's part of what ``sampler`` draws in an epoch; ``sampler`` has a length."""

        def __init__(self, sampler: Sampler[int], **kwargs: Any) -> None:
            super().__init__(sampler, **kwargs)  # type: ignore[arg-type]  # only its length is asked for
            self.sampler = sampler

        def __iter__(self) -> Iterator[int]:
            drawn = list(self.sampler)
            return iter([drawn[index] for index in super().__iter__()])

    for name in ("catalyst", "catalyst.data"):
        stand_in(name, "Stands in for a package that is not installed.", package=True)
    sampler: Any = stand_in("catalyst.data.sampler", "Stands in for a module that is not installed.")
    sampler.DistributedSamplerWrapper = DistributedSamplerWrapper


def apply_sox() -> None:
    """``sox.Transformer``, a name that ASV's dataset imports and does not use."""

    class Transformer:
        def __init__(self) -> None:
            raise EkdError("sox.Transformer: the package sox is not installed (pip install sox; it runs SoX itself)")

    module: Any = stand_in("sox", "Stands in for a package that is not installed.")
    module.Transformer = Transformer
