"""Trouble made on purpose inside ``run_pretrain.py -u ekd``, and what became of each step; run as a script.

    python trouble_lab.py LOG STEP:FAULT[:N],... ARGUMENTS OF run_pretrain.py

A fault strikes the N-th batch of its step, the first without N (``always``: every batch):

- ``nan``: the first clip is NaN;
- ``inf``: one weight's gradient is infinite;
- ``forward``, ``backward``: the device's memory runs out in that pass. On a GPU it really does, by a batch that is far
  too large, or since all that is free is taken between the passes; on the CPU an error is raised there, in the words of
  Triton, which loads a kernel, and of torch;
- ``step``: the memory runs out beside the optimizer's step, where s3prl's runner expects no error;
- ``kill``: SIGKILL;
- ``stop``, ``stop-step``, ``stop-after``: SIGTERM in the forward pass, in the optimizer's step, right after it;
- ``bug``: an error that nobody expects;
- ``worker``: SIGKILL to a data worker, as by the system where memory runs out.

LOG receives a line of JSON for each batch: ``batch`` (the step), ``graphs`` (earlier batches whose graph is alive) and
``allocated`` (bytes on the GPU); and one for each step: ``step``, ``changed`` (a weight), ``finite`` (every weight),
``loss`` (the runner's sum).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from types import FrameType, MethodType
from typing import Any

import torch
import yaml
from console import called, forked

LIMIT = 3 * 2**30  # bytes that a run may take of a GPU: it fills up quickly, and others have room
TRITONS = "Triton Error [CUDA]: out of memory"
MADE_UP = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.19 GiB"


def configure(lab: Path, folder: Path, precision: str = "fp32", **student: Any) -> Path:
    """The lab's model.yaml (pretrain_lab.py), changed, in ``folder``, for runs in one precision."""
    model = yaml.safe_load((lab / "model.yaml").read_text())
    if precision != "fp16":  # fp16 is the runner's
        model["ekd"] |= {"precision": precision, "teacher_precision": precision}
    model["student"] |= student
    file = folder / f"{precision}.yaml"
    file.write_text(yaml.safe_dump(model))
    return file


def arguments(lab: Path, model: Path, expdir: str, device: str, **runner: Any) -> list[str]:
    """Arguments for a run of eight steps, all logged, with checkpoints after 4 and 8."""
    rules = {"total_steps": 8, "save_step": 4, "log_step": 1, **runner}
    override = ",,".join(f"config.runner.{key}={value}" for key, value in rules.items())
    configs = ["-g", str(model), "-c", str(lab / "runner.yaml")]
    return ["-u", "ekd", "-p", expdir, *configs, "--device", device, "-o", override]


def start(cwd: Path, *words: str, faults: str = "") -> subprocess.Popen[str]:
    """Start run_pretrain.py in ``cwd``; with ``faults``, through this script, which logs to ``cwd/steps.jsonl``.

    Where the process dies of a fatal signal its stack is in stderr.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [shutil.which("run_pretrain.py", path=path)]
    if faults:
        command = [__file__, str(cwd / "steps.jsonl"), faults]
    return subprocess.Popen(
        [sys.executable, *command, *words], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
    )  # fmt: skip


def run(cwd: Path, *words: str, faults: str = "", status: int = 0) -> tuple[str, str]:
    """:func:`start` and :func:`end` in one; on a CPU without the seconds of a command's imports."""
    if any(word.startswith("cuda") for word in words):
        return end(start(cwd, *words, faults=faults), status)
    if faults:
        done = called("trouble_lab:main", cwd / "steps.jsonl", faults, *words, cwd=cwd)
    else:
        done = forked("run_pretrain.py", *words, cwd=cwd)
    assert done.returncode == status, done.stderr[-3000:]
    return done.stdout, done.stderr


def end(run: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    """What a run wrote to stdout and stderr, once it has ended with ``status``."""
    out, err = run.communicate(timeout=300)
    assert run.returncode == status, err[-3000:]
    return out, err


def lines(file: Path, key: str) -> list[dict[str, Any]]:
    """The lines of a JSON log that have ``key``."""
    return [line for line in map(json.loads, file.read_text().splitlines()) if key in line]


def losses(expdir: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(expdir / "metrics.jsonl", "loss")}


class _Graph:
    """Lives as long as the graph of a loss."""


class _Root(torch.autograd.Function):
    """The loss itself, at the root of its graph."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, graph: _Graph, fails: bool) -> torch.Tensor:
        ctx.graph, ctx.fails = graph, fails
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        if ctx.fails:
            raise torch.OutOfMemoryError(MADE_UP)
        return gradient, None, None


def runners(name: str) -> Any:
    """A local variable of the runner that calls us."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not {name, "pbar"} <= set(frame.f_locals):  # 3.13's keys() is a list
        frame = frame.f_back
    assert frame is not None
    return frame.f_locals[name]


def stop_in(optimizer: Any, method: str) -> None:
    """SIGTERM at the end of a method, the next time that it is called."""
    original = getattr(optimizer, method)

    def stopped(self: Any, *args: Any, **kwargs: Any) -> Any:
        setattr(optimizer, method, original)
        result = original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)
        return result

    setattr(optimizer, method, MethodType(stopped, optimizer))


def main() -> int:
    """Run the command with the faults."""
    log, faults, *words = sys.argv[1:]
    sys.argv[:] = ["run_pretrain.py", *words]
    from s3prl_ekd.bridge.launch import run_pretrain
    from s3prl_ekd.pretrain.ekd import pretrain_expert

    class Troubled(pretrain_expert.UpstreamPretrainExpert):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.faults: dict[int, tuple[str, int]] = {}
            for part in faults.split(","):
                step, fault, *number = part.split(":")
                self.faults[int(step)] = (fault, int(*number) or 1)
            self.step = self.number = 0  # the step, and the number of its batches so far
            self.graphs, self.ballast, self.hooks = weakref.WeakSet(), [], []
            self.on_gpu = self.device.startswith("cuda")
            if self.on_gpu:
                total = torch.cuda.get_device_properties(0).total_memory
                torch.cuda.set_per_process_memory_fraction(LIMIT / total)

        def write(self, **values: Any) -> None:
            with open(log, "a") as file:
                file.write(json.dumps(values) + "\n")

        def weights(self) -> torch.Tensor:
            return torch.cat([p.detach().cpu().flatten() for p in self.model.parameters()])

        def forward(self, data: Any, records: Any, global_step: int, log_step: int, **kwargs: Any) -> Any:
            self.ballast.clear()
            while self.hooks:
                self.hooks.pop().remove()
            allocated = torch.cuda.memory_allocated() if self.on_gpu else 0
            self.write(batch=global_step, graphs=len(self.graphs), allocated=allocated)
            self.number = self.number + 1 if self.step == global_step else 1
            self.before, self.step = self.weights(), global_step
            fault, number = self.faults.get(global_step, (None, 0))
            if fault not in ("always", "step"):
                if number == self.number:
                    del self.faults[global_step]
                else:
                    fault = None
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "bug":
                raise ZeroDivisionError("a bug")
            if fault == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
            if fault in ("stop-step", "stop-after"):
                stop_in(runners("optimizer"), "step" if fault == "stop-step" else "zero_grad")
            if fault == "worker":
                multiprocessing.active_children()[0].kill()
            if fault == "nan":
                data.wave[0] = float("nan")
            if fault == "inf":
                weight = next(p for p in self.model.parameters() if p.requires_grad)
                self.hooks.append(weight.register_hook(lambda grad: torch.full_like(grad, float("inf"))))
            if fault in ("forward", "always"):
                if not self.on_gpu:
                    raise RuntimeError(TRITONS)
                # the first convolution makes more than ten times of these 512 MiB
                data.wave = data.wave.repeat(2**29 // data.wave.nbytes, 1)
            loss, records = super().forward(data, records, global_step, log_step, **kwargs)
            graph = _Graph()
            self.graphs.add(graph)
            loss = _Root.apply(loss, graph, fault == "backward" and not self.on_gpu)
            if fault == "backward" and self.on_gpu:
                self.fill()
            return loss, records

        def fill(self) -> None:
            """Leave no byte of the GPU that may be had."""
            torch.cuda.empty_cache()
            for size in (2**26, 2**20, 2**14, 2**9):
                while True:
                    try:
                        self.ballast.append(torch.empty(size, dtype=torch.uint8, device=self.device))
                    except torch.OutOfMemoryError:
                        break

        def on_before_zero_grad(self) -> None:
            after = self.weights()
            changed, finite = bool((after != self.before).any()), bool(after.isfinite().all())
            total = runners("all_loss")  # for tensorboard
            self.write(step=self.step, changed=changed, finite=finite, loss=total)
            if self.faults.get(self.step, (None,))[0] == "step":
                raise torch.OutOfMemoryError(MADE_UP)

    pretrain_expert.UpstreamPretrainExpert = Troubled
    return run_pretrain()


if __name__ == "__main__":
    sys.exit(main())
