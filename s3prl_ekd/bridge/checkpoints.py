"""Checkpoints of s3prl's two runners as files: written whole or not at all, found, and read with clear errors.

What a checkpoint means (weights, optimizer, configs) is the runners' and the experts' business.
"""

from __future__ import annotations

import math
import os
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3prl_ekd.compat.shims import apply_shims
from s3prl_ekd.errors import EkdError
from s3prl_ekd.signals import uninterrupted
from s3prl_ekd.whole_file import whole_file

STATES, BEST = "states-*.ckpt", "dev-best.ckpt"
_NAMED = re.compile(r"states-(epoch-)?(\d+)\.ckpt")  # as the runners name them


class AtomicCheckpoints:
    """A runner's ``torch.save``, ``os.remove``, ``glob.glob``, such that a readable checkpoint exists at every moment.

    s3prl's runners delete old checkpoints before they write the new one, straight into its final name: a kill in
    between leaves nothing readable under ``max_keep: 1``. Here a file is written under a hidden name and renamed, and
    deletions of ``states-*.ckpt`` wait until the next ``states-*.ckpt`` is complete.

    They also take the number in a name for the step. That of the last one, ``states-epoch-17.ckpt`` after 200,000
    steps, is an epoch: in a run made longer, the finished student would be the first to go. Here as many go as the
    runner asks for, but by their steps; and of ``states-*.ckpt`` only those that it has named itself, so that a copy
    under another name (``states-200k.ckpt``, at which s3prl fails for want of a number) is neither counted nor deleted.
    """

    def __init__(self) -> None:
        self.pending: list[Path] = []

    @uninterrupted()
    def save(self, state: Any, target: str | os.PathLike[str]) -> None:
        """``torch.save(state, target)``; a run that is stopped meanwhile ends with this checkpoint.

        Raises:
            EkdError: the disk is full or not writable.
        """
        import torch

        path = Path(target)
        try:
            with whole_file(path, durable=True) as partial, open(partial, "wb") as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:
            reason = _disk_error(error)
            if reason is None:
                raise
            raise EkdError(f"{path}: the checkpoint could not be written ({reason.strerror or reason})") from error
        if path.match(STATES):
            due = len(set(self.pending) - {path})
            for old in sorted(set(_named(path.parent)) - {path}, key=_step)[:due]:
                old.unlink(missing_ok=True)
            self.pending.clear()

    def remove(self, target: str | os.PathLike[str]) -> None:
        """``os.remove(target)``, put off for checkpoints."""
        path = Path(target)
        if path.match(STATES):
            self.pending.append(path)
        else:
            os.remove(path)

    @staticmethod
    def glob(pattern: str) -> list[str]:
        """``glob.glob("FOLDER/states-*.ckpt")``, whatever characters are in the folder's name."""
        return [str(path) for path in _named(Path(pattern).parent)]


def _named(folder: Path) -> list[Path]:
    """The ``states-*.ckpt`` of a folder that a runner has named."""
    return [path for path in folder.glob(STATES) if _NAMED.fullmatch(path.name)]


def _step(path: Path) -> float:
    """The step of a runner's checkpoint; infinity, so that it is deleted last, where it must be read and cannot be."""
    named = _NAMED.fullmatch(path.name)
    try:
        return int(named[2] if named and not named[1] else read(path, mmap=True).get("Step") or 0)
    except EkdError:
        return math.inf


def _disk_error(error: BaseException | None) -> OSError | None:
    """``error`` or the OSError behind it: on a full disk, torch's writer fails once more as it closes the archive."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def read(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Read a runner's checkpoint on the CPU, without running code from the file (``weights_only``).

    Args:
        path: the file.
        mmap: leave the tensors on disk until they are touched: a cheap way to look at "Step" and "Args".

    Raises:
        EkdError: missing, empty, cut short, not a checkpoint, or holding more than tensors and settings.
    """
    from s3prl_ekd.torch_file import read_torch_file

    apply_shims("core")  # admits s3prl's own classes
    if not Path(path).is_file():
        raise EkdError(f"{path}: no such checkpoint")
    return read_torch_file(path, mmap, admitted=())


def read_runner(path: str | Path, keys: tuple[str, ...], what: str) -> dict[str, Any]:
    """:func:`read`, its tensors left on disk, and check that the runner's own ``keys`` are there.

    Raises:
        EkdError: also where a key is missing, or arguments or configuration are none; the message says which and what
            kind was expected (``what``).
    """
    state = read(path, mmap=True)
    for key in keys:
        if key not in state:
            raise EkdError(f"{path}: not a checkpoint of {what}: it has no {key!r}")
    for key, kind in (("Args", Namespace), ("Config", dict)):
        if key in keys and not isinstance(state[key], kind):
            raise EkdError(f"{path}: not a checkpoint of {what}: its {key} is a {type(state[key]).__name__}")
    return state


def newest(folder: str | Path, check: Callable[[Path], dict[str, Any]]) -> Path | None:
    """The checkpoint of ``folder`` with the highest "Step" that ``check`` can read, as :func:`torch_file.newest`."""
    from s3prl_ekd import torch_file

    return torch_file.newest(sorted(Path(folder).glob(STATES)), check)


def resume_from(
    expdir: str | None, auto: bool, past_exp: str | None, check: Callable[[Path], dict[str, Any]], hint: str = ""
) -> Path | None:
    """The checkpoint that ``-a`` (in ``expdir``) or ``-e`` (a file or folder) means; None for a new experiment.

    Raises:
        EkdError: ``-e`` names nothing that can be continued; ``hint`` ends the message on an empty folder.
    """
    if auto and expdir is not None and Path(expdir).is_dir():
        found = newest(expdir, check)
        if found is not None:
            return found
    if past_exp is None:
        return None
    past = Path(past_exp)
    if not past.exists():
        # a *-best.ckpt is written only once dev is better than nothing at all: of an ASR at 100 % WER there is none
        there = sorted(path.name for path in past.parent.glob("*.ckpt")) if past.suffix == ".ckpt" else []
        hint = f"; that folder holds {', '.join(there)}" if there else ""
        raise EkdError(f"-e {past}: no such checkpoint or experiment folder{hint}")
    if past.is_file():
        check(past)
        return past
    found = newest(past, check)
    if found is None:
        raise EkdError(f"-e {past}: the folder holds no states-*.ckpt{hint}")
    return found


def check_unused(folder: str | Path) -> None:
    """A new experiment in a folder with an earlier one's checkpoints: the highest step of both would be "the newest".

    Raises:
        EkdError: there are some.
    """
    found = sorted(path.name for path in Path(folder).glob(STATES))
    if found:
        raise EkdError(
            f"{folder}: holds {found[-1]} of an earlier run; resume that run (-a), name another folder (-n, -p), "
            "or move the old one away"
        )


def check_last(path: Path, check: Callable[[Path], dict[str, Any]]) -> None:
    """Going back to a checkpoint, while later ones lie beside it that ``-a`` and ``-k FOLDER`` would take instead.

    Raises:
        EkdError: one of a higher "Step" is there.
    """
    step = int(check(path).get("Step") or 0)
    last = newest(path.parent, check)
    if last is None:
        return
    later = int(check(last).get("Step") or 0)
    if later > step:
        raise EkdError(
            f"-e {path}: is of step {step}, but its folder also holds {last.name} of step {later}, which would be "
            "taken as the newest; move the later checkpoints away first, or copy this one into a folder of its own"
        )


def check_folder(path: Path, expdir: str, flag: str) -> None:
    """A run goes on in its checkpoint's own folder, whatever ``-p`` or ``-n`` say.

    Args:
        path: the checkpoint.
        expdir: the folder that they name.
        flag: the one that was given, for the message.

    Raises:
        EkdError: they name another one.
    """
    if Path(expdir).resolve() != path.parent.resolve():
        raise EkdError(
            f"{flag}: {expdir} is not the folder of {path}, where a resumed run continues; omit {flag}, or copy the "
            "checkpoint there and give the copy to -e"
        )
