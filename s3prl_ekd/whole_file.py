"""Files that are there whole or not at all, whatever ends the process: the only place that knows how."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3prl_ekd.errors import writing


@contextmanager
def whole_file(path: Path, durable: bool = False) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` in one step at the end of the block.

    Where the block fails, ``path`` stays what it was and the part is removed. Only a kill leaves one behind, under a
    name that begins with a dot and ends with the process's number.

    Args:
        durable: the bytes are on the disk before the step (fsync), so that losing power loses nothing older either.
    """
    partial = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    partial.unlink(missing_ok=True)  # of a killed process with our number, as containers deal them again; maybe a link
    try:
        with writing(path, partial):
            yield partial
            if durable:
                with open(partial, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """A text, in UTF-8, by :func:`whole_file`: of a link, the link is replaced and not what it leads to."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def part_of(name: str) -> tuple[str, int] | None:
    """Whose part a kill has left behind under this name, and the process's number; None for any other file."""
    found = re.fullmatch(r"\.(.+)\.tmp-(\d+)", name)
    return (found[1], int(found[2])) if found else None


def sweep(folder: str | Path, of: str | None = None) -> None:
    """Delete what killed processes have left half-written in a folder; of another host's it cannot be told.

    Args:
        of: the name of the file whose parts go; None: of every file, in a folder that one process at a time writes to.
    """
    for path in Path(folder).iterdir():
        part = part_of(path.name)
        if part and of in (None, part[0]) and not _alive(part[1]):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
