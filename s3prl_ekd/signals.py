"""SIGINT and SIGTERM as an exception that ends a command, wherever Python stands when they come.

Python alone loses some: it drops what is raised while an object is deleted or a process is forked, as data loaders do
at both ends of every epoch. And a signal to a whole process group, as torchrun's or a job scheduler's, ends the data
workers too, which torch raises as an error of its own, soon before or after the signal is heard of here.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

_AGAIN = 0.05
"""Seconds after which a dropped exception is raised again."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived. A KeyboardInterrupt, so that torch's worker loops end quietly on it."""


class Signals:
    """What this process hears of SIGINT and SIGTERM.

    Args:
        on_second: called with the number of a signal that comes after the first; without it, it is raised as the first.
    """

    def __init__(self, on_second: Callable[[int], None] | None = None) -> None:
        self.number = 0
        """Of the signal that arrived; 0: none."""
        self._on_second, self._process, self._is_ending = on_second, os.getpid(), False
        self._delays = 0
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook
        self._held: BaseException | None = None

    def listen(self) -> None:
        """From here on a signal raises :class:`Interrupted`. In the main thread only."""
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        self._hook, sys.unraisablehook = sys.unraisablehook, self._on_dropped

    def end(self) -> None:
        """From here on nothing is raised from outside: it would come between an error and its message."""
        self._is_ending = True
        _forget_data_workers()

    def hold(self, error: BaseException) -> None:
        """Keep alive what a signal has interrupted, as long as this object.

        A signal can hit a data loader while it holds a lock of its queues; deleted, it would wait for it for ever.
        """
        self._held = error

    def restore(self) -> None:
        """Give the process back what it heard before :meth:`listen`."""
        self._is_ending = True
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """Within the block nothing is raised; what a signal would have raised there, comes at its end."""
        self._delays += 1
        try:
            yield
        finally:
            self._delays -= 1
        if self.number:
            self._raise()

    def awaited(self, seconds: float) -> bool:
        """Whether a signal has come, or comes within this time, after :meth:`end`."""
        for _ in range(round(seconds / 0.05)):
            if self.number:
                return True
            time.sleep(0.05)
        return bool(self.number)

    def ended_workers(self, error: BaseException) -> bool:
        """Whether torch raises ``error`` for data workers that a signal has ended; it may come here after them."""
        return _is_of_data_workers(error) and self.awaited(1)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker
            raise KeyboardInterrupt
        if self.number and self._on_second is not None:
            self._on_second(number)
        self.number = number
        _forget_data_workers()
        end_children(grace=0)  # else a loader, on its way out, waits 5 s for each that is deaf
        self._raise()

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        self._raise()

    def _raise(self) -> None:
        if not self._is_ending and not self._delays:
            raise Interrupted

    def _on_dropped(self, found: sys.UnraisableHookArgs) -> None:
        """Python could not raise something; in a forked worker too, which would go on as if nothing had come."""
        if isinstance(found.exc_value, KeyboardInterrupt):
            signal.signal(signal.SIGALRM, self._on_alarm)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        elif not (self.number and _is_of_data_workers(found.exc_value)):
            self._hook(found)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A block that a signal does not cut, in whatever command it stands; it is raised at the end.

    For C++ that calls Python back, as torch.save does to write into a stream: it cannot let go of a file while an
    exception of a signal's goes through it, and ends the process ("terminate called after throwing ...").
    """
    listening = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    with listening.delayed() if isinstance(listening, Signals) else nullcontext():
        yield


def _is_of_data_workers(error: BaseException | None) -> bool:
    """Whether torch raises it for the end of a data worker."""
    return "DataLoader worker" in str(error)


def killed_workers(error: BaseException | None) -> str:
    """The line on data workers that the system has killed, as it does where memory runs out; empty for another error.

    Of torch's errors: one names the signal, another says in place of it that a worker is gone.
    """
    while error is not None:
        words = str(error).strip().partition(".")[0]
        if _is_of_data_workers(error) and words.endswith((": Killed", ": Bus error")):
            return (
                f"{words}, as where the system has no memory left; fewer data workers (num_workers of the "
                "configuration; 0: none) and smaller batches need less"
            )
        error = error.__cause__
    return ""


def _forget_data_workers() -> None:
    """Of a process that is ending: hear no more of how its data workers end."""
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # under SIG_IGN nobody could wait for a child


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
        if child.is_alive():
            child.kill()


def leave(status: int, seconds: float = 5.0, hard: bool = False) -> int:
    """Return ``status``; after a signal, end the process instead, with at most ``seconds`` for what runs at exit.

    A signal can hit tensorboardX while it holds its queue; its cleanup at exit then waits for ever for a thread that
    never hears of the end. Or it finds closed what a slow disk has let :meth:`EventFiles.close` close only now: of what
    fails here nothing is said, the line on the signal stands. ``hard`` ends the process after errors too: threads of a
    process group wait for peers.
    """
    if status > 2 or (hard and status):
        if status > 2:
            sys.unraisablehook = lambda found: None
        cleanup = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
        cleanup.start()
        cleanup.join(seconds)
        os._exit(status)
    return status
