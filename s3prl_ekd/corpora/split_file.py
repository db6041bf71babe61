"""VoxCeleb1's split file, which SID is trained and tested by: lines ``1|2|3 idXXXXX/video/clip.wav``.

Read here for everybody: ``prepare``, the launcher before s3prl, the evaluation's chance level.
"""

from __future__ import annotations

from pathlib import Path

from s3prl_ekd.errors import EkdError

FIRST_ID = 10_001  # s3prl's label of a speaker is the number behind "id" minus this
MAX_SPEAKERS = 1_251  # outputs of s3prl's SID head, fixed in its voxceleb1/dataset.py
PARTS = {"train": 1, "dev": 2, "test": 3}
_FORM = "expected '1|2|3 idXXXXX/video/clip.wav'"


def wav_folders(root: Path) -> list[Path]:
    """The ``*/wav`` folders of a corpus, below which the paths of its split file lie; empty where it has none."""
    return sorted(folder for folder in root.glob("*/wav") if folder.is_dir())


def read_split_file(file: Path) -> list[tuple[int, str]]:
    """(part, path) of every line, in the file's order; a part is a value of :data:`PARTS`.

    Raises:
        EkdError: unreadable or empty, a malformed or repeated line, a speaker that s3prl has no label for.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()  # Windows editors write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise EkdError(f"{file}: cannot be read as a split file ({error})") from error
    entries: list[tuple[int, str]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        part, _, path = line.strip().partition(" ")
        speaker = path.split("/")[0]
        # s3prl splits lines at blanks, so that a path cannot hold one
        if part not in ("1", "2", "3") or path.count("/") != 2 or " " in path or not speaker[2:].isdecimal():
            raise EkdError(f"{file}:{number}: {line.strip()!r}: {_FORM}")
        if not FIRST_ID <= int(speaker[2:]) < FIRST_ID + MAX_SPEAKERS:
            raise EkdError(f"{file}:{number}: speaker {speaker}; s3prl's labels cover id10001 to id11251")
        if path in seen:
            raise EkdError(f"{file}:{number}: {path} is listed twice, first in line {seen[path]}")
        seen[path] = number
        entries.append((int(part), path))
    if not entries:
        raise EkdError(f"{file}: no lines; {_FORM}")
    return entries


def speaker_of(path: str) -> str:
    """``idXXXXX`` of a path of the split file."""
    return path.partition("/")[0]
