"""One native command as a child process: its output goes into a log file, its progress to a watcher.

Knows what s3prl's runner prints (tqdm's bars, ``dev per: 0.83``), nothing about tasks or scores.
"""

from __future__ import annotations

import codecs
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from s3prl_ekd.errors import EkdError, writing
from s3prl_ekd.evaluate.fork_server import Child, ForkServer

Watcher = Callable[["Progress"], None]
_Process = subprocess.Popen[bytes]

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_BAR = re.compile(r"(?:([\w-][\w ./>-]*): +)?\d+%\|[^|]*\|\s*(\d+)/(\d+)\s\[[^\]]*\]|(?:[\w -]+: )?\d+it \[[^\]]*\]")
_SCORE = re.compile(r"(?<![\w-])((?:dev|test|train)[\w-]* (?:per|acc|wer|loss)): ([0-9.]+)")
_NOISE = re.compile(r"Warning|^\s*warnings\.warn|^\s*$|^\[Override\]|tensorboardX|can't create new thread")


@dataclass
class Progress:
    """The progress of a native run: the runner's overall bar, the current bar, and the last score it printed."""

    step: int = 0
    total: int = 0
    phase: str = ""
    phase_step: int = 0
    phase_total: int = 0
    score: str = ""


class Children:
    """The child processes of an evaluation, started from several threads, and stopped together.

    Args:
        server: forks them, where that is possible; None for processes of their own.
        environment: what all of them have besides this process's.
    """

    def __init__(self, server: ForkServer | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._server, self._environment = server, environment or {}
        self._running: set[_Process | Child] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def start(self, command: list[str], program: int, environment: dict[str, str]) -> _Process | Child:
        """Start a command, whose first ``program`` words call ``run_downstream.py``; ``environment`` is its own part.

        Raises:
            EkdError: it cannot start; or after :meth:`stop`.
        """
        environment = {**self._environment, **environment}
        forked = None if self._server is None else self._server.start(command[program:], environment)
        with self._lock:  # what stop() does not see does not begin
            if self._stopped:
                if forked is not None:
                    _stop(forked)
                raise EkdError("interrupted")
            child = forked or _start(command, environment)
            self._running.add(child)
        return child

    def forget(self, child: _Process | Child) -> None:
        """Stop tracking a child that has ended."""
        with self._lock:
            self._running.discard(child)

    def stop(self) -> None:
        """End every child (an interrupt, or a failure of another run); none begins any more."""
        if self._server is not None:
            self._server.stop()
        with self._lock:
            self._stopped = True
            running = list(self._running)
        _stop(*running)


def run_logged(
    command: list[str],
    log: Path,
    watch: Watcher | None = None,
    environment: dict[str, str] | None = None,
    children: Children | None = None,
    program: int = 1,
    name: str = "run_downstream.py",
) -> tuple[str, float]:
    """Run ``command``; its output (bars left out) is appended to ``log``. Returns (output, seconds).

    Args:
        children: starts it, and stops it with all others; None for a command alone.
        program: how many of the first words call the program.
        name: of the program, for the message.

    Raises:
        EkdError: the command cannot start or fails; one line that names the log file.
    """
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    children = children or Children()
    child = children.start(command, program, environment or {})
    assert child.stdout is not None  # a pipe, in either case
    lines: list[str] = []
    try:
        with writing(log), log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(command)}\n")
            progress = Progress()
            for segment in _split_lines(child.stdout.fileno()):
                line = _read_line(segment, progress)
                if line:
                    lines.append(line)
                    file.write(line + "\n")
                    file.flush()
                if watch is not None:
                    watch(progress)
            status = child.wait()
    except BaseException:
        _stop(child)
        raise
    finally:
        children.forget(child)
        child.stdout.close()
    if status != 0:
        how = f"exit {status}" if status > 0 else signal.Signals(-status).name
        raise EkdError(f"{name} failed ({how}), see {log}: {error_summary(lines)}")
    return "\n".join(lines), time.monotonic() - started


def _start(command: list[str], environment: dict[str, str]) -> _Process:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # The runner's prints must not wait in a buffer behind the bars.
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,
        )
    except OSError as error:
        raise EkdError(f"{command[0]}: cannot be run: {error.strerror}") from error


def error_summary(lines: list[str]) -> str:
    """The last meaningful lines of a failed run in one line: our own one-line error if there is one."""
    for line in reversed(lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    meaningful = [line.strip() for line in lines if not _NOISE.search(line)]
    return " | ".join(meaningful[-3:]) or "no output"


def _read_line(segment: str, progress: Progress) -> str:
    """Read one terminal line into ``progress``; returns the line without its bars, for the log."""
    text = _ANSI.sub("", segment)
    for match in _BAR.finditer(text):
        name, step, total = match.groups()
        if step is None:
            continue
        if name == "overall":
            progress.step, progress.total = int(step), int(total)
        else:
            progress.phase, progress.phase_step, progress.phase_total = name or "", int(step), int(total)
    for name, value in _SCORE.findall(text):
        progress.score = f"{name} {float(value):.4g}"
    return _BAR.sub("", text).rstrip()


def _split_lines(descriptor: int) -> Iterator[str]:
    """The lines of a terminal stream, split at newline and at carriage return."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pending = ""
    while chunk := os.read(descriptor, 65536):
        *complete, pending = re.split(r"[\r\n]+", pending + decoder.decode(chunk))
        yield from filter(None, complete)
    if pending:
        yield pending


def _stop(*children: _Process | Child) -> None:
    """End children and their worker processes, each a process group (``start_new_session``), all at the same time.

    At most 15 s in all: a scheduler that cancels a job kills it after about 30 s.
    """
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        going = [child for child in children if child.poll() is None]
        for child in going:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, number)
        deadline = time.monotonic() + patience
        for child in going:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
