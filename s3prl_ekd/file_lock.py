"""A lock that keeps other processes out, as a file."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import BinaryIO


def lock_file(file: Path) -> BinaryIO:
    """Lock a file, which is made unless it is there; what is returned keeps the lock while it is open.

    A POSIX lock: data workers do not inherit it, so that none which outlives a killed run can keep it.

    Raises:
        BlockingIOError: another process has it.
        OSError: the file cannot be opened, or its disk has no locks.
    """
    opened = open(file, "ab", buffering=0)
    try:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:  # POSIX leaves the number open
        raise BlockingIOError(errno.EAGAIN, error.strerror) from error
    return opened
