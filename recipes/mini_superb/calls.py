"""The project's commands as child processes: output into a file, a share of the cores, an end for all at once."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from pathlib import Path

from s3prl_ekd.ending import STOPPED
from s3prl_ekd.errors import EkdError
from s3prl_ekd.own_scripts import own_command


class Calls:
    """Runs commands; from several threads at a time, if need be.

    Args:
        threads: OMP_NUM_THREADS of the commands; None leaves it to them. What the user has set stays.
    """

    def __init__(self, threads: int | None = None) -> None:
        share = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        self._environment = {**share, **os.environ}
        self._lock = threading.Lock()
        self._going: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def __call__(self, words: list[str], log: Path) -> None:
        """Run one of the project's commands; its output goes into a file.

        Raises:
            EkdError: it failed; with its last line.
            KeyboardInterrupt: it was interrupted.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stream:
            stream.write(f"$ {shlex.join(words)}\n")
            stream.flush()
            status = self._status(own_command(words), stream.fileno())
        if status in STOPPED:
            raise KeyboardInterrupt
        if status != 0:
            last = log.read_text().strip().splitlines()[-1]
            raise EkdError(f"exit {status}: {shlex.join(words)}: {last} ({log})")

    def _status(self, command: list[str], output: int) -> int:
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            # In a session of its own a terminal's Ctrl-C does not reach it: it is told once, by stop(). Told twice, a
            # command would end before it has ended its own children.
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
            )
            self._going.add(child)
        try:
            return child.wait()
        except KeyboardInterrupt:  # only the main thread's: prepare
            child.send_signal(signal.SIGINT)
            child.wait()
            raise
        finally:
            with self._lock:
                self._going.discard(child)

    def stop(self) -> None:
        """Interrupt every command as Ctrl-C does; none begins any more."""
        with self._lock:
            self._stopped = True
            for child in self._going:
                child.send_signal(signal.SIGINT)
