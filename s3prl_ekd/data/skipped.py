"""Warnings about audio that cannot be read, shared by pretraining, its validation and ``s3prl-ekd targets``.

Leaving it out and counting it is for those who read the batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

NAMED = 10
"""As many are named: more have one cause (a disk that is away, a corpus half copied), and would hide all else."""


class SkippedAudio:
    """Names each file once, though it comes again with every epoch; the first :data:`NAMED` of them.

    Args:
        what: begins each line.
        say: takes a line.
    """

    def __init__(self, what: str = "skipped", say: Callable[[str], object] = logger.warning) -> None:
        self._what, self._say = what, say
        self._told: set[str] = set()
        self._ended = False

    def tell(self, reasons: Sequence[str]) -> None:
        """Say what of a batch's ``skipped`` is new."""
        for reason in reasons:
            if self._ended or reason in self._told:
                continue
            if len(self._told) == NAMED:
                self._ended = True
                self._say(f"[ekd] {self._what}: more than these {NAMED}; the others are not named")
                continue
            self._told.add(reason)
            self._say(f"[ekd] {self._what}: {reason}")
