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


def read_intents(root: Path) -> dict[str, list[Intents]]:
    """Split -> the lines of its table, in order.

    Raises:
        EkdError: a table is missing, empty or no text; a cell is empty, or is to s3prl another value than it says; a
            file is not there; dev or test have a value that train has not, and that s3prl has no number for.
    """
    lines = {split: _read(root, root / "data" / name) for split, name in TABLES.items()}
    known = {slot: {line[slot] for line in lines["train"]} for slot in SLOTS}
    for split, name in TABLES.items():
        for number, line in enumerate(lines[split], start=2):
            foreign = next((slot for slot in SLOTS if line[slot] not in known[slot]), None)
            if foreign is not None:
                where = f"{root / 'data' / name}: line {number}"
                raise EkdError(f"{where}: {foreign} {line[foreign]!r} is none of {TABLES['train']}'s")
    return lines


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


def _read(root: Path, table: Path) -> list[Intents]:
    if not table.is_file():
        raise EkdError(f"{table}: no such table")
    try:
        lines: list[Intents] = list(csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EkdError(f"{table}: cannot be read as text ({error})") from error
    if not lines:
        raise EkdError(f"{table}: lists no utterance")
    for number, line in enumerate(lines, start=2):
        lacking = [column for column in ("path", *SLOTS) if not line.get(column)]
        if lacking:
            raise EkdError(f"{table}: line {number}: no {' and '.join(lacking)}")
        if not (root / line["path"]).is_file():
            raise EkdError(f"{table}: line {number}: {line['path']}: no such file below {root}")
    for slot in SLOTS:
        wrong = misread([line[slot] for line in lines])
        if wrong is not None:
            place, found = wrong
            raise EkdError(
                f"{table}: line {place + 2}: {slot} {lines[place][slot]!r}, which s3prl reads as {found!r}; "
                "expected words"
            )
    return lines
