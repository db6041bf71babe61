"""Tables of a corpus as text."""

from __future__ import annotations

from pathlib import Path

from s3prl_ekd.errors import EkdError


def lines_of(table: Path) -> list[str]:
    """The lines of a text file, without their ends.

    Raises:
        EkdError: it cannot be read as text.
    """
    try:
        return table.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EkdError(f"{table}: cannot be read as text ({error})") from error
