"""Paths as users write them: ``~`` is their home, and a relative one begins in the current folder."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path without ``~`` or ``~NAME``; as it is where no NAME is here (``Path.expanduser`` fails then)."""
    return Path(os.path.expanduser(path))


def from_anywhere(path: str) -> str:
    """A path as a checkpoint may hold it, to be used from any folder: a relative one made absolute.

    An absolute one stays as it is, also where it is a link.
    """
    found = expanded(path)
    return str(found if found.is_absolute() else found.resolve())
