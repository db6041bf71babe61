"""The folder of a target cache: its files, what it says of itself, who may write to it.

========================  ======================================================================================
file                      content
========================  ======================================================================================
``index.json``            format, fingerprint (all that the targets depend on) and what is in a row; written last, so
                          it is there for a whole cache only
``windows.npy``           int64 (n, 3): item, start, samples of each window
``targets.bin``           n rows of bytes, in the order of the windows (target_layout.py says what is in a row)
``sizes.bin``             int64 (utterances,): bytes of the audio file when its targets were stored; 0: not yet
``state.bin``             n bytes: 0 missing, 1 unreadable audio, 2 stored
``validation/``           the same again for the validation sets of the runs, where they have some
========================  ======================================================================================

Rows are read and stored by target_cache.py. Shapes: n windows.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from s3prl_ekd.data.target_layout import TargetLayout, TeacherPart
from s3prl_ekd.data.windows import Windows
from s3prl_ekd.errors import EkdError
from s3prl_ekd.file_lock import lock_file
from s3prl_ekd.whole_file import part_of, whole_file
from s3prl_ekd.writable import make_writable

FORMAT = 3
"""Raise it when windows, rows or what our encoders compute change beyond rounding: older caches are refused then."""
MISSING, UNREADABLE, STORED = 0, 1, 2  # a window only ever moves up
INDEX, WINDOWS, TARGETS, SIZES, STATE, LOCK = (
    "index.json", "windows.npy", "targets.bin", "sizes.bin", "state.bin", "lock"
)  # fmt: skip
VALIDATION = "validation"


@dataclass(frozen=True)
class Index:
    """What a cache says of itself."""

    fingerprint: dict[str, str | None]
    """All that the targets depend on (teachers/fingerprint.py)."""
    parts: list[TeacherPart]
    """What is in a row, of clips as long as the cache's windows."""


def row_sizes(windows: Windows, layout: TargetLayout) -> np.ndarray:
    """(n,) bytes of each window's row."""
    lengths, which = np.unique(windows.samples, return_inverse=True)
    return np.array([layout.bytes(length) for length in lengths.tolist()], dtype=np.int64)[which]


def audio_size(path: str) -> int:
    """Bytes of an audio file, 0 where there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def other_targets(held_out: bool) -> str:
    """What to do with a cache of other targets; of held-out speech, what is trained on has been found to fit before."""
    return (
        "delete only this folder (of held-out speech), and it will be filled again"
        if held_out
        else "name another folder"
    )


class CacheFolder:
    """A folder, and the configuration key that names it, for messages."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def wrong(self, what: str, file: str = "") -> EkdError:
        """The error of the folder, or of a file in it."""
        return EkdError(f"{self.key}: {self.path / file}: {what}")

    def read_index(self) -> Index | None:
        """What the cache says of itself; None where there is no cache yet.

        Raises:
            EkdError: unreadable, or the cache of another version.
        """
        try:
            content = json.loads((self.path / INDEX).read_text())
            found = content["format"]
            index = Index(content["fingerprint"], [_part(row) for row in content["rows"]]) if found == FORMAT else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.wrong(getattr(error, "strerror", None) or "not the index of a target cache", INDEX) from error
        if index is None:
            raise self.wrong(f"a cache of format {found}, this version's is {FORMAT}; give another folder")
        return index

    def lock(self) -> BinaryIO:
        """The lock of the one run that fills a cache: two would see rows change under them. Kept while it is open.

        Raises:
            EkdError: another run has it, or the folder is not writable.
        """
        try:
            return lock_file(self.path / LOCK)
        except BlockingIOError as error:
            raise self.wrong("another run is filling it; wait for it to end") from error
        except OSError as error:
            raise self.wrong(f"cannot be locked ({error.strerror})", LOCK) from error

    def is_complete(self) -> bool:
        """Whether the cache lacks nothing, before it is known to be the right one.

        Raises:
            EkdError: its file cannot be read.
        """
        try:
            return MISSING not in (self.path / STATE).read_bytes()
        except OSError as error:
            raise self.wrong(f"cannot be read ({error.strerror})", STATE) from error

    def make(self, size: int) -> None:
        """Make the folder of a new cache and see that it is ours alone and that ``size`` bytes fit.

        Raises:
            EkdError: it cannot be made or written to, holds other files, or its disk is too small.
        """
        make_writable(self.path, f"{self.key}: {self.path}")
        others = sorted(path.name for path in self.path.iterdir() if not _ours(path.name))
        if others:
            raise self.wrong(f"holds other files ({others[0]}); expected an empty or a new folder")
        self.check_space(size)

    def check_space(self, size: int) -> None:
        """Raise EkdError where ``size`` bytes are more than the disk has left."""
        free = shutil.disk_usage(self.path).free
        if size > free:
            raise self.wrong(f"the targets need {size / 1e9:.2f} GB, only {free / 1e9:.2f} GB are free there")

    def create(self, windows: Windows, layout: TargetLayout, fingerprint: Mapping[str, Any]) -> None:
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
        parts = {
            WINDOWS: table.getvalue(),
            SIZES: bytes(8 * (int(windows.items.max()) + 1)),
            STATE: bytes(len(windows)),
            INDEX: json.dumps(index, indent=2).encode() + b"\n",
        }
        try:
            with open(self.path / TARGETS, "wb") as file:
                file.truncate(int(row_sizes(windows, layout).sum()))  # sparse: takes up room as it is filled
            for name, content in parts.items():
                with whole_file(self.path / name, durable=True) as partial:
                    partial.write_bytes(content)
        except OSError as error:
            raise self.wrong(f"cannot be written ({error.strerror})") from error


def _part(row: Mapping[str, Any]) -> TeacherPart:
    frames = {int(samples): int(count) for samples, count in row["frames"].items()}
    layers = tuple(map(int, row["layers"]))
    return TeacherPart(str(row["teacher"]), layers, int(row["width"]), frames.__getitem__, tuple(frames))


_OURS = {INDEX, WINDOWS, TARGETS, SIZES, STATE, LOCK, VALIDATION}


def _ours(name: str) -> bool:
    """Of a target cache, or what a kill left of one of its files."""
    part = part_of(name)
    return (part[0] if part else name) in _OURS
