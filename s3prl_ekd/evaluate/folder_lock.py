"""A lock on a folder, so that two calls of ``s3prl-ekd evaluate`` do not train in one.

A call has its ``--out`` for itself; the calls with ``--shard`` share theirs, and each has the runs that it is at for
itself.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from s3prl_ekd.errors import EkdError
from s3prl_ekd.writable import make_writable

LOCK = ".evaluate.lock"
"""The file in the folder. Whoever empties one that is locked leaves it: another call would lock a new one."""


@contextmanager
def locked_folders(folders: Iterable[Path], option: str = "", shared: bool = False) -> Iterator[None]:
    """:func:`locked_folder` for each of several, once: a row's own folder may be the ``--out`` of another call.

    Args:
        option: what stands before a folder in messages.
        shared: as :func:`locked_folder`.
    """
    with ExitStack() as locks:
        for folder in dict.fromkeys(folder.resolve() for folder in folders):
            locks.enter_context(locked_folder(folder, f"{option}{folder}", shared))
        yield


@contextmanager
def locked_folder(folder: Path, name: str, shared: bool = False) -> Iterator[None]:
    """Make ``folder`` and keep other calls out of it while the block runs; a file system without locks keeps none out.

    Args:
        name: what messages call it.
        shared: keep out only those who do not share it.

    Raises:
        EkdError: another call is at work there, or the folder cannot be written.
    """
    make_writable(folder, name)
    with open(folder / LOCK, "a+") as file:  # NFS shares a lock only on a file that may be read
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            reason = "another s3prl-ekd evaluate or robustness is at work there; wait for it, or take another"
            raise EkdError(f"{name}: {reason}") from error
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            with suppress(OSError):  # not by closing: a child that another thread just forks has the file open too
                fcntl.flock(file, fcntl.LOCK_UN)
