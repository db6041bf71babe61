"""Ending a run: Ctrl-C, SIGTERM and user errors become one line on stderr and an exit status.

Any other exception is a bug and keeps its traceback. Of the ranks of a distributed run only one speaks: the first to
fail, or rank 0 on a signal; a rank whose peer has died waits for the launcher's signal.
Statuses: 0 done, 1 a bug or a lost peer, 2 a user's error, 130 SIGINT, 143 SIGTERM.
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
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from s3prl_ekd.bridge.ranks import PeerError, World, lost_peer
from s3prl_ekd.errors import UNWRITABLE, EkdError

# words of torch's allocator, of the driver, and of Triton where it loads a kernel
OUT_OF_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "[CUDA]: out of memory")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error is of a full GPU."""
    return any(words in str(error) for words in OUT_OF_MEMORY)


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived. A KeyboardInterrupt, so that torch's worker loops end quietly on it."""


class Run:
    """One command: what it was started with and where it writes, for the line that says how to continue."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = list(argv)
        self.expdir: Path | None = None  # set once known
        self.resumable = True  # False for evaluation
        self.signal = 0
        self.world = World()
        self._pid = os.getpid()
        self._is_ending = False

    def execute(self, body: Callable[[], None]) -> int:
        """Run ``body`` and return the exit status."""
        self._listen()
        try:
            body()
            return 0
        except BaseException as error:
            self._begin_ending()
            ending = self._ending_of(error)
            if ending is None:
                raise
            status, message = ending
        gc.collect()  # the runner's frames are gone now: data loaders end their workers as they are collected
        _end_children()
        _close_bars()
        sys.stdout.flush()
        if message:
            # the cursor stands at the end of rank 0's progress bar
            on_a_bar = status > 2 or not self.world.is_rank_zero
            sys.stderr.write(f"\n{message}\n" if on_a_bar else f"{message}\n")
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

    def _begin_ending(self) -> None:
        """From here on nothing is raised from outside: it would come between an error and its line."""
        self._is_ending = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        forget_data_workers()

    def _ending_of(self, error: BaseException) -> tuple[int, str] | None:
        """Status and message of what has ended the run; None where it is to be raised: a bug."""
        if isinstance(error, EkdError):
            return 2, self._report(one_line(error), elsewhere=isinstance(error, PeerError))
        if isinstance(error, KeyboardInterrupt):
            return self._farewell()
        if isinstance(error, RuntimeError):
            ending = self._ending_of_runtime_error(error)
            if ending is not None:
                return ending
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            return 2, self._report(f"{error.filename or self.expdir}: {error.strerror}; what was saved is kept")
        if self.world.distributed and isinstance(error, Exception):
            return 1, traceback.format_exc()
        return None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked worker
            raise KeyboardInterrupt
        if self.signal:  # the second one: the user does not want to wait
            _end_children(grace=0)
            os._exit(128 + number)
        self.signal = number
        if self._is_ending:
            return
        # Python drops an exception that is raised while an object is being deleted, as data loaders are at the end of
        # every epoch: it is raised again until the run has ended.
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
        raise Interrupted

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid and not self._is_ending:
            raise Interrupted

    def _report(self, text: str, elsewhere: bool = False) -> str:
        """The line of an error; empty where another rank has it already."""
        if self.world.distributed:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, for an error that another rank has met too
        text = text if elsewhere else f"{text}{self.world.where}"
        return f"error: {text}" if self.world.may_report(text) else ""

    def _ending_of_runtime_error(self, error: RuntimeError) -> tuple[int, str] | None:
        """Status and message of a full GPU, or of what a signal to other processes did; None for any other error."""
        if is_out_of_memory(error):
            reason = str(error).splitlines()[0].partition(". GPU ")[0].rstrip(".")
            return 2, self._report(f"{reason}; set a smaller batch (docs/faq.md, Out of memory)")
        if "DataLoader worker" in str(error) and self._awaited(1):
            # A signal to the whole process group ends the data workers first; torch reports that as this error.
            return self._farewell()
        if not self.world.distributed or not lost_peer(error):
            return None
        if self._awaited(10):  # the launcher ends all ranks when one has failed
            return self._farewell()
        return 1, f"error: lost contact to another rank{self.world.where}: {str(error).splitlines()[0]}"

    def _awaited(self, seconds: float) -> bool:
        """Whether a signal comes within this time, or has come."""
        for _ in range(round(seconds / 0.05)):
            if self.signal:
                return True
            time.sleep(0.05)
        return bool(self.signal)

    def _farewell(self) -> tuple[int, str]:
        number = self.signal or signal.SIGINT
        name = signal.Signals(number).name
        if not self.world.is_rank_zero:
            return 128 + number, ""
        if not self.resumable:
            return 128 + number, f"stopped by {name}"
        again = self.argv if "-a" in self.argv or "--auto_resume" in self.argv else [*self.argv, "-a"]
        command = ("torchrun ... " if self.world.distributed else "") + shlex.join([Path(sys.argv[0]).name, *again])
        saved = self.expdir is not None and any(self.expdir.glob("states-*.ckpt"))
        if not saved:
            return 128 + number, f"stopped by {name} before the first checkpoint; start again with: {command}"
        return 128 + number, f"stopped by {name}; continue with: {command}"


def leave(status: int, seconds: float = 5.0, hard: bool = False) -> int:
    """Return ``status``; after a signal, end the process instead, with at most ``seconds`` for what runs at exit.

    A signal can hit tensorboardX while it holds its queue; its cleanup at exit then waits for ever for a thread that
    never hears of the end. ``hard`` ends the process after errors too: threads of a process group wait for peers.
    """
    if status > 2 or (hard and status):
        cleanup = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
        cleanup.start()
        cleanup.join(seconds)
        os._exit(status)
    return status


def forget_data_workers() -> None:
    """Of a process that is ending: hear no more of how its data workers end.

    A signal to the whole process group, as torchrun's or a job scheduler's, ends them too, soon before or after it is
    heard of here. torch's handler of SIGCHLD raises that as an error, wherever Python stands.
    """
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # with SIG_IGN nobody could wait for a child


def one_line(error: EkdError) -> str:
    """An error's message on one line, also one that was raised in a data worker."""
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


def _end_children(grace: float = 2.0) -> None:
    """End all child processes, at most ``grace`` seconds later by force: whoever sent a signal waits some 30 s for all.

    A data worker can be deaf to SIGTERM: on a signal to the whole group, torch's manager of shared memory ends too, and
    a worker that is about to hand over a batch waits for it.
    """
    children, deadline = multiprocessing.active_children(), time.monotonic() + grace
    for child in children:
        child.terminate()
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
        if child.is_alive():
            child.kill()
