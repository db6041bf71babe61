"""The PNG files of an earlier report in the same place: a page names its own, so that the next one can remove them.

A page's head holds each figure's name with a digest of its content. What has another content by now, or another name,
is the user's and stays.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, unquote

_NAME = "s3prl-ekd-figures"
_FOUND = re.compile(rf'<meta name="{_NAME}" content="([^"]*)">')


def names_of(figures: Iterable[Path]) -> str:
    """The element of a page's head that names its figures, each of which lies in a folder beside the page."""
    said = " ".join(f"{_digest(file)}:{quote(f'{file.parent.name}/{file.name}')}" for file in figures)
    return f'<meta name="{_NAME}" content="{said}">'


def stale_figures(page: Path, figures: Iterable[Path]) -> list[Path]:
    """What an earlier report wrote beside ``page``, as it wrote it, that is none of ``figures``.

    Args:
        page: the file of the earlier report, there or not, ours or not.
        figures: what the report that takes its place has written.
    """
    found = _FOUND.search(page.read_text(encoding="utf-8", errors="replace")) if page.is_file() else None
    current = {file.resolve() for file in figures}
    stale = []
    for word in found[1].split(" ") if found else []:
        digest, _, name = word.partition(":")
        file = page.parent / unquote(name)
        beside = file.parent.parent == page.parent and file.suffix == ".png" and ".." not in file.parts
        if beside and file.is_file() and file.resolve() not in current and _digest(file) == digest:
            stale.append(file)
    return stale


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
