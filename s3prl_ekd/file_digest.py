"""SHA-256 of files, each read once a process: a checkpoint is half a gigabyte, and several parts of a command ask."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


def file_digest(file: Path) -> str:
    """The digest in hexadecimal digits; a file whose size or time has changed is read again.

    Raises:
        OSError: it cannot be read.
    """
    status = file.stat()
    return _read(file, status.st_size, status.st_mtime_ns)


@cache
def _read(file: Path, size: int, changed: int) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
