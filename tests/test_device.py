"""What ``--device`` may say: one check for every command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from target_cache_lab import write_model

from s3prl_ekd import device
from s3prl_ekd.cli import main
from s3prl_ekd.device import find_device, usable_cpus
from s3prl_ekd.errors import EkdError


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)


def message(name: str, *option: str) -> str:
    with pytest.raises(EkdError) as caught:
        find_device(name, *option)
    return str(caught.value)


def test_a_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("cpu") == torch.device("cpu")
    gpus(monkeypatch, 2)  # counted, not used: neither is there
    assert [find_device(name).index for name in ("cuda", "cuda:0", "cuda:1")] == [None, 0, 1]
    assert message("cuda:2") == "--device cuda:2: torch sees 2 CUDA GPUs here, the first is cuda:0"
    gpus(monkeypatch, 1)
    assert "torch sees 1 CUDA GPU here" in message("cuda:1")


def test_a_device_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    assert message("cuda") == "--device cuda: torch sees no CUDA GPU here; give --device cpu"
    assert message("cuda:1", "--devices").endswith("give --devices cpu")
    assert message("gpu") == "--device gpu: is no device; expected cpu, cuda, or one of cuda:0, cuda:1, ..."
    unusable = message("meta")  # of a kind that torch knows and cannot give numbers of
    assert unusable.startswith("--device meta: not usable here (") and "\n" not in unusable and len(unusable) < 200


def take(gpu: torch.device) -> None:
    """Stands in for torch.cuda.set_device: no second GPU is here."""
    raise EkdError(f"takes {gpu}")


def test_commands_take_the_gpu_that_they_are_given(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without it the first GPU holds a context for what says plain ``cuda``, and stops the command where it is full."""
    gpus(monkeypatch, 2)
    monkeypatch.setattr(torch.cuda, "set_device", take)
    model = str(write_model(lab, tmp_path / "model.yaml", tmp_path / "cache"))
    for words in (["teachers", "embedded:tiny_hubert"], ["targets", "-g", model, "-c", str(lab / "runner.yaml")]):
        assert main([*words, "--device", "cuda:1"]) == 2
        assert capsys.readouterr().err.endswith("error: takes cuda:1\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 80 GiB"),
         "CUDA out of memory. Tried to allocate 2.00 MiB"),
        (RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` ..."), "CUDA error: out of memory"),
    ],
)  # fmt: skip
def test_a_full_gpu_ends_a_command_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: RuntimeError, said: str
) -> None:
    def fill(gpu: torch.device) -> None:
        raise error

    gpus(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "set_device", fill)
    assert main(["teachers", "embedded:tiny_hubert", "--device", "cuda:0"]) == 2
    advice = "make room on this GPU, or set a smaller batch (docs/faq.md, Out of memory)"
    assert capsys.readouterr().err == f"error: {said}; {advice}\n"


def test_a_gpu_shows_by_its_drivers_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DEVICE_FILES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert not device.shows_gpu()
    (tmp_path / "nvidiactl").touch()  # the driver, without a GPU in this container
    assert not device.shows_gpu()
    for name in ("nvidia3", "dxg", "kfd"):
        (tmp_path / name).touch()
        assert device.shows_gpu()
        for hidden in ("", "-1"):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
            assert not device.shows_gpu()
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        (tmp_path / name).unlink()


def test_the_file_is_looked_for_without_torch() -> None:
    code = "import sys; from s3prl_ekd.corpora import command; command.shows_gpu(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU sets on this system")
def test_the_cpus_of_a_job_are_its_own() -> None:
    mine = os.sched_getaffinity(0)
    assert usable_cpus() == len(mine)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, mine)
