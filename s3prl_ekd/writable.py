"""Places that a user names to write to: made, seen to be writable before the work for them is done, and emptied."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from s3prl_ekd.errors import EkdError
from s3prl_ekd.user_paths import expanded
from s3prl_ekd.whole_file import sweep


def absolute_folder(text: str, where: str) -> str:
    """A folder that a configuration names, as an absolute path; it need not exist yet.

    Raises:
        EkdError: ``~NAME`` of nobody here, for which a folder of that very name would be made.
    """
    folder = expanded(text)
    if str(folder).startswith("~"):
        raise EkdError(f"{where}: {text}: there is no user {text.partition('/')[0][1:]} here")
    return str(folder.resolve())


def make_writable(folder: Path, where: str, advice: str = "") -> None:
    """Make a folder and see that a file can be made in it.

    Args:
        where: begins the message: the key or option, and the folder.
        advice: ends it.

    Raises:
        EkdError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EkdError(f"{where}: cannot be made ({error.strerror}){advice}") from error
    try:
        tempfile.TemporaryFile(dir=folder).close()  # what permissions say is no answer: to root, /proc looks writable
    except OSError as error:
        raise EkdError(f"{where}: cannot be written to ({error.strerror}){advice}") from error


def empty_folder(folder: Path, last: str = "", keep: str = "") -> None:
    """Remove what is in a folder, the entry ``last`` last, but for ``keep``.

    The folder itself stays: it may be a link, or the current one.
    """
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == last):
        if entry.name == keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def output_file(file: Path, suffix: str | None = None) -> Path:
    """Make the folder of ``--out FILE`` and see that the file can be written; what a kill has left of it there goes.

    Raises:
        EkdError: another ending than ``suffix``, a folder of that name, no permission.
    """
    if suffix is not None and file.suffix != suffix:
        raise EkdError(f"--out {file}: expected a file name ending in {suffix}")
    if file.is_dir():
        raise EkdError(f"--out {file}: is a folder; name the file to write")
    make_writable(file.parent, f"--out {file}")
    if file.exists() and not os.access(file, os.W_OK):
        raise EkdError(f"--out {file}: no permission to write there")
    with suppress(PermissionError):  # a part of another user's in /tmp
        sweep(file.parent, file.name)
    return file
