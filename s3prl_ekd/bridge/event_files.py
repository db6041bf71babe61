"""Tensorboard's files of a run: noted as its runner opens them, closed where an error or a signal ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_CLOSING = 3.0  # seconds for it after a signal
_FLUSHED_EVERY = 5  # seconds; tensorboardX's own two minutes of points would be lost where the system kills a run


class EventFiles:
    """The ``SummaryWriter`` objects that a runner makes.

    tensorboardX closes them when Python ends, by a thread that it starts for that, which Python 3.12 refuses: a
    traceback would follow the line on what was wrong.
    """

    def __init__(self) -> None:
        self._writers: list[Any] = []

    def noted(self, make_writer: Callable[..., Any]) -> Callable[..., Any]:
        """``SummaryWriter``, whose writers are noted and put their points on disk soon."""

        def make(*args: Any, **kwargs: Any) -> Any:
            self._writers.append(make_writer(*args, **{"flush_secs": _FLUSHED_EVERY} | kwargs))
            return self._writers[-1]

        return make

    def close(self, interrupted: bool) -> None:
        """Write them out and close them; in little time where a signal came.

        It can have hit tensorboardX while it held its queue: its thread never hears of the end then, and closing would
        wait for it for ever. Or in the middle of closing, which cannot be begun again.
        """
        if not interrupted:
            self._close()
            return
        closing = threading.Thread(target=self._close_what_can_be, daemon=True)
        closing.start()
        closing.join(_CLOSING)

    def _close(self) -> None:
        for writer in self._writers:
            writer.close()

    def _close_what_can_be(self) -> None:
        with suppress(Exception):
            self._close()
