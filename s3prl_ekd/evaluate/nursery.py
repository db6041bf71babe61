"""Starts native runs without paying for the imports each time.

``run_downstream.py`` spends some ten CPU seconds importing torch, transformers and s3prl's hub before its first step;
an evaluation calls it a dozen times. A nursery is one process that has imported all of that and has done nothing else;
each native command is a fork of it, which then calls the very entry point that the command's script calls, with the
command's arguments. Only for runs on the CPU: a CUDA driver does not survive a fork.

Both sides are in this file: :class:`Nursery` here, :func:`serve` in the other process. A request is one JSON line with
two pipes as file descriptors: the run's output, and its process id and exit status.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from typing import Any, BinaryIO

_IMPORTS = (
    "pandas",
    "librosa",
    "tensorboardX",
    "s3prl.run_downstream",
    "s3prl.downstream.runner",
    "s3prl.downstream.asr.expert",
    "s3prl.downstream.emotion.expert",
    "s3prl.downstream.voxceleb1.expert",
    "s3prl.downstream.ctc.expert",
    "s3prl_ekd.bridge.downstream_launch",
    "s3prl_ekd.bridge.taskdata",
    "s3prl_ekd.upstream.ekd_student.expert",
    "s3prl_ekd.upstream.ekd_teacher.expert",
)


class Nursery:
    """The process to fork from; one for an evaluation. Starts at the first use, ends with :meth:`close`."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def possible(device: str) -> bool:
        """Whether runs on ``device`` may be forks: on the CPU, on Linux."""
        return device == "cpu" and sys.platform == "linux"

    def start(self, arguments: list[str]) -> Child | None:
        """Begin ``run_downstream.py ARGUMENTS``; ``None`` when that cannot be done here (start a process instead)."""
        with self._lock:
            if self._socket is None:
                ours, theirs = socket.socketpair()
                self._socket = ours
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "s3prl_ekd.evaluate.nursery", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, **self._environment},
                    start_new_session=True,
                )
                theirs.close()
            output, output_end = os.pipe()
            status, status_end = os.pipe()
            request = json.dumps({"arguments": arguments, "folder": os.getcwd()}).encode() + b"\n"
            try:
                socket.send_fds(self._socket, [request], [output_end, status_end])
            except OSError:
                request = b""
            finally:
                os.close(output_end)
                os.close(status_end)
        child = Child(output, status)
        if not request or child.begin() is None:
            child.stdout.close()
            return None
        return child

    def close(self) -> None:
        """End the nursery; runs that it started go on."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.wait()


class Child:
    """A run that a nursery forked, with the part of ``subprocess.Popen``'s interface that ``process.py`` uses."""

    def __init__(self, output: int, status: int) -> None:
        self.stdout: BinaryIO = os.fdopen(output, "rb", buffering=0)
        self.pid = 0
        self._status: BinaryIO = os.fdopen(status, "rb", buffering=0)
        self._returncode: int | None = None

    def begin(self) -> int | None:
        """Wait for the fork; its process id, or ``None`` when the nursery died before."""
        line = self._status.readline()
        if not line:
            self._status.close()
            return None
        self.pid = int(line)
        return self.pid

    def poll(self) -> int | None:
        """The exit status, or ``None`` while the run goes on."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status as ``Popen`` gives it: negative for a signal."""
        if self._returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("run_downstream.py", timeout or 0)
            line = self._status.readline()
            self._returncode = int(line) if line else -signal.SIGKILL
            self._status.close()
        return self._returncode


def serve(connection: socket.socket) -> None:
    """The nursery's life: import, then fork one run a request until the other side hangs up."""
    os.environ.pop("TQDM_DISABLE", None)  # tqdm reads it on import; see bridge/launch.py
    from s3prl_ekd.bridge.register import register

    register()
    for name in _IMPORTS:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        text, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        if not text:
            return
        while not text.endswith(b"\n"):
            text += connection.recv(1 << 20)
        if os.fork() == 0:
            connection.close()
            _watch(json.loads(text), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _watch(request: dict[str, Any], output: int, status: int) -> None:
    """Between nursery and run: reports the run's process id, and its status when it ends. Never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    run = os.fork()
    if run == 0:
        os.close(status)
        _run(request, output)
    os.close(output)
    os.write(status, b"%d\n" % run)
    _, ended = os.waitpid(run, 0)
    os.write(status, b"%d\n" % os.waitstatus_to_exitcode(ended))
    os._exit(0)


def _run(request: dict[str, Any], output: int) -> None:
    """The run itself: what the script ``run_downstream.py`` does. Never returns."""
    code = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False)
        os.chdir(request["folder"])
        sys.argv = ["run_downstream.py", *request["arguments"]]
        from s3prl_ekd.bridge.launch import run_downstream

        code = run_downstream()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
