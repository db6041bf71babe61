"""Teacher targets on disk: a folder with one row of numbers for each window, filled as training goes along.

========================  ======================================================================================
file                      content
========================  ======================================================================================
``index.json``            format, fingerprint (all that the targets depend on) and what is in a row; written last, so
                          it is there for a whole cache only
``windows.npy``           int64 (n, 3): item, start, samples of each window
``targets.bin``           n rows of bytes, in the order of the windows (target_layout.py says what is in a row)
``state.bin``             n bytes: 0 missing, 1 unreadable audio, 2 stored
========================  ======================================================================================

A row counts as stored only after its bytes are on the disk (fsync), so that a kill, or the end of the power, loses the
last seconds of filling and nothing else. Rows are read with ``pread``, not mapped: a full or broken disk is then an
error that can be told, and no SIGBUS. What teachers are is not known here: teachers/cached.py.

Shapes: n windows, B clips, R numbers a row.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from s3prl_ekd.config import DataConfig
from s3prl_ekd.data.batches import Batch
from s3prl_ekd.data.target_layout import TargetLayout, TeacherPart
from s3prl_ekd.data.windows import WindowPlan, Windows
from s3prl_ekd.errors import EkdError
from s3prl_ekd.whole_file import whole_file

FORMAT = 2  # raise it when windows, rows or what our encoders compute change: older caches are refused then
MISSING, UNREADABLE, STORED = 0, 1, 2  # a window only ever moves up
INDEX, WINDOWS, TARGETS, STATE, LOCK = "index.json", "windows.npy", "targets.bin", "state.bin", "lock"
FLUSH_SECONDS = 10.0  # an fsync costs up to a second; a kill costs the teachers' work of this time


@dataclass(frozen=True)
class Index:
    """What a cache says of itself."""

    fingerprint: dict[str, str | None]
    """All that the targets depend on (teachers/fingerprint.py)."""
    parts: list[TeacherPart]
    """What is in a row, of clips as long as the cache's windows."""


class TargetCache:
    """An open cache. Copies of it in worker processes read; the main process also stores.

    Args:
        folder: of a cache that is there; :func:`create` makes one.
        layout: what a row holds.
        key: the configuration key, for messages.
        lock: of :func:`hold`, where it was taken already.
        wanted: what is read of each row: teachers and layers of ``layout`` in any order; None: all of it.

    Raises:
        EkdError: files are missing, damaged or not to be opened, another run is filling it, or what is missing does
            not fit on the disk.
    """

    def __init__(
        self,
        folder: Path,
        layout: TargetLayout,
        key: str,
        lock: BinaryIO | None = None,
        wanted: TargetLayout | None = None,
    ) -> None:
        self.folder, self.layout, self.key = folder, layout, key
        self.wanted = wanted or layout
        try:
            columns = np.load(folder / WINDOWS, allow_pickle=False)
            self.state = np.frombuffer((folder / STATE).read_bytes(), dtype=np.uint8).copy()
            size = (folder / TARGETS).stat().st_size
        except (OSError, ValueError) as error:
            raise EkdError(f"{key}: {folder}: damaged ({error}); delete it to fill it anew") from error
        self.windows = Windows(*columns.T)
        sizes = row_sizes(self.windows, layout)
        self._offsets = np.cumsum(sizes) - sizes  # first byte of each row
        if len(self.state) != len(columns) or size != sizes.sum():
            raise EkdError(f"{key}: {folder}: damaged (files of the wrong size); delete it to fill it anew")
        self._pending: list[int] = []  # rows written, but not yet certain to be on the disk
        self._flushed = time.monotonic()
        self._files: dict[str, BinaryIO] = {}
        self._lock = lock
        if not self.complete:
            self._lock = lock or hold(folder, key)
            check_space(folder, int(sizes[self.state == MISSING].sum()), key)

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are started afresh: they open the files themselves."""
        return self.__dict__ | {"_files": {}, "_pending": [], "_lock": None}

    @property
    def complete(self) -> bool:
        """No window is waiting for its turn."""
        return not (self.state == MISSING).any()

    @property
    def stores(self) -> bool:
        """All of a row is wanted, so that rows can be stored too."""
        return self.wanted is self.layout

    def progress(self) -> str:
        """How far it is filled, as a line for people."""
        unread = int((self.state == UNREADABLE).sum())
        text = f"targets of {int((self.state == STORED).sum())} of {len(self.windows)} windows are in {self.folder}"
        return text + (f"; the audio of {unread} could not be read" if unread else "")

    def plan(self, config: DataConfig) -> WindowPlan:
        """The batches of a run on this cache."""
        return WindowPlan(self.windows, config)

    def stored(self, windows: Sequence[int]) -> np.ndarray:
        """bool (B,): whose targets are there."""
        rows = list(windows)
        if (self.state[rows] != STORED).any():  # in a worker: perhaps the main process has stored them since
            seen = self._reading(STATE, lambda file: os.pread(file, len(self.state), 0))
            self.state = np.maximum(self.state, np.frombuffer(seen, dtype=np.uint8))
        return self.state[rows] == STORED

    def attach(self, batch: Batch) -> None:
        """Give a batch its targets if all are there; what the teachers would hear is dropped then."""
        if self.stored(batch.windows).all():
            batch.targets = self.read(batch.windows)
            batch.distinct_teacher_wave = None

    def read(self, windows: Sequence[int]) -> Tensor:
        """(B, R) targets of windows of one length, in the cache's precision; R as in ``wanted``.

        Raises:
            EkdError: the file cannot be read.
        """
        samples, each = int(self.windows.samples[windows[0]]), self.layout.dtype.itemsize
        columns = [(each * first, each * last) for first, last in self.layout.columns(self.wanted, samples)]
        rows = torch.empty(len(windows), self.wanted.bytes(samples), dtype=torch.uint8)
        for window, row in zip(windows, rows.numpy(), strict=True):
            rest = memoryview(row)
            for first, last in columns:
                self._read_into(rest[: last - first], int(self._offsets[window]) + first)
                rest = rest[last - first :]
        return rows.view(self.layout.dtype)

    def store(self, windows: Sequence[int], rows: Tensor) -> None:
        """Write targets (B, R) of windows of one length; they count from the next flush on.

        Raises:
            EkdError: the disk is full or not writable.
        """
        for window, row in zip(windows, rows.contiguous().view(torch.uint8).numpy(), strict=True):
            self._write(TARGETS, row, int(self._offsets[window]))
            self.state[window] = STORED
            self._pending.append(window)
        if self.complete or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def mark_unreadable(self, windows: Sequence[int]) -> None:
        """Nothing to wait for: the audio of these windows could not be read. (It may be mended later.)"""
        for window in windows:
            if self.state[window] == MISSING:
                self.state[window] = UNREADABLE
                self._pending.append(window)
        if self.complete:
            self.flush()

    def flush(self) -> None:
        """See to it that what was stored is found again, whatever happens to the process or the machine."""
        if not self._pending:
            return
        self._sync(TARGETS)
        for window in self._pending:
            self._write(STATE, self.state[window].tobytes(), window)
        self._sync(STATE)
        self._pending.clear()
        self._flushed = time.monotonic()

    # ---------------------------------------------------------------------------------------------------- inside

    def _file(self, name: str, mode: str = "rb") -> int:
        """A file descriptor, opened at its first use: a complete cache is only read, so its disk may be read-only."""
        if f"{name} {mode}" not in self._files:
            self._files[f"{name} {mode}"] = open(self.folder / name, mode, buffering=0)
        return self._files[f"{name} {mode}"].fileno()

    def _read_into(self, left: memoryview, offset: int) -> None:
        """Fill ``left`` with the bytes of the targets' file from ``offset`` on."""
        while left:
            done = self._reading(TARGETS, lambda file: os.preadv(file, [left], offset))  # noqa: B023
            if not done:
                raise EkdError(f"{self.key}: {self.folder / TARGETS}: cut short; delete the folder to fill it anew")
            offset, left = offset + done, left[done:]

    def _reading(self, name: str, read: Any) -> Any:
        try:
            return read(self._file(name))
        except OSError as error:
            raise EkdError(f"{self.key}: {self.folder / name}: cannot be read ({error.strerror})") from error

    def _write(self, name: str, content: bytes | np.ndarray, offset: int) -> None:
        left = memoryview(content)
        try:
            file = self._file(name, "r+b")
            while left:
                done = os.pwrite(file, left, offset)
                offset, left = offset + done, left[done:]
        except OSError as error:
            raise self._unwritable(name, error) from error

    def _sync(self, name: str) -> None:
        try:
            os.fsync(self._file(name, "r+b"))
        except OSError as error:
            raise self._unwritable(name, error) from error

    def _unwritable(self, name: str, error: OSError) -> EkdError:
        return EkdError(
            f"{self.key}: {self.folder / name}: cannot be written ({error.strerror}); what was stored before is kept"
        )


def row_sizes(windows: Windows, layout: TargetLayout) -> np.ndarray:
    """(n,) bytes of each window's row."""
    lengths, which = np.unique(windows.samples, return_inverse=True)
    return np.array([layout.bytes(length) for length in lengths.tolist()], dtype=np.int64)[which]


def read_index(folder: Path, key: str) -> Index | None:
    """What the cache in a folder says of itself; None where there is no cache yet.

    Raises:
        EkdError: unreadable, or the cache of another version.
    """
    try:
        content = json.loads((folder / INDEX).read_text())
        found = content["format"]
        index = Index(content["fingerprint"], [_part(row) for row in content["rows"]]) if found == FORMAT else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "not the index of a target cache"
        raise EkdError(f"{key}: {folder / INDEX}: {reason}") from error
    if index is None:
        raise EkdError(f"{key}: {folder}: a cache of format {found}, this version's is {FORMAT}; give another folder")
    return index


def _part(row: Mapping[str, Any]) -> TeacherPart:
    frames = {int(samples): int(count) for samples, count in row["frames"].items()}
    layers = tuple(map(int, row["layers"]))
    return TeacherPart(str(row["teacher"]), layers, int(row["width"]), frames.__getitem__, tuple(frames))


def hold(folder: Path, key: str) -> BinaryIO:
    """The lock of the one run that fills a cache: two would see rows change under them. Kept while the file is open.

    A POSIX lock: data workers do not inherit it, so that none which outlives a killed run can keep it.

    Raises:
        EkdError: another run has it, or the folder is not writable.
    """
    try:
        file = open(folder / LOCK, "wb", buffering=0)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN) and (folder / LOCK).exists():
            raise EkdError(f"{key}: {folder}: another run is filling it; wait for it to end") from error
        raise EkdError(f"{key}: {folder / LOCK}: cannot be locked ({error.strerror})") from error
    return file


def is_complete(folder: Path, key: str) -> bool:
    """Whether the cache in a folder lacks nothing, before it is known to be the right one.

    Raises:
        EkdError: its file cannot be read.
    """
    try:
        return MISSING not in (folder / STATE).read_bytes()
    except OSError as error:
        raise EkdError(f"{key}: {folder / STATE}: cannot be read ({error.strerror})") from error


def check_folder(folder: Path, size: int, key: str) -> None:
    """Make the folder of a new cache and see that it is ours alone and that ``size`` bytes fit.

    Raises:
        EkdError: it cannot be made or written to, holds other files, or its disk is too small.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(path.name for path in folder.iterdir() if not _ours(path.name))
    except OSError as error:
        raise EkdError(f"{key}: {folder}: cannot be written ({error.strerror})") from error
    if others:
        raise EkdError(f"{key}: {folder}: holds other files ({others[0]}); expected an empty or a new folder")
    check_space(folder, size, key)


def check_space(folder: Path, size: int, key: str) -> None:
    """Raise EkdError where ``size`` bytes are more than the folder's disk has left."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise EkdError(
            f"{key}: {folder}: the targets need {size / 1e9:.2f} GB, only {free / 1e9:.2f} GB are free there"
        )


def create(folder: Path, windows: Windows, layout: TargetLayout, fingerprint: Mapping[str, Any], key: str) -> None:
    """Write an empty cache: every row missing. The index comes last: a half-made cache is none.

    Raises:
        EkdError: the disk is full or not writable.
    """
    table = BytesIO()
    np.save(table, np.stack([windows.items, windows.starts, windows.samples], axis=1))
    lengths = np.unique(windows.samples).tolist()
    rows = [
        {
            "teacher": part.name,
            "layers": list(part.layers),
            "width": part.width,
            "frames": {str(samples): part.frames(samples) for samples in lengths},
        }
        for part in layout.parts
    ]
    index = {"format": FORMAT, "fingerprint": dict(fingerprint), "rows": rows}
    try:
        with open(folder / TARGETS, "wb") as file:
            file.truncate(int(row_sizes(windows, layout).sum()))  # sparse: takes up room as it is filled
        parts = {
            WINDOWS: table.getvalue(),
            STATE: bytes(len(windows)),
            INDEX: json.dumps(index, indent=2).encode() + b"\n",
        }
        for name, content in parts.items():
            with whole_file(folder / name, durable=True) as partial:
                partial.write_bytes(content)
    except OSError as error:
        raise EkdError(f"{key}: {folder}: cannot be written ({error.strerror})") from error


_OURS = {INDEX, WINDOWS, TARGETS, STATE, LOCK}


def _ours(name: str) -> bool:
    """Of a target cache, or what a kill left of one of its files."""
    return re.sub(r"^\.(.+)\.tmp-\d+$", r"\1", name) in _OURS
