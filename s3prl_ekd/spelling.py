"""Names in messages: several of them, one that is there twice, and what may have been meant by one that nothing has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")

NAMED = 6
"""How many of several things a message names before it counts the others."""


def did_you_mean(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> str:
    """``; did you mean a or b?``, to end a message about ``name``; empty where nothing is near.

    Args:
        known: the names that there are; upper and lower case count as equal.
        count: how many to offer at most.
        cutoff: how near is near, as in :func:`difflib.get_close_matches`.
    """
    lower = {item.lower(): item for item in sorted(known)}
    found = [lower[item] for item in difflib.get_close_matches(name.lower(), lower, n=count, cutoff=cutoff)]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def repeated(names: Sequence[T]) -> T | None:
    """The first of ``names`` that is there more than once; None where each is there once."""
    return next((name for name in names if names.count(name) > 1), None)


def listed(names: Sequence[str], most: int = NAMED) -> str:
    """``a, b and 3 more``: at most so many of the names, and the number of the others."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{rest}"
