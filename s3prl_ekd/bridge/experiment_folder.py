"""The folder of an experiment: made for a new one, taken back where that ends before it has begun; for one run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import BinaryIO

from s3prl_ekd.errors import EkdError
from s3prl_ekd.file_lock import lock_file
from s3prl_ekd.writable import make_writable

EMPTY_EVENTS = 40  # bytes of a tensorboard file without a value
LOCK = ".run.lock"
# What both launchers and s3prl's scripts write before the first step: configs, arguments, copies with the time in their
# names, SID's lists of files (taskdata.py), the lock.
_OF_A_START = re.compile(r"config_(runner|model)\.yaml|.+_\d{4}(-\d\d){5}\.\w+|\.files|\.run\.lock")


def lock_run(folder: str | Path) -> BinaryIO | None:
    """The lock of the one run that trains in a folder: of two, each would delete the other's checkpoints.

    Returns:
        What keeps it while it is open; None where it cannot be had, in a read-only folder or on a disk without locks.

    Raises:
        EkdError: another run has it.
    """
    try:
        return lock_file(Path(folder, LOCK))
    except BlockingIOError as error:
        raise EkdError(f"{folder}: another run is training in this folder; wait for it to end") from error
    except OSError:
        return None


class ExperimentFolder:
    """One experiment's folder, and what was there before.

    Args:
        path: the folder, there or not.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._before = set(self.path.iterdir()) if self.path.is_dir() else set()
        self._missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]

    def make(self) -> None:
        """Make the folder and see that it can be written to, before anything is loaded.

        Raises:
            EkdError: it cannot be made or written to.
        """
        make_writable(self.path, f"experiment folder {self.path}")

    def take_back(self) -> None:
        """Remove what a start has written, and the folders that it has made, unless training has left something.

        What was there before stays as it is, and so does everything where there is a value in tensorboard's file, a
        checkpoint, or any file that is of no start.
        """
        made = set(self.path.iterdir()) - self._before if self.path.is_dir() else set()
        if not all(map(_is_of_a_start, made)):
            return
        for path in made:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for folder in self._missing:
            try:
                folder.rmdir()
            except OSError:  # not empty, or it was not made
                return


def _is_of_a_start(path: Path) -> bool:
    if path.name.startswith("events.out.tfevents."):
        return path.stat().st_size <= EMPTY_EVENTS
    return _OF_A_START.fullmatch(path.name) is not None
