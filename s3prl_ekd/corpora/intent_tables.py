"""Fluent Speech Commands' tables, which IC is trained and tested by: ``data/{train,valid,test}_data.csv``.

Read here for everybody: ``prepare`` and the launcher before s3prl.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from s3prl_ekd.errors import EkdError

SLOTS = ("action", "object", "location")
"""An intent is a value of each."""
TABLES = {"train": "train_data.csv", "dev": "valid_data.csv", "test": "test_data.csv"}
Intents = Mapping[str, str]
"""A line of a table: ``path``, below the corpus, and a value of each slot; further columns."""
_BEYOND = "cells beyond the header's"


def read_intents(root: Path) -> dict[str, list[Intents]]:
    """Split -> the lines of its table, in order.

    Raises:
        EkdError: a table is missing, empty or no text; a line has more cells than columns; a cell is empty, or is to
            s3prl another value than it says; a file is not there; dev or test have a value that train has not, and
            that s3prl has no number for.
    """
    numbered = {split: _read(root, root / "data" / name) for split, name in TABLES.items()}
    known = {slot: {line[slot] for _, line in numbered["train"]} for slot in SLOTS}
    for split, name in TABLES.items():
        for number, line in numbered[split]:
            foreign = next((slot for slot in SLOTS if line[slot] not in known[slot]), None)
            if foreign is not None:
                where = f"{root / 'data' / name}: line {number}"
                raise EkdError(f"{where}: {foreign} {line[foreign]!r} is none of {TABLES['train']}'s")
    return {split: [line for _, line in lines] for split, lines in numbered.items()}


def misread(values: Sequence[str]) -> tuple[int, object] | None:
    """Place of the first value in a column that s3prl reads as another, and that other one; None where there is none.

    s3prl reads the tables by pandas, to which "None" is a missing value, and a column of digits numbers.
    """
    import pandas  # here: it takes as long to import as everything else that prepare needs

    stream = io.StringIO()
    csv.writer(stream).writerows([["value"], *([value] for value in values)])
    stream.seek(0)
    found = pandas.read_csv(stream)["value"].tolist()
    return next(((place, found[place]) for place, value in enumerate(values) if found[place] != value), None)


def _read(root: Path, table: Path) -> list[tuple[int, Intents]]:
    """The lines of a table with their numbers in the file."""
    if not table.is_file():
        raise EkdError(f"{table}: no such table")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey=_BEYOND)
            lines: list[tuple[int, Intents]] = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EkdError(f"{table}: cannot be read as text ({error})") from error
    if not lines:
        raise EkdError(f"{table}: lists no utterance")
    for number, line in lines:
        if _BEYOND in line:
            columns = len(reader.fieldnames or ())
            raise EkdError(
                f"{table}: line {number}: more cells than the header's {columns} (a comma at its end, or one without "
                "quotation marks around its text)"
            )
        lacking = [column for column in ("path", *SLOTS) if not line.get(column)]
        if lacking:
            raise EkdError(f"{table}: line {number}: no {' and '.join(lacking)}")
        if not (root / line["path"]).is_file():
            raise EkdError(f"{table}: line {number}: {line['path']}: no such file below {root}")
    for slot in SLOTS:
        wrong = misread([line[slot] for _, line in lines])
        if wrong is not None:
            place, found = wrong
            number, line = lines[place]
            raise EkdError(
                f"{table}: line {number}: {slot} {line[slot]!r}, which s3prl reads as {found!r}; expected words"
            )
    return lines
