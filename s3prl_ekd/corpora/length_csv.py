"""The length CSVs of s3prl's bucket datasets, written and read back."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from s3prl_ekd.errors import EkdError


def write_lengths(file: Path, lengths: Sequence[tuple[str, int]]) -> None:
    """Write a length CSV as s3prl's ``preprocess/generate_len_for_bucket.py`` does.

    Columns: an unnamed index, ``file_path`` relative to the audio root, ``length`` in samples at 16 kHz, ``label``
    (empty); longest first.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["", "file_path", "length", "label"])
        for index, (path, samples) in enumerate(sorted(lengths, key=lambda item: (-item[1], item[0]))):
            writer.writerow([index, path, samples, ""])


def read_lengths(file: Path) -> list[tuple[str, int]]:
    """The rows of a length CSV: (file_path, length in samples at 16 kHz)."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            return [(row["file_path"], int(row["length"])) for row in csv.DictReader(stream)]
    except (KeyError, TypeError, ValueError) as error:
        raise EkdError(f"{file}: not a length CSV; expected columns file_path, length") from error
