"""Data workers, the processes that read batches for a torch ``DataLoader``: when their deaths are heard of, and ended.

torch raises a worker's death from a handler of SIGCHLD, wherever Python stands: half-way through an optimizer's step,
or in the stream that torch's C++ writes a checkpoint into, which is lost then. :func:`unheard` holds it back for a
block, :func:`heard` raises it where batches are waited for.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache, partial
from types import FrameType
from typing import Any

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class _Deaths:
    """What torch's handler raises: in the main thread, as all signals are heard of there."""

    def __init__(self) -> None:
        self._holding = self._waiting = 0  # blocks; counted, since a generator leaves its own at any time
        self._error: Exception | None = None

    @contextmanager
    def unheard(self) -> Iterator[None]:
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and getattr(handler, "func", None) != self._on_child:
            signal.signal(signal.SIGCHLD, partial(self._on_child, handler))
        self._holding += 1
        try:
            yield
        except BaseException:
            self._holding -= 1
            if not self._holding:
                self._error = None  # another one is on its way
            raise
        self._holding -= 1
        self._raise()

    @contextmanager
    def heard(self) -> Iterator[None]:
        self._waiting += 1
        try:
            self._raise()
            yield
        finally:
            self._waiting -= 1

    def _on_child(self, handler: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
        """What ``handler``, torch's or another's, does; torch's calls the one that it found, which may be this."""
        try:
            handler(number, frame)  # at once: of a worker that was waited for since, torch finds nothing
        except Exception as error:
            self._error = self._error or error
            self._raise()

    def _raise(self) -> None:
        if self._error is not None and (self._waiting or not self._holding):
            error, self._error = self._error, None
            raise error


_deaths = _Deaths()


def unheard() -> AbstractContextManager[None]:
    """A block in which the death of a data worker is raised only at its end, or in a :func:`heard` block inside it."""
    return _deaths.unheard() if in_main_thread() else nullcontext()


def heard() -> AbstractContextManager[None]:
    """A block in which it is raised at once, whatever surrounds it; first of all what was held back."""
    return _deaths.heard() if in_main_thread() else nullcontext()


def in_main_thread() -> bool:
    """Whether this is the only thread that may say what a signal does."""
    return threading.current_thread() is threading.main_thread()


def is_death(error: BaseException | None) -> bool:
    """Whether torch raises it for the end of a data worker."""
    return "DataLoader worker" in str(error)


def killed_workers(error: BaseException | None) -> str:
    """The line on data workers that the system has killed, as it does where memory runs out; empty for another error.

    Of torch's errors: one names the signal, another says in place of it that a worker is gone.
    """
    while error is not None:
        words = str(error).strip().partition(".")[0]
        if is_death(error) and words.endswith((": Killed", ": Bus error")):
            return (
                f"{words}; the system probably ran out of memory: use fewer data workers (num_workers of the "
                "configuration; 0: none) or smaller batches"
            )
        error = error.__cause__
    return ""


def forget() -> None:
    """Of a process that is ending: hear no more of how its data workers end; only the main thread has heard of it."""
    if in_main_thread():
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # under SIG_IGN nobody could wait for a child


@cache
def end_with_this_process() -> None:
    """Let the system kill what this thread (the main one) forks from here on when it ends, even by SIGKILL; on Linux.

    torch's data workers look every five seconds whether it is there, and wait at their own end until the batch that
    they have made is read. Where batches are numpy arrays, as s3prl's are, that is for ever.
    """
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        os.register_at_fork(after_in_child=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))


def end_children(grace: float) -> None:
    """End this process's data workers, at most ``grace`` seconds later by force.

    One can be deaf to SIGTERM: on a signal to the whole group torch's manager of shared memory ends too, and a worker
    that is about to hand over a batch waits for it. They are waited for together: who stops a job waits some 30 s.
    """
    children, deadline = multiprocessing.active_children(), time.monotonic() + grace
    for child in children:
        child.terminate()
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
        if child.is_alive() and child.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)  # joblib's, on which s3prl's ASV measures clips, have no kill()
