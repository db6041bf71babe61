"""What a downstream training survives, by s3prl's real runner: batches that do not fit into memory.

torch's error is raised by hand, forward or backward, in the batches that an argument lists.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bridge_corpora import overrides, voxceleb

pytestmark = pytest.mark.slow

# LOG FAULTS WORDS...: FAULTS is "BATCH:forward,BATCH:backward,..." or "always"
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

class Graph: pass

class Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, graph, fails):
        ctx.graph, ctx.fails = graph, fails
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return gradient, None, None

def forward(self, mode, features, *rest, **more):
    global batches
    if mode != "train":
        return original(self, mode, features, *rest, **more)
    batches += 1
    with open(log, "a") as file:
        file.write(json.dumps({"batch": batches, "graphs": len(graphs)}) + "\\n")
    fault = "forward" if faults == "always" else faults.get(str(batches))
    if fault == "forward":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    graph = Graph()
    graphs.add(graph)
    return Root.apply(original(self, mode, features, *rest, **more), graph, fault == "backward")

expert.DownstreamExpert.forward = forward
from s3prl_ekd.bridge.launch import run_downstream
sys.exit(run_downstream())
"""


def run(folder: Path, faults: str, accumulate: int = 1) -> subprocess.CompletedProcess[str]:
    """Four steps of SID; ``log.jsonl`` gets a line for each batch, with the graphs of earlier ones that are alive."""
    rules = f"{overrides('voxceleb1', voxceleb(folder / 'vox'))},,config.runner.total_steps=4"
    rules += f",,config.runner.gradient_accumulate_steps={accumulate}"
    words = ["-m", "train", "-p", str(folder / "run"), "-u", "fbank", "-d", "voxceleb1", "--device", "cpu", "-o", rules]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder / "log.jsonl"), faults, *words],
        cwd=folder, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def batches(folder: Path) -> list[dict[str, int]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_that_does_not_fit_is_left_out(tmp_path: Path, accumulate: int) -> None:
    done = run(tmp_path, f"{1 + accumulate}:forward,{3 + 2 * accumulate}:backward", accumulate)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stderr.splitlines() if "does not fit into the GPU's memory and is left out" in line]
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
