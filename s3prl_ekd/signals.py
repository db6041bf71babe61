"""SIGINT, SIGTERM and SIGUSR1 as an exception that ends a command, wherever Python stands when they come.

Python alone loses some: it drops what is raised while an object is deleted or a process is forked, as data loaders do
at both ends of every epoch. And a signal to a whole process group, as torchrun's or a job scheduler's, ends the data
workers too, which torch raises as an error of its own, soon before or after the signal is heard of here.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

from s3prl_ekd import data_workers

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What stops a command. SIGUSR1 is what job schedulers are commonly told to send ahead of a time limit."""

_ONE_STOP = 1.0
"""Seconds within which signals are one: a process group's is passed on by the launcher that is in it, as torchrun."""

_AGAIN = 0.05
"""Seconds after which a dropped exception is raised again."""


class Interrupted(KeyboardInterrupt):
    """One of :data:`HEARD` arrived. A KeyboardInterrupt, so that torch's worker loops end quietly on it."""


class Signals:
    """What this process hears of the signals that stop it (:data:`HEARD`).

    Args:
        on_second: called with the number of a signal that comes some time after the first (:data:`_ONE_STOP`; one that
            comes before says nothing new). Without it, every one is raised as the first.
    """

    def __init__(self, on_second: Callable[[int], None] | None = None) -> None:
        self.number = 0
        """Of the signal that arrived; 0: none."""
        self._on_second, self._process, self._is_ending = on_second, os.getpid(), False
        self._delays, self._came = 0, 0.0  # when the first came
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook
        self._held: BaseException | None = None

    def listen(self) -> None:
        """From here on a signal raises :class:`Interrupted`. In the main thread only."""
        self._before = {number: signal.signal(number, self._on_signal) for number in HEARD}
        self._hook, sys.unraisablehook = sys.unraisablehook, self._on_dropped

    def end(self) -> None:
        """From here on nothing is raised from outside: it would come between an error and its message."""
        self._is_ending = True
        self.forget_dropped()
        data_workers.forget()

    @staticmethod
    def forget_dropped() -> None:
        """Raise again nothing that Python has dropped: the alarm would end a process whose handlers are gone."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def hold(self, error: BaseException) -> None:
        """Keep alive what a signal has interrupted, as long as this object.

        A signal can hit a data loader while it holds a lock of its queues; deleted, it would wait for it for ever.
        """
        self._held = error

    def restore(self) -> None:
        """Give the process back what it heard before :meth:`listen`."""
        self._is_ending = True
        self.forget_dropped()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook

    def delay(self) -> None:
        """From here to :meth:`deliver` nothing is raised."""
        self._delays += 1

    def deliver(self) -> None:
        """Raise what a signal would have raised since :meth:`delay`."""
        self._delays -= 1
        if self.number:
            self._raise()

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """Within the block nothing is raised; what a signal would have raised there, comes at its end."""
        self.delay()
        try:
            yield
        except BaseException:
            self._delays -= 1
            raise
        self.deliver()

    def awaited(self, seconds: float) -> bool:
        """Whether a signal has come, or comes within this time, after :meth:`end`."""
        for _ in range(round(seconds / 0.05)):
            if self.number:
                return True
            time.sleep(0.05)
        return bool(self.number)

    def ended_workers(self, error: BaseException) -> bool:
        """Whether torch raises ``error`` for data workers that a signal has ended; it may come here after them."""
        return data_workers.is_death(error) and self.awaited(1)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker
            raise KeyboardInterrupt
        if self.number and self._on_second is not None:
            if time.monotonic() - self._came < _ONE_STOP:
                return
            self._on_second(number)
        self.number, self._came = number, time.monotonic()
        data_workers.forget()
        data_workers.end_children(grace=0)  # else a loader, on its way out, waits 5 s for each that is deaf
        self._raise()

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        self._raise()

    def _raise(self) -> None:
        if not self._is_ending and not self._delays:
            raise Interrupted

    def _on_dropped(self, found: sys.UnraisableHookArgs) -> None:
        """Python could not raise something; in a forked worker too, which would go on as if nothing had come.

        After a signal that is what it left half done (a library's hooks at a fork, torch's workers): the line on the
        signal stands for it.
        """
        if isinstance(found.exc_value, KeyboardInterrupt):
            signal.signal(signal.SIGALRM, self._on_alarm)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        elif not self.number:
            self._hook(found)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A block that neither a signal nor the death of a data worker cuts, in whatever command; raised at the end.

    For C++ that calls Python back, as torch.save does to write into a stream: it cannot let go of a file while an
    exception of a handler's goes through it, and ends the process ("terminate called after throwing ...").
    """
    listening = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    delayed = listening.delayed() if isinstance(listening, Signals) else nullcontext()
    with data_workers.unheard(), delayed:
        yield


def leave(status: int, seconds: float = 5.0, hard: bool = False) -> int:
    """Return ``status``; after a signal, end the process instead, with at most ``seconds`` for what runs at exit.

    A signal can hit tensorboardX while it holds its queue; its cleanup at exit then waits for ever for a thread that
    never hears of the end. Or it meets a writer that :meth:`EventFiles.close`, slowed by a disk, has just closed. What
    fails here is not reported: the line on the signal is enough. ``hard`` ends the process after errors too: threads of
    a process group wait for peers.
    """
    if status > 2 or (hard and status):
        if status > 2:
            sys.unraisablehook = lambda found: None
        cleanup = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
        cleanup.start()
        cleanup.join(seconds)
        os._exit(status)
    return status
