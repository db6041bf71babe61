"""The clips of KS, PR and SF in the order of their names: s3prl takes the disk's, from which a seed then draws."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class SortedPath(type(Path())):  # type: ignore[misc]
    """A path whose entries come by name."""

    def iterdir(self) -> Iterator[Path]:
        return iter(sorted(super().iterdir()))

    def glob(self, *args: Any, **kwargs: Any) -> Iterator[Path]:
        return iter(sorted(super().glob(*args, **kwargs)))

    def rglob(self, *args: Any, **kwargs: Any) -> Iterator[Path]:
        return iter(sorted(super().rglob(*args, **kwargs)))


def list_by_name(name: str) -> Any:
    """Give a module of s3prl's this path in place of its own; returns the module."""
    module: Any = importlib.import_module(name)
    module.Path = SortedPath
    return module
