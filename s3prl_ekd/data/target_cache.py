"""Teacher targets on disk: a folder with one row of numbers for each window, filled as training goes along.

What files there are, and who may write: target_folder.py. A row counts as stored only after its bytes are on the disk
(fsync), so that a kill, or the end of the power, loses the last seconds of filling and nothing else. Rows are read with
``pread``, not mapped: a full or broken disk is then an error that can be told, and no SIGBUS. What teachers are is not
known here: teachers/cached.py.

Shapes: n windows, B clips, R numbers a row.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from s3prl_ekd.config import DataConfig
from s3prl_ekd.data.batches import Batch
from s3prl_ekd.data.rows import batch_memory
from s3prl_ekd.data.target_folder import (
    MISSING,
    SIZES,
    STATE,
    STORED,
    TARGETS,
    UNREADABLE,
    WINDOWS,
    CacheFolder,
    audio_size,
    other_targets,
    row_sizes,
)
from s3prl_ekd.data.target_layout import TargetLayout
from s3prl_ekd.data.windows import WindowPlan, Windows
from s3prl_ekd.errors import EkdError

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 10.0  # an fsync costs up to a second; a kill costs the teachers' work of this time


class TargetCache:
    """An open cache. Copies of it in worker processes read; the main process also stores.

    Args:
        place: where a cache is.
        layout: what a row holds.
        paths: the audio file of each utterance, in the order of the length table.
        lock: of ``place``, where it was taken already.
        wanted: what is read of each row: teachers and layers of ``layout`` in any order; None: all of it.
        held_out: it is that of held-out speech.

    Raises:
        EkdError: files are missing, damaged or not to be opened, an audio file has another size than when its targets
            were stored, another run is filling it, or what is missing does not fit on the disk.
    """

    def __init__(
        self,
        place: CacheFolder,
        layout: TargetLayout,
        paths: Sequence[str],
        lock: BinaryIO | None = None,
        wanted: TargetLayout | None = None,
        held_out: bool = False,
    ) -> None:
        self.place, self.layout, self.paths = place, layout, paths
        folder = place.path
        self.held_out = held_out
        self.wanted = wanted or layout
        try:
            columns = np.load(folder / WINDOWS, allow_pickle=False)
            self.state = np.frombuffer((folder / STATE).read_bytes(), dtype=np.uint8).copy()
            self.sizes = np.frombuffer((folder / SIZES).read_bytes(), dtype=np.int64).copy()
            size = (folder / TARGETS).stat().st_size
        except (OSError, ValueError, EOFError) as error:
            raise place.wrong(f"damaged ({error}); delete it, and it will be filled again") from error
        self.windows = Windows(*columns.T)
        sizes = row_sizes(self.windows, layout)
        self._offsets = np.cumsum(sizes) - sizes  # first byte of each row
        if len(self.state) != len(columns) or size != sizes.sum() or len(self.sizes) != len(paths):
            raise place.wrong("damaged (files of the wrong size); delete it, and it will be filled again")
        self._check_audio()
        self._pending: list[int] = []  # rows written, but not yet certain to be on the disk
        self._flushed = time.monotonic()
        self._files: dict[tuple[str, str], IO[bytes]] = {}  # by name and mode
        self._lock = lock
        self._read_only = False  # found out when there is something to store
        if not self.complete:
            self._lock = lock or place.lock()
            place.check_space(int(sizes[self.state == MISSING].sum()))

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are started afresh: they open the files themselves."""
        return self.__dict__ | {"_files": {}, "_pending": [], "_lock": None, "paths": ()}

    @property
    def complete(self) -> bool:
        """No window is waiting for its turn."""
        return not (self.state == MISSING).any()

    @property
    def full(self) -> bool:
        """Every window has its targets."""
        return bool((self.state == STORED).all())

    @property
    def stores(self) -> bool:
        """All of a row is wanted, so that rows can be stored too."""
        return self.wanted is self.layout

    def writable(self) -> bool:
        """Whether rows may be stored. A cache that was full when it was opened is locked only now, if it can be."""
        if self._lock is None and not self._read_only:
            try:
                self._lock = self.place.lock()
            except EkdError as error:
                logger.warning("[ekd] %s: targets of audio that became readable are not stored", error)
                self._read_only = True
        return self._lock is not None

    def progress(self) -> str:
        """How far it is filled, as a line for people."""
        unread = int((self.state == UNREADABLE).sum())
        text = f"targets of {int((self.state == STORED).sum())} of {len(self.windows)} windows are in {self.place.path}"
        return text + (f"; the audio of {unread} could not be read" if unread else "")

    def plan(self, config: DataConfig) -> WindowPlan:
        """The batches of a run on this cache."""
        return WindowPlan(self.windows, config)

    def stored(self, windows: Sequence[int]) -> np.ndarray:
        """bool (B,): whose targets are there."""
        rows = list(windows)
        if (self.state[rows] != STORED).any():  # in a worker: perhaps the main process has stored them since
            with self._file(STATE) as file:
                seen = os.pread(file, len(self.state), 0)
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
            EkdError: the file cannot be read, or a worker has no room for them.
        """
        samples, each = int(self.windows.samples[windows[0]]), self.layout.dtype.itemsize
        columns = [(each * first, each * last) for first, last in self.layout.columns(self.wanted, samples)]
        rows = batch_memory((len(windows), self.wanted.bytes(samples)), torch.uint8)
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
            self._write(TARGETS, row.data, int(self._offsets[window]))
            self.state[window] = STORED
            item = self.windows.items[window]
            self.sizes[item] = audio_size(self.paths[item])
            self._pending.append(window)
        if self.complete or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def mark_unreadable(self, windows: Sequence[int]) -> None:
        """Nothing to wait for: the audio of these windows could not be read. (It may be repaired later.)"""
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
        for item in self.windows.items[self._pending].tolist():
            self._write(SIZES, self.sizes[item].tobytes(), self.sizes.itemsize * item)
        self._sync(SIZES)
        for window in self._pending:
            self._write(STATE, self.state[window].tobytes(), window)
        self._sync(STATE)
        self._pending.clear()
        self._flushed = time.monotonic()

    # ---------------------------------------------------------------------------------------------------- inside

    def _check_audio(self) -> None:
        """Refuse audio that was replaced since its targets were stored; what has no targets yet may be repaired."""
        stored = np.unique(self.windows.items[self.state == STORED]).tolist()
        now = {item: audio_size(self.paths[item]) for item in stored if self.sizes[item]}
        others = [item for item, size in now.items() if size and size != self.sizes[item]]  # size 0: is skipped
        if others:
            first = others[0]
            raise self.place.wrong(
                f"{self.paths[first]} has another size than when its targets were stored ({self.sizes[first]} bytes "
                f"then, {now[first]} now; files like it: {len(others)}); put back what was there, or "
                f"{other_targets(self.held_out)}"
            )

    @contextmanager
    def _file(self, name: str, write: bool = False) -> Iterator[int]:
        """The descriptor of a file, opened at its first use: a complete cache is only read, its disk may be read-only.

        Raises:
            EkdError: for each OSError of the block.
        """
        mode = "r+b" if write else "rb"
        try:
            if (name, mode) not in self._files:
                self._files[name, mode] = open(self.place.path / name, mode, buffering=0)
            yield self._files[name, mode].fileno()
        except OSError as error:
            what, kept = ("written", "; what was stored before is kept") if write else ("read", "")
            raise self.place.wrong(f"cannot be {what} ({error.strerror}){kept}", name) from error

    def _read_into(self, left: memoryview, offset: int) -> None:
        """Fill ``left`` with the bytes of the targets' file from ``offset`` on."""
        with self._file(TARGETS) as file:
            while left:
                done = os.preadv(file, [left], offset)
                if not done:
                    raise self.place.wrong("cut short; delete the folder, and it will be filled again", TARGETS)
                offset, left = offset + done, left[done:]

    def _write(self, name: str, content: bytes | memoryview, offset: int) -> None:
        left = memoryview(content)
        with self._file(name, write=True) as file:
            while left:
                done = os.pwrite(file, left, offset)
                offset, left = offset + done, left[done:]

    def _sync(self, name: str) -> None:
        with self._file(name, write=True) as file:
            os.fsync(file)
