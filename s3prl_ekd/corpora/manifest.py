"""Reading a ``manifest.tsv``: rows with the line they came from, where their audio is, and which tasks they can serve.

A manifest is tab-separated text with a header. Columns by task: pr, asr: ``path split speaker text`` (and ``phones``
where known); sid: ``path split speaker``; er: ``path fold speaker emotion``; ks: ``path split keyword``; ic: ``path
split action object location``; pretrain: ``path`` (and ``split``: dev is held out, test left out). Further columns are
ignored. Opening the audio itself is ``probe.py``; laying files out for s3prl is ``layout_*.py``.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.spelling import repeated
from s3prl_ekd.user_paths import expanded

REQUIRED = {
    "pr": ("path", "split", "speaker", "text"),
    "asr": ("path", "split", "speaker", "text"),
    "sid": ("path", "split", "speaker"),
    "er": ("path", "fold", "speaker", "emotion"),
    "ks": ("path", "split", "keyword"),
    "ic": ("path", "split", "action", "object", "location"),
    "pretrain": ("path",),
}
TASKS = tuple(REQUIRED)
SPLITS = ("train", "dev", "test")
_BEYOND = "cells beyond the header's"
SPLIT_ALIASES = {"valid": "dev", "val": "dev", "validation": "dev", "training": "train", "testing": "test"}


@dataclass(frozen=True)
class Row:
    """One line of a manifest. Columns that the manifest lacks are empty strings.

    ``line``: its line number in the file (the header is line 1), 0 where it stands in none; ``path``: as written there;
    ``audio``: absolute path.
    """

    line: int
    path: str
    audio: Path
    speaker: str = ""
    split: str = ""
    text: str = ""
    phones: str = ""
    fold: str = ""
    emotion: str = ""
    keyword: str = ""
    action: str = ""
    object: str = ""
    location: str = ""


@dataclass(frozen=True)
class Manifest:
    """A manifest's file, its column names and its rows, in file order."""

    file: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """What a set made from it is called: the name of the folder it lies in."""
        return self.file.resolve().parent.name or "set"

    def where(self, row: Row) -> str:
        return f"{self.file}:{row.line}" if row.line else str(row.audio)


def read_manifest(file: str | Path, root: str | Path | None = None) -> Manifest:
    """Read a manifest and find each row's audio (its path only; the file may be missing).

    Args:
        file: the manifest.
        root: folder that ``path`` is relative to. Without it the manifest's own folder and that folder's parent are
            tried, whichever holds the file; absolute paths are taken as they are.

    Raises:
        EkdError: no such file, not a TSV with a ``path`` column, a column twice, no rows, a row with an empty path or
            with more cells than the header.
    """
    file = Path(file)
    if file.is_dir():
        file = file / "manifest.tsv"
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            # QUOTE_NONE: transcripts may hold a lone quotation mark, which is text here.
            reader = csv.DictReader(stream, restkey=_BEYOND, delimiter="\t", quoting=csv.QUOTE_NONE)
            columns = tuple(name.strip() for name in reader.fieldnames or ())
            reader.fieldnames = list(columns)
            if "path" not in columns:
                raise EkdError(f"{file}:1: no column 'path' in the header; expected tab-separated column names")
            double = repeated([name for name in columns if name in Row.__annotations__])
            if double is not None:
                raise EkdError(f"{file}:1: column {double!r} appears twice")
            if "kind" in columns and "speaker" not in columns:
                raise EkdError(f"{file}:1: a list of noises (column 'kind'), not of speech")
            bases = [Path(root)] if root else [file.resolve().parent, file.resolve().parent.parent]
            rows = tuple(_row(file, reader.line_num, cells, bases) for cells in reader)  # blank lines count
    except FileNotFoundError as error:
        raise EkdError(f"{file}: no such manifest") from error
    except IsADirectoryError as error:
        raise EkdError(f"{file}: a folder; expected a manifest.tsv") from error
    except UnicodeDecodeError as error:
        raise EkdError(f"{file}: not UTF-8 text ({error.reason}); expected a tab-separated manifest") from error
    except csv.Error as error:  # a cell of more than 128 kB
        raise EkdError(f"{file}: cannot be read as a tab-separated manifest ({error})") from error
    if not rows:
        raise EkdError(f"{file}: no rows below the header")
    return Manifest(file, columns, rows)


def _row(file: Path, number: int, cells: Mapping[str, Any], bases: list[Path]) -> Row:
    def cell(name: str) -> str:
        return (cells.get(name) or "").strip()

    beyond = next((text for text in cells.get(_BEYOND, ()) if text.strip()), None)
    if beyond is not None:
        raise EkdError(f"{file}:{number}: {beyond!r} is beyond the header's columns; is there a tab in a text?")
    path = cell("path")
    if not path:
        raise EkdError(f"{file}:{number}: path is empty")
    if "\0" in path:
        raise EkdError(f"{file}:{number}: path {path!r}: not a possible file name")
    audio = expanded(path)
    if not audio.is_absolute():
        # A missing file is reported under the first base, next to the line it stands in.
        found = next((base / audio for base in bases if (base / audio).is_file()), None)
        audio = (found or bases[0] / audio).absolute()
    split = cell("split").lower()
    return Row(
        line=number,
        path=path,
        audio=audio,
        speaker=cell("speaker"),
        split=SPLIT_ALIASES.get(split, split),
        text=cell("text"),
        phones=cell("phones"),
        fold=cell("fold"),
        emotion=cell("emotion"),
        keyword=cell("keyword"),
        action=cell("action"),
        object=cell("object"),
        location=cell("location"),
    )


def choose_tasks(manifest: Manifest) -> tuple[tuple[str, ...], str]:
    """Which tasks a manifest is for, judged by its columns and speakers, and why in a few words."""
    columns = set(manifest.columns)
    if {"emotion", "fold", "speaker"} <= columns:
        return ("er",), "it has columns emotion and fold"
    if {"split", "keyword"} <= columns:
        return ("ks",), "it has columns keyword and split"
    if {"split", "action", "object", "location"} <= columns:
        return ("ic",), "it has columns action, object, location and split"
    if {"split", "speaker"} <= columns and "phones" not in columns:
        speakers = {split: {row.speaker for row in manifest.rows if row.split == split} for split in SPLITS}
        if speakers["test"] and speakers["test"] <= speakers["train"] and len(speakers["train"]) > 1:
            return ("sid",), "every test speaker is also in train"
    if {"text", "split", "speaker"} <= columns:
        return ("pr", "asr"), "it has columns text and split"
    return ("pretrain",), "it has neither emotion and fold nor text and split"


def check_tasks(manifest: Manifest, tasks: Sequence[str]) -> None:
    """Raise when the manifest lacks a column, a value or a split that one of the tasks needs."""
    for task in tasks:
        missing = [name for name in REQUIRED[task] if name not in manifest.columns]
        if missing:
            raise EkdError(
                f"{manifest.file}:1: {task} needs column {', '.join(missing)}; it has {', '.join(manifest.columns)}"
            )
        for row in manifest.rows:
            empty = [name for name in REQUIRED[task] if name != "text" and not getattr(row, name)]
            if empty:
                raise EkdError(f"{manifest.where(row)}: {empty[0]} is empty; task {task} needs it")
        if "split" in REQUIRED[task]:
            _check_splits(manifest, task)


def _check_splits(manifest: Manifest, task: str) -> None:
    for row in manifest.rows:
        if row.split not in SPLITS:
            raise EkdError(f"{manifest.where(row)}: split {row.split!r}; expected one of {', '.join(SPLITS)}")
    missing = [split for split in SPLITS if not any(row.split == split for row in manifest.rows)]
    if missing:
        raise EkdError(
            f"{manifest.file}: no utterance in split {', '.join(missing)}; task {task} needs {', '.join(SPLITS)}"
        )
