"""Start native runs without paying for the imports each time.

``run_downstream.py`` spends some ten CPU seconds importing torch, transformers and s3prl's hub before its first step;
an evaluation calls it a dozen times. A fork server is one process that has imported all of that and has done nothing
else; each native command is a fork of it, which then calls the very entry point that the command's script calls, with
the command's arguments and in the environment that a process would get.

Here is the client's side; what the other process does is in ``fork_server_process.py``. A request is one JSON line with
two pipes as file descriptors: the run's output, and its process id (or why there is none) and exit status.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import BinaryIO

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.devices import native_device

log = logging.getLogger(__name__)

_PROGRAM = [sys.executable, "-P", "-m", "s3prl_ekd.evaluate.fork_server_process"]  # -P: as run_downstream.py imports
_POLL_SECONDS = 0.1


class ForkServer:
    """The process to fork from; one for an evaluation. Starts at the first use, ends with :meth:`close`.

    Args:
        environment: what the runs' environments share: imports read some of it.
        device: of the runs, as a native command's ``--device`` says it: cpu or cuda.
    """

    def __init__(self, environment: dict[str, str], device: str) -> None:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}  # as such a run has it when it imports
        self._environment = {**environment, "PYTORCH_NVML_BASED_CUDA_CHECK": "1", **hidden}
        self._device = device
        self._refused, self._stopped = False, threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def possible(devices: Sequence[str]) -> bool:
        """Whether runs on ``devices`` may be forks of one process: on Linux, on one kind of device."""
        return sys.platform == "linux" and len({native_device(device) for device in devices}) == 1

    def start(self, arguments: list[str], environment: dict[str, str]) -> Child | None:
        """Start ``run_downstream.py ARGUMENTS``; returns ``None`` when that cannot be done here: start a process.

        ``environment`` is added to this process's.

        Raises:
            EkdError: after :meth:`stop`.
        """
        words = {"arguments": arguments, "folder": os.getcwd(), "device": self._device}
        request = json.dumps({**words, "environment": {**os.environ, **environment}}).encode() + b"\n"
        # Locked until the answer: a stream's reader could take the next request's descriptors for this one's.
        with self._lock:
            if self._stopped.is_set():
                raise EkdError("interrupted")
            if self._refused:
                return None
            if self._socket is None:
                self._socket = self._start_process()
            child = self._send(self._socket, request)
            if child.wait_for_fork():
                return child
            if self._stopped.is_set():
                child.close()
                raise EkdError("interrupted")
            if child.refusal:
                log.info("runs are processes of their own, which start slower: %s", child.refusal)
                self._refused = True
        child.close()
        return None

    @staticmethod
    def _send(connection: socket.socket, request: bytes) -> Child:
        output, output_end = os.pipe()
        status, status_end = os.pipe()
        try:
            sent = socket.send_fds(connection, [request], [output_end, status_end])
            connection.sendall(request[sent:])
        except OSError:
            pass  # it has died, which the child's empty pipe shows
        finally:
            os.close(output_end)
            os.close(status_end)
        return Child(output, status)

    def _start_process(self) -> socket.socket:
        """Start the other process; returns our end of the connection to it."""
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [*_PROGRAM, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **self._environment},
            start_new_session=True,
        )
        theirs.close()
        return ours

    def stop(self) -> None:
        """Kill the server, so that no run begins any more, not even for a thread that waits for its imports."""
        self._stopped.set()
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the fork server; runs that it started go on."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.wait()


class Child:
    """A run that the fork server forked, with the part of ``subprocess.Popen``'s interface that ``process.py`` uses."""

    def __init__(self, output: int, status: int) -> None:
        self.stdout: BinaryIO = os.fdopen(output, "rb", buffering=0)
        self.pid = 0
        self.refusal = ""
        self._status: BinaryIO = os.fdopen(status, "rb", buffering=0)
        self._returncode: int | None = None
        self._reading = threading.Lock()

    def wait_for_fork(self) -> bool:
        """Wait for the fork; ``False`` when there is none: the server died before, or refused."""
        line = self._status.readline().decode().strip()
        if line.isdigit():
            self.pid = int(line)
            return True
        self.refusal = line
        return False

    def close(self) -> None:
        """Close both pipes."""
        self.stdout.close()
        self._status.close()

    def poll(self) -> int | None:
        """The exit status, or ``None`` while the run goes on."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status as ``Popen`` gives it: negative for a signal. Several threads may wait."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _POLL_SECONDS if end is None else end - time.monotonic()
            pause = min(_POLL_SECONDS, max(left, 0))
            with self._reading:  # in slices: one thread reads the only line, the others see what it was
                if self._returncode is None and select.select([self._status], [], [], pause)[0]:
                    line = self._status.readline()
                    self._returncode = int(line) if line else -signal.SIGKILL
                    self._status.close()
                if self._returncode is not None:
                    return self._returncode
            if left <= 0:
                raise subprocess.TimeoutExpired("run_downstream.py", timeout or 0)
