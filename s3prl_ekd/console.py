"""The terminal, as every command writes to it."""

from __future__ import annotations

from typing import Any

import rich.console


class Console(rich.console.Console):
    """rich's console, without its emoji: it would draw the ``:b:`` and ``:100:`` of a label or a path as pictures."""

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)
