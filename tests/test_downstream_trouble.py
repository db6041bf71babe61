"""What a downstream training survives, by s3prl's real runner: batches that do not fit into memory.

On a GPU memory really runs out, in the batches that an argument lists; on a CPU the error is raised by hand:
cuBLAS's on the way forward, else torch's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bridge_corpora import overrides, task_config, voxceleb

from s3prl_ekd.bridge import checkpoints, evaluation_memory
from s3prl_ekd.errors import EkdError

pytestmark = pytest.mark.slow

# LOG FAULTS WORDS...: FAULTS is "BATCH:forward,BATCH:backward,...", "always", or "evaluation" (each batch of those)
SCRIPT = """
import json, sys, weakref
import torch
from s3prl_ekd.compat.hub import register
register()
from s3prl.downstream.voxceleb1 import expert

log, faults, *words = sys.argv[1:]
faults = dict(part.split(":") for part in faults.split(",")) if ":" in faults else faults
sys.argv[:] = ["run_downstream.py", *words]
original, graphs, batches = expert.DownstreamExpert.forward, weakref.WeakSet(), 0

def fill(error=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")):
    if words[words.index("--device") + 1] == "cpu":
        raise error
    torch.empty(2**45, dtype=torch.uint8, device="cuda")

class Graph: pass

class Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, graph, fails):
        ctx.graph, ctx.fails = graph, fails
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.fails:
            fill()
        return gradient, None, None

def forward(self, mode, features, *rest, **more):
    global batches
    if mode != "train":
        if faults == "evaluation":
            fill()
        return original(self, mode, features, *rest, **more)
    batches += 1
    with open(log, "a") as file:
        file.write(json.dumps({"batch": batches, "graphs": len(graphs)}) + "\\n")
    fault = faults.get(str(batches)) if isinstance(faults, dict) else {"always": "forward"}.get(faults)
    if fault == "forward":
        fill(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    graph = Graph()
    graphs.add(graph)
    return Root.apply(original(self, mode, features, *rest, **more), graph, fault == "backward")

expert.DownstreamExpert.forward = forward
from s3prl_ekd.bridge.launch import run_downstream
sys.exit(run_downstream())
"""


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def run(
    folder: Path, faults: str, accumulate: int = 1, more: str = "", device: str = "cpu"
) -> subprocess.CompletedProcess[str]:
    """Four steps of SID; ``log.jsonl`` gets a line for each batch, with the graphs of earlier ones that are alive."""
    rules = f"{overrides('voxceleb1', voxceleb(folder / 'vox'))},,config.runner.total_steps=4"
    rules += f",,config.runner.gradient_accumulate_steps={accumulate}{more}"
    words = [
        "-m",
        "train",
        "-p",
        str(folder / "run"),
        "-u",
        "fbank",
        "-d",
        "voxceleb1",
        "--device",
        device,
        "-o",
        rules,
    ]
    return start(folder, faults, *words)


def start(folder: Path, faults: str, *words: str) -> subprocess.CompletedProcess[str]:
    """run_downstream.py with the faults."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder / "log.jsonl"), faults, *words],
        cwd=folder, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def batches(folder: Path) -> list[dict[str, int]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_that_does_not_fit_is_left_out(tmp_path: Path, accumulate: int, device: str) -> None:
    done = run(tmp_path, f"{1 + accumulate}:forward,{3 + 2 * accumulate}:backward", accumulate, device=device)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stderr.splitlines() if "does not fit into the GPU's memory and is skipped" in line]
    assert len(said) == 2 and "s of audio," in said[0] and "run fewer trainings on this GPU" in said[0]
    found = batches(tmp_path)
    # a step whose last batch fails begins anew: with two batches a step, five are tried for it
    assert len(found) == {1: 4 + 2, 2: 2 * 4 + 1 + 2}[accumulate]
    assert all(line["graphs"] == 0 for line in found)  # the next batch does not need the memory of two


def test_a_training_that_never_fits_ends(tmp_path: Path) -> None:
    done = run(tmp_path, "always")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "error: out of GPU memory at step 1: 10 batches in a row do not fit; set a smaller batch size"
    )
    assert "Traceback" not in done.stderr and len(batches(tmp_path)) == 10


@pytest.mark.parametrize("device", DEVICES)
def test_an_evaluation_that_does_not_fit_loses_nothing(tmp_path: Path, device: str) -> None:
    """Its key is named, the weights are kept, and the run goes on with the step, whose evaluation is made then."""
    more = ",,config.runner.save_step=3,,config.downstream_expert.datarc.eval_batch_size=4"
    stopped = run(tmp_path, "evaluation", more=more, device=device)
    assert stopped.returncode == 2 and "Traceback" not in stopped.stderr, stopped.stderr[-3000:]
    folder = tmp_path / "run"
    assert stopped.stderr.strip().splitlines()[-1] == (
        "error: out of GPU memory in the evaluation of dev after step 2; 4 clips at a time are too many: "
        "-o config.downstream_expert.datarc.eval_batch_size=2 (docs/faq.md, Out of memory); then resume with -a, from "
        f"{folder}/states-1.ckpt"
    )
    assert [path.name for path in folder.glob("*.ckpt")] == ["states-1.ckpt"] and len(batches(tmp_path)) == 2
    kept = checkpoints.read(folder / "states-1.ckpt")
    assert kept["Step"] == 1 and kept["Optimizer"]["state"]

    again = ["-m", "train", "-p", str(folder), "-a", "--device", device]
    again += ["-o", "config.downstream_expert.datarc.eval_batch_size=2"]
    done = start(tmp_path, "none", *again)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(batches(tmp_path)) == 2 + 3  # steps 2, 3, 4
    assert (folder / "states-3.ckpt").is_file()
    text = (folder / "log.log").read_text()
    assert "dev at step 2" in text and "dev at step 4" in text

    test = ["-m", "evaluate", "-e", str(folder / "states-3.ckpt"), "--device", device]
    done = start(tmp_path, "evaluation", *test)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "error: out of GPU memory in the evaluation of test; 2 clips at a time are too many: "
        "-o config.downstream_expert.datarc.eval_batch_size=1 (docs/faq.md, Out of memory)"
    )


def test_what_an_earlier_split_was_best_at_is_kept_too(tmp_path: Path) -> None:
    """SID, ER, KS and IC evaluate dev, and then test, at the same step."""
    saved: dict[str, int] = {}
    memory = evaluation_memory.EvaluationMemory(lambda state, path: saved.update({Path(path).name: state["Step"]}))

    def evaluate(split: str, logger: Any, step: int) -> list[str]:
        if split == "test":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return [f"{split}-best.ckpt"]

    config, splits = task_config("sid"), ("dev", "test", "more")
    names = [name for split in splits for name in memory.evaluate(evaluate, config, split, None, 100)]
    (tmp_path / "dev-best.ckpt").touch()  # of an earlier step
    with pytest.raises(EkdError, match=f"evaluation of test after step 100.*, from {tmp_path / 'states-99.ckpt'}"):
        for name in names:
            memory.save({"Step": 100}, str(tmp_path / name))
    assert saved == {"dev-best.ckpt": 100, "states-99.ckpt": 99}


def test_the_key_to_lower_is_the_tasks_own() -> None:
    def said(name: str, **changes: int) -> str:
        config = task_config(name)
        for section in config["downstream_expert"].values():
            if isinstance(section, dict):
                section.update({key: value for key, value in changes.items() if key in section})
        return evaluation_memory.message("dev", config, 7)

    start = "out of GPU memory in the evaluation of dev after step 7; "
    assert said("pr").startswith(
        f"{start}16 clips at a time are too many: -o config.downstream_expert.corpus.batch_size=8"
    )
    assert said("er").startswith(
        f"{start}4 clips at a time are too many: -o config.downstream_expert.datarc.eval_batch_size=2"
    )
    for name in ("sid", "asr"):
        assert said(name).startswith(f"{start}datarc.eval_batch_size is 1 already: make room on this GPU")
        assert "eval_batch_size=3 (" in said(name, eval_batch_size=6)
    assert "; set a smaller batch size, or" in evaluation_memory.message("dev", {"downstream_expert": {"x": 1}})


def test_an_error_of_another_kind_stays_what_it_is() -> None:
    def wrong(split: str, logger: object, step: int) -> list[str]:
        raise RuntimeError("shapes do not fit")

    memory = evaluation_memory.EvaluationMemory(lambda *args: None)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        memory.evaluate(wrong, {}, "dev", None, 3)
    assert memory.evaluate(lambda *args: ["dev-best.ckpt"], {}, "dev", None, 3) == ["dev-best.ckpt"]
    memory.save({"Step": 3}, "dev-best.ckpt")
