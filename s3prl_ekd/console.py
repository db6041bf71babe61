"""The terminal, as every command writes to it."""

from __future__ import annotations

from typing import Any

import rich.console
from rich.measure import Measurement
from rich.table import Table

_WIDE = 10_000  # columns: more than any table needs


class Console(rich.console.Console):
    """rich's console, without its emoji: it would draw the ``:b:`` and ``:100:`` of a label or a path as pictures."""

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def print_table(self, table: Table) -> None:
        """Print a table whole; its names (the column with a ``min_width``) fold where a terminal is narrow.

        Where it is too narrow for that too, lines go on beyond its edge: rich would take the missing width off the
        names, to nothing, and then off the numbers. In a file, whose 80 columns are nobody's, no name folds.
        """
        for column in table.columns:
            column.width = column.min_width if self.is_terminal else None
        least = Measurement.get(self, self.options.update(max_width=_WIDE), table).maximum
        for column in table.columns:
            column.width = None
        table.width = least if least > self.width else None
        self.print(table, crop=False)
