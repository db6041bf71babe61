"""Folders and files that exports write, and the licence text that goes with them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3prl_ekd.errors import EkdError
from s3prl_ekd.whole_file import sweep, write_whole
from s3prl_ekd.writable import make_writable

log = logging.getLogger(__name__)

_MIT = """MIT License

Copyright (c) 2026 the s3prl-ekd authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


CARD = "README.md"
MADE_WITH = "made with s3prl-ekd"
"""In every card that an export writes."""
UNFINISHED = ".unfinished-export-{}"
"""Marks a folder that was empty when its first export began and is not whole yet: all in it is ours.

Its name holds that kind's marker, so that another kind does not write beside it.
"""


@contextmanager
def export_folder(folder: Path, marker: str) -> Iterator[None]:
    """Make ``folder`` for an export; refuse one that holds other things than an earlier export, whose killed parts go.

    Such an export is told by the file ``marker`` beside a card of ours, a first one that was interrupted by
    :data:`UNFINISHED`, which goes only with an export that comes to its end.

    Raises:
        EkdError: a file of that name, a folder of somebody else's files, or one that cannot be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise EkdError(f"--out {folder}: is a file; expected a folder")
    empty = not folder.is_dir() or not any(folder.iterdir())
    unfinished = folder / UNFINISHED.format(marker)
    if not empty and not unfinished.is_file():
        card = folder / CARD
        if not (folder / marker).is_file() or not card.is_file() or MADE_WITH not in card.read_text("utf-8", "replace"):
            raise EkdError(
                f"--out {folder}: is not empty and holds no earlier export ({marker}, and {CARD} that says "
                f"'{MADE_WITH}'); name another folder"
            )
    make_writable(folder, f"--out {folder}")
    sweep(folder)
    if empty:
        unfinished.touch()
    yield
    unfinished.unlink(missing_ok=True)


def write_license(folder: Path, licence: str = "mit") -> None:
    """The licence of the model code where ``licence`` is "mit", else none; one that the user put there stays."""
    path = folder / "LICENSE"
    theirs = path.is_file() and path.read_text("utf-8", "replace") != _MIT
    if theirs:
        log.warning("%s: stays; it is not the one that an export writes", path)
    elif licence == "mit":
        write_whole(path, _MIT)
    else:
        path.unlink(missing_ok=True)
