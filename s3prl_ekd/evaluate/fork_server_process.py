"""The process that native runs are forked from: what it imports, and how it forks. ``fork_server.py`` starts it.

A CUDA driver does not survive a fork, so this process never starts it: each fork starts its own. One of s3prl's modules
asks on import whether there is a GPU; PYTORCH_NVML_BASED_CUDA_CHECK makes that a question to NVML. Before the first run
on a GPU a fork tries to compute there; where that fails, requests are refused and runs are processes of their own.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any

_TRIAL_SECONDS = 120.0  # for the trial: a driver starts in one, but not beside many others that do the same
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
    "s3prl_ekd.upstream.ekd_ensemble.expert",
)


def serve(connection: socket.socket) -> None:
    """Import everything, then fork one run a request until the other side hangs up."""
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
            _supervise(request, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _try_gpu(environment: dict[str, str]) -> str:
    """Try to compute on a GPU in a fork; returns why that cannot be done, in a line, or an empty string."""
    import torch

    if torch.cuda.is_initialized():
        return "an import has started the CUDA driver"
    answer, answer_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _replace_environment(environment)
            torch.ones(2, device="cuda").sum().item()
            outcome = "ok"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}".splitlines()[0]
        os.write(answer_end, outcome.encode())
        os._exit(0)
    os.close(answer_end)
    if select.select([answer], [], [], _TRIAL_SECONDS)[0]:
        outcome = os.read(answer, 4096).decode() or "a fork that used the GPU died"
    else:
        os.kill(child, signal.SIGKILL)
        outcome = f"a fork got no answer from the GPU in {_TRIAL_SECONDS:.0f} s"
    os.close(answer)
    return "" if outcome == "ok" else outcome


def _replace_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _supervise(request: dict[str, Any], output: int, status: int) -> None:
    """Fork the run; report its process id, and its exit status when it ends. Never returns."""
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
    """Do what the script ``run_downstream.py`` does. Never returns."""
    code = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False)
        os.chdir(request["folder"])
        _replace_environment(request["environment"])  # CUDA_VISIBLE_DEVICES: read when this fork starts the driver
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
