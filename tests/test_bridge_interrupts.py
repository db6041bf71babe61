"""How a run ends: an error in one line, a bug with its traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from console import environment

from s3prl_ekd.bridge import interrupts
from s3prl_ekd.errors import EkdError, one_line

pytestmark = pytest.mark.usefixtures("own_handlers")


def test_a_workers_error_is_cut_to_its_last_line() -> None:
    text = "Caught AudioError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\n"
    error = EkdError(text + "s3prl_ekd.audio.AudioError: a.flac: the audio file is empty (0 bytes)\n")
    assert one_line(error) == "a.flac: the audio file is empty (0 bytes)"


def test_bugs_keep_their_traceback() -> None:
    run = interrupts.Run([])

    def bug() -> None:
        raise KeyError("a real one")

    with pytest.raises(KeyError):
        run.execute(bug)


def test_an_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    run = interrupts.Run([])

    def body() -> None:
        raise EkdError("-k x: no such\n checkpoint")

    assert run.execute(body) == 2
    assert capsys.readouterr().err == "error: -k x: no such checkpoint\n"


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_a_full_gpu_is_one_line_whoever_finds_it_full(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise RuntimeError(words)

    assert interrupts.Run([]).execute(body) == 2
    assert capsys.readouterr().err == f"error: {words}; set a smaller batch (docs/faq.md, Out of memory)\n"


ENDING = """
import os, subprocess, sys, time
from pathlib import Path
from torch.utils.data import DataLoader
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.errors import EkdError, one_line

class Store:  # what a launch has
    def set(self, key, value): pass
    def add(self, key, number): return number

run = Run(["-u", "ekd", "-p", "x"])
run.expdir, run.world.store = Path("x"), Store()
loader = iter(DataLoader(range(99), num_workers=1))  # alive to the end, as where a traceback holds its frame

def body():
    next(loader)
    worker, rank = loader._workers[0].pid, os.getpid()
    # torch tells who kills a worker: its parent may
    launcher = subprocess.Popen(["sh", "-c", f"sleep 0.4; kill {worker}; sleep 0.4; kill {rank}"])
    raise ERROR

sys.exit(run.execute(body))
"""
"""The first of two ranks, which an error ends; torchrun then signals its process group, its data worker too."""


@pytest.mark.parametrize(
    "error,message,status",
    [
        (
            "RuntimeError('gloo: Connection closed by peer')",
            "stopped by SIGTERM; continue with: torchrun ... run_pretrain.py -u ekd -p x -a",
            128 + signal.SIGTERM,
        ),
        ("EkdError('a mistake')", "error: a mistake", 2),
    ],
)
def test_the_ends_of_data_workers_hide_no_message(tmp_path: Path, error: str, message: str, status: int) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/states-4.ckpt").touch()
    script = tmp_path / "run_pretrain.py"
    script.write_text(ENDING.replace("ERROR", error))
    ranks = environment(WORLD_SIZE="2", RANK="0")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=ranks, capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == message
    assert done.returncode == status
