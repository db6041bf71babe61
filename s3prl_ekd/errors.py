"""The one exception for what a user can cause.

Every command catches :class:`EkdError` at its outermost level, prints its message as one line and exits with status 2.
A message names the file and the key (``config_model.yaml: ekd.teachers[1].layers: 14 > 12``), then what was expected.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# a full or read-only disk, no permission, a file where a folder is meant or a folder for a file, a name that is too
# long: the user's to fix
UNWRITABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG,
}  # fmt: skip
# words of torch's allocator, of the driver, of Triton where it loads a kernel, and of NVIDIA's libraries (cuBLAS at a
# process's first product)
OUT_OF_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "[CUDA]: out of memory", "_ALLOC_FAILED")


class EkdError(ValueError):
    """Something that the user can fix: a wrong key, a missing file, an unreadable checkpoint."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error is of a full GPU."""
    return any(words in str(error) for words in OUT_OF_MEMORY)


def out_of_memory_line(error: Exception) -> str:
    """What that error says, without the statistics of torch's allocator; then what to do."""
    reason = str(error).splitlines()[0].partition(". GPU ")[0].rstrip(".")
    return f"{reason}; make room on this GPU, or set a smaller batch (docs/faq.md, Out of memory)"


@contextmanager
def naming(where: str | Path) -> Iterator[None]:
    """Put a file, a key or an option before the errors of the block."""
    try:
        yield
    except EkdError as error:
        raise EkdError(f"{where}: {error}") from error


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Errors of the block, which reads a file of anybody's, become an EkdError that begins with ``what``."""
    try:
        yield
    except EkdError:
        raise
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise EkdError(f"{what} ({one_line(error, 200)})") from error  # torch's first line doesn't name the weight


@contextmanager
def writing(path: Path, part: Path | None = None) -> Iterator[None]:
    """An OSError of the block names ``path`` where it names ``part``, or no file at all, as that of a full disk."""
    try:
        yield
    except OSError as error:
        of_part = error.filename == str(part or path) and error.filename2 is None
        if of_part or (error.filename is None and error.errno in UNWRITABLE):
            error.filename = str(path)
        raise


def message(error: Exception) -> str:
    """What an error says; of one that was raised in a data worker, without the traceback that torch puts around it.

    Control characters, which it may have from somebody's file, are spelled out: a terminal would obey them.
    """
    text = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in str(error).strip())
    if "Original Traceback" not in text:
        return text
    last = text.splitlines()[-1]
    head, _, rest = last.partition(": ")
    return rest if "." in head and " " not in head else last


def one_line(error: Exception, most: int | None = None) -> str:
    """:func:`message` on one line, of at most so many characters."""
    return " ".join(message(error).split())[:most]
