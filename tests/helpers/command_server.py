"""Runs commands of ours, each as a fork of one process that has imported all that they import.

A command spends more time on importing torch and s3prl than on what a test asks of it. A request is one JSON line: a
list of jobs that run side by side, each with the function that a command's script calls (``module:function``), its
words, folder and environment; what it prints goes to ``stdout`` and ``stderr`` in a folder of its own.

What a library reads of the environment when it is imported, it has read before a job: huggingface_hub, for one. A test
of that, of how a command starts, or of signals to it, starts a process (console.py).
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN_PRETRAIN = "s3prl_ekd.bridge.launch:run_pretrain"
RUN_DOWNSTREAM = "s3prl_ekd.bridge.launch:run_downstream"
S3PRL_EKD = "s3prl_ekd.cli:command"
SCRIPTS = {RUN_PRETRAIN: "run_pretrain.py", RUN_DOWNSTREAM: "run_downstream.py", S3PRL_EKD: "s3prl-ekd"}
"""Function -> the command whose script calls it."""
IMPORTED = ("s3prl_ekd.bridge.pretrain_launch", "s3prl_ekd.bridge.downstream_launch",
            "s3prl_ekd.pretrain.ekd.pretrain_expert", "tensorboardX")  # fmt: skip

LIMIT = 300.0
"""Seconds for a request."""


@dataclass
class Done:
    """What has become of a job."""

    status: int
    out: str
    err: str
    log: list[tuple[str, str, int]]
    """(what, detail, number) of each line that this job's null GPU has logged, as nullgpu/README.md lists them."""

    def of(self, what: str) -> list[tuple[str, int]]:
        return [(detail, number) for kind, detail, number in self.log if kind == what]

    @property
    def gpus(self) -> set[int]:
        """The GPUs that it has a context on."""
        return {number for _, number in self.of("context")}

    @property
    def kernels(self) -> set[str]:
        """Triton's kernels that it has loaded."""
        return {name for name, _ in self.of("kernel")}


class Server:
    """The process to fork from.

    Args:
        variables: its environment.
        folder: for what jobs print.
        imported: modules that it imports besides.
    """

    def __init__(self, variables: Mapping[str, str], folder: Path, imported: Sequence[str] = ()) -> None:
        self.folder, self.number = folder, 0
        more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        more |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # no import starts a GPU's driver before a fork
        variables = {**variables, **more}
        words = [sys.executable, __file__, *imported]
        self.process = subprocess.Popen(words, env=variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        start_new_session=True)  # fmt: skip

    def run(self, function: str, *words: object, cwd: Path, **env: object) -> Done:
        """Call a function as its script does, to its end; ``env`` is set in the process that is forked."""
        return self.run_all([(function, words, env)], cwd)[0]

    def run_all(
        self, jobs: list[tuple[str, tuple[object, ...], Mapping[str, object]]], cwd: Path, whole: bool = False
    ) -> list[Done]:
        """Jobs side by side; ``whole``: their environment is all that they get of one."""
        requests: list[dict[str, Any]] = []
        for function, words, env in jobs:
            self.number += 1
            place = self.folder / f"job-{self.number}"
            place.mkdir()
            variables = {name: str(value) for name, value in env.items()} | {"NULLGPU_LOG": str(place / "log")}
            requests.append({"function": function, "words": [str(word) for word in words], "cwd": str(cwd),
                             "whole": whole, "place": str(place), "env": variables})  # fmt: skip
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(requests) + "\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], LIMIT)[0]:
                raise TimeoutError(f"{requests} took more than {LIMIT} s")
            statuses = json.loads(self.process.stdout.readline())
        except BaseException:  # the answer that is still due must not be the next job's
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        return [read(Path(request["place"]), status) for request, status in zip(requests, statuses, strict=True)]

    def close(self) -> None:
        self.process.communicate(timeout=60)  # it ends with its requests


def read(place: Path, status: int) -> Done:
    log = place / "log"
    rows = [line.split()[1:] for line in log.read_text().splitlines()] if log.exists() else []
    lines = [(what, detail, int(number)) for what, detail, number in rows]
    return Done(status, (place / "stdout").read_text(), (place / "stderr").read_text(), lines)


def carry_out(job: dict[str, Any]) -> int:
    """One job, in its fork; returns the exit status."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # requests come in there
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(job["place"], name), os.O_CREAT | os.O_WRONLY), descriptor)
    os.chdir(job["cwd"])
    if job["whole"]:
        os.environ.clear()
    os.environ.update(job["env"])
    module, _, function = job["function"].partition(":")
    sys.argv = [SCRIPTS.get(job["function"], function), *job["words"]]
    try:
        return getattr(importlib.import_module(module), function)() or 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def fork(job: dict[str, Any]) -> int:
    process = os.fork()
    if process == 0:
        status = carry_out(job)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return process


def main() -> None:
    from s3prl_ekd.compat.hub import register

    for module in (*IMPORTED, *sys.argv[1:]):
        importlib.import_module(module)
    register()
    for line in sys.stdin:
        processes = [fork(job) for job in json.loads(line)]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
    main()
