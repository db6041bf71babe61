"""Ending a run: Ctrl-C, SIGTERM and user errors become one line on stderr and an exit status.

Any other exception is a bug and keeps its traceback.
Statuses: 0 done, 2 a user's error, 130 SIGINT, 143 SIGTERM.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from s3prl_ekd.errors import UNWRITABLE, EkdError


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived. A KeyboardInterrupt, so that torch's worker loops end quietly on it."""


class Run:
    """One command: what it was started with and where it writes, for the line that says how to continue."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = list(argv)
        self.expdir: Path | None = None  # set once known
        self.resumable = True  # False for evaluation
        self.signal = 0
        self._pid = os.getpid()

    def execute(self, body: Callable[[], None]) -> int:
        """Run ``body`` and return the exit status."""
        self._listen()
        try:
            body()
            return 0
        except EkdError as error:
            status, message = 2, f"error: {_one_line(error)}"
        except KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
            status, message = self._farewell()
        except RuntimeError as error:
            # A signal to the whole process group ends the data workers first; torch reports that as this error.
            if "DataLoader worker" not in str(error) or not self._awaited():
                raise
            status, message = self._farewell()
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            status, message = 2, f"error: {error.filename or self.expdir}: {error.strerror}; what was saved is kept"
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.collect()  # the runner's frames are gone now: data loaders end their workers as they are collected
        _end_children()
        _close_bars()
        sys.stdout.flush()
        sys.stderr.write(f"\n{message}\n" if status > 2 else f"{message}\n")
        sys.stderr.flush()
        return status

    def _listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_alarm)
        usual = sys.unraisablehook
        sys.unraisablehook = lambda found: None if self._by_signal(found.exc_value) else usual(found)

    def _by_signal(self, error: BaseException | None) -> bool:
        """Whether an exception that Python could not raise, in a ``__del__``, is the signal's own doing.

        Of a signal to the whole process group, a data loader that is being deleted sees its workers die.
        """
        return isinstance(error, Interrupted) or bool(self.signal and "DataLoader worker" in str(error))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked worker
            raise KeyboardInterrupt
        if self.signal:  # the second one: the user does not want to wait
            _end_children(grace=0)
            os._exit(128 + number)
        self.signal = number
        # Python drops an exception that is raised while an object is being deleted, as data loaders are at the end of
        # every epoch: it is raised again until the run has ended.
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
        raise Interrupted

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid:
            raise Interrupted

    def _awaited(self) -> bool:
        try:
            for _ in range(20):
                if self.signal:
                    return True
                time.sleep(0.05)
        except KeyboardInterrupt:
            return True
        return bool(self.signal)

    def _farewell(self) -> tuple[int, str]:
        number = self.signal or signal.SIGINT
        name = signal.Signals(number).name
        if not self.resumable:
            return 128 + number, f"stopped by {name}"
        again = self.argv if "-a" in self.argv or "--auto_resume" in self.argv else [*self.argv, "-a"]
        command = shlex.join([Path(sys.argv[0]).name, *again])
        saved = self.expdir is not None and any(self.expdir.glob("states-*.ckpt"))
        if not saved:
            return 128 + number, f"stopped by {name} before the first checkpoint; start again with: {command}"
        return 128 + number, f"stopped by {name}; continue with: {command}"


def leave(status: int, seconds: float = 5.0) -> int:
    """Return ``status``; after a signal, end the process instead, with at most ``seconds`` for what runs at exit.

    A signal can hit tensorboardX while it holds its queue; its cleanup at exit then waits for ever for a thread that
    never hears of the end.
    """
    if status > 2:
        cleanup = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
        cleanup.start()
        cleanup.join(seconds)
        os._exit(status)
    return status


def _one_line(error: EkdError) -> str:
    text = str(error).strip()
    if "Original Traceback" in text:  # raised in a data worker: torch puts the worker's traceback into the message
        last = text.splitlines()[-1]
        head, _, rest = last.partition(": ")
        text = rest if "." in head and " " not in head else last
    return " ".join(text.split())


def _close_bars() -> None:
    """End the progress bars now: else each writes a last line at exit, after our message."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def _end_children(grace: float = 5.0) -> None:
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    for child in children:
        child.join(grace)
        if child.is_alive():
            child.kill()
