"""PyTorch files: those of other people read without ever running code from them, our own written.

``torch.load(weights_only=True)`` lets tensors, containers and numbers through. s3prl's runners also pickle their
``argparse.Namespace`` and, with ``*_with_schedule`` optimizers, schedule objects; these few names are admitted here:
the Namespace as itself, the schedules as inert shells, so that neither s3prl nor its bare ``optimizers`` module is
needed to read a student. (A run that goes on needs the real classes: ``bridge/checkpoints.py``.)
"""

from __future__ import annotations

import argparse
import logging
import pickle
import re
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from s3prl_ekd.errors import EkdError
from s3prl_ekd.signals import uninterrupted

logger = logging.getLogger(__name__)
_SCHEDULES = ("ConstantLR", "WarmupConstantSchedule", "WarmupLinearSchedule", "WarmupCosineSchedule",
              "WarmupCosineWithHardRestartsSchedule", "WarmupCosineWithWarmupRestartsSchedule")  # fmt: skip


class _Inert:
    """Stands for a pickled object whose content nobody here needs."""


# As (class, name) pairs: leaving the `safe_globals` block then takes away only what entering it added.
_ADMITTED: list[Any] = [
    (argparse.Namespace, "argparse.Namespace"),
    (_Inert, f"{__name__}._Inert"),  # in a file that was read here and saved again
    *((_Inert, f"{module}.{name}") for module in ("optimizers", "s3prl.optimizers") for name in _SCHEDULES),
]
# What torch meets in damaged files, found by damaging some; the older format meets most of them where it is cut short
_DAMAGED = (RuntimeError, EOFError, OSError, KeyError, ValueError, IndexError, AttributeError, TypeError,
            AssertionError, OverflowError, struct.error)  # fmt: skip
_admitting = threading.Lock()  # torch's list of them is one for the process, and runs of evaluate end side by side


def is_zip(path: Path) -> bool:
    """Whether a file is of the format that PyTorch has written since 1.6. False too where it cannot be opened."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def read_torch_file(path: str | Path, mmap: bool = False, admitted: Sequence[Any] = _ADMITTED) -> dict[str, Any]:
    """The dictionary that a ``.pt``, ``.bin`` or ``.ckpt`` file holds, on the CPU.

    Args:
        path: the file.
        mmap: leave tensors on the disk until they are used: for a look at the numbers of a large file. (One in the
            format of PyTorch before 1.6 is read whole.)
        admitted: classes that may be built beside tensors, containers and numbers, as
            ``torch.serialization.safe_globals`` takes them.

    Raises:
        EkdError: missing, unreadable, truncated, not a dictionary, or in need of running code from the file.
    """
    path = Path(path)
    if not path.is_file():
        raise EkdError(f"{path}: is a folder, expected a file" if path.is_dir() else f"{path}: no such file")
    mmap = mmap and is_zip(path)
    try:
        with _admitting, torch.serialization.safe_globals(list(admitted)):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\w\S*)", str(error))  # two wordings: os and such are "blocked" modules
        if found:
            what = f"it holds {found.group(1)}"
            raise EkdError(f"{path}: refused, since reading it could run code from the file ({what})") from error
        raise EkdError(f"{path}: cannot be read (not a PyTorch file)") from error
    except PermissionError as error:
        raise EkdError(f"{path}: no permission to read it") from error
    except _DAMAGED as error:
        if path.stat().st_size == 0:
            raise EkdError(f"{path}: the file is empty (0 bytes)") from error
        raise EkdError(f"{path}: cannot be read (cut short, or not a PyTorch file)") from error
    if not isinstance(content, dict):
        raise EkdError(f"{path}: holds a {type(content).__name__}, not a checkpoint's dictionary")
    return content


def write_torch_file(content: Mapping[str, Any], stream: BinaryIO) -> None:
    """``torch.save``; a signal that comes meanwhile is raised when it is written.

    Raises:
        OSError: the stream cannot be written, as on a full disk.
        RuntimeError: the same, where torch fails once more as it closes the archive; the OSError is its context.
    """
    with uninterrupted():
        torch.save(content, stream)


def newest(files: Iterable[Path], read: Callable[[Path], Mapping[str, Any]]) -> Path | None:
    """The runner's checkpoint with the highest "Step", of two alike the later written; None where there are no files.

    Names mislead: s3prl calls its last one ``states-epoch-N.ckpt``, which sorts as step N. What cannot be read is left
    out with a warning.

    Args:
        files: checkpoints.
        read: gives a checkpoint's dictionary; EkdError for one that is not to be chosen.

    Raises:
        EkdError: none of the files can be read.
    """
    readable: list[tuple[int, float, Path]] = []
    problems: list[EkdError] = []
    for file in files:
        try:
            step = read(file).get("Step") or 0
            if not isinstance(step, int):
                raise EkdError(f"{file}: its Step is {step!r}, expected a whole number")
            readable.append((step, file.stat().st_mtime, file))
        except EkdError as error:
            problems.append(error)
    if not readable:
        if problems:
            raise problems[0]
        return None
    chosen = max(readable)[2]
    for problem in problems:
        logger.warning("skipped: %s; %s is taken", problem, chosen.name)
    return chosen
