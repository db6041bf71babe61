"""The small teachers that ship with this package: ``embedded:tiny_hubert`` and its siblings.

Each is a transformers folder in ``s3prl_ekd/resources/teachers`` with ``training.json`` beside it, which says on what
and how it was trained (recipes/tiny_teachers made them). They are for trying things out and for tests of whole recipes
on a small machine; no published number is theirs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.shipped import shipped
from s3prl_ekd.spelling import did_you_mean

PREFIX = "embedded:"
RECORD = "training.json"
_KEYS = {"name", "summary", "data", "licence", "command", "stages"}


def names() -> list[str]:
    """What can stand after ``embedded:``."""
    return sorted(file.parent.name for file in shipped("resources/teachers").glob(f"*/{RECORD}"))


def folder(source: str, where: str = "source") -> Path:
    """The folder that ``embedded:NAME`` means.

    Raises:
        EkdError: there is no such teacher in the package.
    """
    name = source.removeprefix(PREFIX)
    if name not in names():
        hint = did_you_mean(name, names())
        raise EkdError(f"{where}: {source!r} is no embedded teacher (there are {', '.join(names())}){hint}")
    return shipped("resources/teachers") / name


def record(path: Path) -> dict[str, Any] | None:
    """What a folder's ``training.json`` says; None where there is none of ours, as in folders from elsewhere."""
    try:
        found = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and _KEYS <= found.keys() else None
