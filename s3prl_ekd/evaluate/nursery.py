"""Starts native runs without paying for the imports each time.

``run_downstream.py`` spends some ten CPU seconds importing torch, transformers and s3prl's hub before its first step;
an evaluation calls it a dozen times. A nursery is one process that has imported all of that and has done nothing else;
each native command is a fork of it, which then calls the very entry point that the command's script calls, with the
command's arguments and in the environment that a process would get.

A CUDA driver does not survive a fork, so the nursery never starts it: each fork starts its own. One of s3prl's modules
asks on import whether there is a GPU; PYTORCH_NVML_BASED_CUDA_CHECK makes that a question to NVML. Before the first run
on a GPU a fork tries to compute there; where that fails, the nursery refuses and runs are processes of their own.

Both sides are in this file: :class:`Nursery` here, :func:`serve` in the other process. A request is one JSON line with
two pipes as file descriptors: the run's output, and its process id (or why there is none) and exit status.
"""

from __future__ import annotations

import importlib
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
import traceback
from collections.abc import Sequence
from typing import Any, BinaryIO

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.devices import native_device

log = logging.getLogger(__name__)

_PROGRAM = [sys.executable, "-m", "s3prl_ekd.evaluate.nursery"]
_PATIENCE = 120.0  # seconds for the trial: a driver starts in one, but not beside many others that do the same
_SLICE = 0.1  # seconds
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
    """The process to fork from; one for an evaluation. Starts at the first use, ends with :meth:`close`.

    Args:
        environment: what the runs' environments share: imports read some of it.
        device: of the runs, as a native command's ``--device`` says it: cpu or cuda.
    """

    def __init__(self, environment: dict[str, str], device: str) -> None:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}  # as such a run has it when it imports
        self._environment = {**environment, "PYTORCH_NVML_BASED_CUDA_CHECK": "1", **hidden}
        self._device = device
        self._refused = self._stopped = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def possible(devices: Sequence[str]) -> bool:
        """Whether runs on ``devices`` may be forks of one process: on Linux, on one kind of device."""
        return sys.platform == "linux" and len({native_device(device) for device in devices}) == 1

    def start(self, arguments: list[str], environment: dict[str, str]) -> Child | None:
        """Begin ``run_downstream.py ARGUMENTS``; ``None`` when that cannot be done here (start a process instead).

        ``environment`` is added to this process's.

        Raises:
            EkdError: after :meth:`stop`.
        """
        words = {"arguments": arguments, "folder": os.getcwd(), "device": self._device}
        request = json.dumps({**words, "environment": {**os.environ, **environment}}).encode() + b"\n"
        # Locked until the answer: a stream's reader could take the next request's descriptors for this one's.
        with self._lock:
            if self._stopped:
                raise EkdError("interrupted")
            if self._refused:
                return None
            if self._socket is None:
                self._socket = self._begin()
            child = self._ask(self._socket, request)
            if child.begin():
                return child
            if self._stopped:
                child.close()
                raise EkdError("interrupted")
            if child.refusal:
                log.info("runs are processes of their own, which start slower: %s", child.refusal)
                self._refused = True
        child.close()
        return None

    @staticmethod
    def _ask(connection: socket.socket, request: bytes) -> Child:
        output, output_end = os.pipe()
        status, status_end = os.pipe()
        try:
            sent = socket.send_fds(connection, [request], [output_end, status_end])
            connection.sendall(request[sent:])
        except OSError:
            pass  # it has died; the child's empty pipe says so
        finally:
            os.close(output_end)
            os.close(status_end)
        return Child(output, status)

    def _begin(self) -> socket.socket:
        """Start the other process; our end of the line to it."""
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
        """Let no run begin any more, also none of a caller that waits for the imports in another thread."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

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
        self.refusal = ""
        self._status: BinaryIO = os.fdopen(status, "rb", buffering=0)
        self._returncode: int | None = None
        self._reading = threading.Lock()

    def begin(self) -> bool:
        """Wait for the fork; ``False`` when there is none: the nursery died before, or refused."""
        line = self._status.readline().decode().strip()
        if line.isdigit():
            self.pid = int(line)
            return True
        self.refusal = line
        return False

    def close(self) -> None:
        """Let go of both pipes."""
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
            left = _SLICE if end is None else end - time.monotonic()
            with self._reading:  # in slices: one thread reads the only line, the others see what it was
                if self._returncode is None and select.select([self._status], [], [], min(_SLICE, max(left, 0)))[0]:
                    line = self._status.readline()
                    self._returncode = int(line) if line else -signal.SIGKILL
                    self._status.close()
                if self._returncode is not None:
                    return self._returncode
            if left <= 0:
                raise subprocess.TimeoutExpired("run_downstream.py", timeout or 0)


def serve(connection: socket.socket) -> None:
    """The nursery's life: import, then fork one run a request until the other side hangs up."""
    os.environ.pop("TQDM_DISABLE", None)  # tqdm reads it on import; see bridge/launch.py
    from s3prl_ekd.compat.hub import register

    register()
    for name in _IMPORTS:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    refusal: str | None = None  # None: not tried yet
    while True:
        text, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        if not text:
            return
        while not text.endswith(b"\n"):
            more = connection.recv(1 << 20)
            if not more:
                return  # the other side died in the middle of a request
            text += more
        request = json.loads(text)
        if refusal is None:
            refusal = "" if request["device"] == "cpu" else _try_gpu(request["environment"])
        if refusal:
            os.write(descriptors[1], f"{refusal}\n".encode())
        elif os.fork() == 0:
            connection.close()
            _watch(request, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _try_gpu(environment: dict[str, str]) -> str:
    """Why a fork of this process cannot compute on a GPU, in a line; empty when it can."""
    import torch

    if torch.cuda.is_initialized():
        return "an import has started the CUDA driver"
    answer, answer_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _take_environment(environment)
            torch.ones(2, device="cuda").sum().item()
            said = "ok"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
        os.write(answer_end, said.encode())
        os._exit(0)
    os.close(answer_end)
    if select.select([answer], [], [], _PATIENCE)[0]:
        said = os.read(answer, 4096).decode() or "a fork that used the GPU died"
    else:
        os.kill(child, signal.SIGKILL)
        said = f"a fork got no answer from the GPU in {_PATIENCE:.0f} s"
    os.close(answer)
    return "" if said == "ok" else said


def _take_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


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
        _take_environment(request["environment"])  # CUDA_VISIBLE_DEVICES: read when this fork starts the driver
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
