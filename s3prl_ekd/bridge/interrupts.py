"""Ending a run: Ctrl-C, SIGTERM and user errors become one line on stderr and an exit status.

Any other exception is a bug and keeps its traceback, but what a library makes of a signal. Of the ranks of a
distributed run only one speaks: the first to fail, or rank 0 on a signal; a rank whose peer has died waits for the
launcher's signal.
Statuses: 0 done, 1 a bug or a lost peer, 2 a user's error, 130 SIGINT, 138 SIGUSR1, 143 SIGTERM.
"""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from s3prl_ekd.bridge.ranks import PeerError, World, lost_peer
from s3prl_ekd.data_workers import end_children, killed_workers
from s3prl_ekd.errors import UNWRITABLE, EkdError, is_out_of_memory, one_line, out_of_memory_line
from s3prl_ekd.signals import Signals


class Run:
    """One command: what it is continued by and where it writes, for the line that says so."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = list(argv)  # the launcher adds what lets the command go on
        self.expdir: Path | None = None  # set once known
        self.resumable = True  # False for evaluation
        self.signals = Signals(on_second=_leave_at_once)
        self.world = World()

    def execute(self, body: Callable[[], None]) -> int:
        """Run ``body`` and return the exit status."""
        self.signals.listen()
        try:
            body()
            self.signals.forget_dropped()
            return 0
        except BaseException as error:
            self.signals.end()
            ending = self._ending_of(error)
            if ending is None:
                raise
            status, message = ending
            if status > 2:
                self.signals.hold(error)
        if status <= 2:
            gc.collect()  # the runner's frames are gone now: data loaders end their workers as they are collected
        end_children(grace=2.0)
        _close_bars()
        sys.stdout.flush()
        if message:
            # the cursor stands at the end of rank 0's progress bar
            on_a_bar = status > 2 or not self.world.is_rank_zero
            sys.stderr.write(f"\n{message}\n" if on_a_bar else f"{message}\n")
        sys.stderr.flush()
        return status

    def _ending_of(self, error: BaseException) -> tuple[int, str] | None:
        """Status and message of what has ended the run; None where it is to be raised: a bug."""
        if isinstance(error, EkdError):
            return 2, self._report(one_line(error), elsewhere=isinstance(error, PeerError))
        if isinstance(error, KeyboardInterrupt):
            return self._farewell()
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            return 2, self._report(f"{error.filename or self.expdir}: {error.strerror}; what was saved is kept")
        if isinstance(error, Exception) and self.signals.number:
            return self._farewell()
        if isinstance(error, RuntimeError):
            ending = self._ending_of_runtime_error(error)
            if ending is not None:
                return ending
        if self.world.distributed and isinstance(error, Exception):
            return 1, traceback.format_exc()
        return None

    def _report(self, text: str, elsewhere: bool = False) -> str:
        """The line of an error; empty where another rank has it already."""
        if self.world.distributed:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, for an error that another rank has met too
        text = text if elsewhere else f"{text}{self.world.where}"
        return f"error: {text}" if self.world.may_report(text) else ""

    def _ending_of_runtime_error(self, error: RuntimeError) -> tuple[int, str] | None:
        """Status and message of a full GPU, or of what a signal to other processes did; None for any other error."""
        if is_out_of_memory(error):
            return 2, self._report(out_of_memory_line(error))
        if self.signals.ended_workers(error):
            return self._farewell()
        killed = killed_workers(error)
        if killed:
            return 2, self._report(f"{killed}; what was saved is kept")
        if not self.world.distributed or not lost_peer(error):
            return None
        if self.signals.awaited(10):  # the launcher ends all ranks when one has failed
            return self._farewell()
        return 1, f"error: lost contact to another rank{self.world.where}: {str(error).splitlines()[0]}"

    def _farewell(self) -> tuple[int, str]:
        number = self.signals.number or signal.SIGINT
        name = signal.Signals(number).name
        if not self.world.is_rank_zero:
            return 128 + number, ""
        if not self.resumable:
            return 128 + number, f"stopped by {name}"
        command = ("torchrun ... " if self.world.distributed else "") + shlex.join([Path(sys.argv[0]).name, *self.argv])
        saved = self.expdir is not None and any(self.expdir.glob("states-*.ckpt"))
        if not saved:
            return 128 + number, f"stopped by {name} before the first checkpoint; start again with: {command}"
        return 128 + number, f"stopped by {name}; continue with: {command}"


def _close_bars() -> None:
    """End the progress bars now: else each writes a last line at exit, after our message."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def _leave_at_once(number: int) -> None:
    """On a second signal: the user does not want to wait."""
    end_children(grace=0)
    os._exit(128 + number)
