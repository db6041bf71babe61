"""What a pretraining run survives, by the real runner: NaN audio, and batches that do not fit into memory.

Here torch's error is raised by hand; test_gpu.py lets a GPU run out of memory.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trouble_lab
from trouble_checks import check_nan, check_out_of_memory

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_of_nan_is_no_step(lab: Path, tmp_path: Path, precision: str) -> None:
    check_nan(lab, tmp_path, "cpu", precision)


def test_an_infinite_gradient_is_no_step(lab: Path, tmp_path: Path) -> None:
    words = trouble_lab.arguments(lab, trouble_lab.configure(lab, tmp_path), "x", "cpu")
    out, _ = trouble_lab.run(tmp_path, *words, faults="3:inf")
    assert "at global step 3" in out
    steps = trouble_lab.lines(tmp_path / "steps.jsonl", "step")
    assert [line["step"] for line in steps if not line["changed"]] == [3]
    assert all(line["finite"] for line in steps)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_that_does_not_fit_is_left_out(lab: Path, tmp_path: Path, accumulate: int) -> None:
    check_out_of_memory(lab, tmp_path, "cpu", "fp32", accumulate)


def test_a_run_that_never_fits_ends(lab: Path, tmp_path: Path) -> None:
    words = trouble_lab.arguments(lab, trouble_lab.configure(lab, tmp_path), "x", "cpu")
    _, err = trouble_lab.run(tmp_path, *words, faults="2:always", status=2)
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: out of GPU memory at step 2: 10 batches in a row do not fit; set a smaller ")
    assert "batch_seconds" in last and "Traceback" not in err
    assert [line["batch"] for line in trouble_lab.lines(tmp_path / "steps.jsonl", "batch")] == [1] + 10 * [2]


def test_out_of_memory_beside_a_step_is_one_line(lab: Path, tmp_path: Path) -> None:
    words = trouble_lab.arguments(lab, trouble_lab.configure(lab, tmp_path), "x", "cpu")
    _, err = trouble_lab.run(tmp_path, *words, faults="5:step", status=2)
    last = err.strip().splitlines()[-1]
    advice = "make room on this GPU, or set a smaller batch (docs/faq.md"
    assert last.startswith(f"error: CUDA out of memory. Tried to allocate 20.00 GiB; {advice}")
    assert "Traceback" not in err and (tmp_path / "x" / "states-4.ckpt").is_file()


def test_a_data_worker_that_the_system_kills_is_one_line(lab: Path, tmp_path: Path) -> None:
    words = trouble_lab.arguments(lab, trouble_lab.configure(lab, tmp_path), "x", "cpu")
    words[-1] += ",,config.pretrain_expert.datarc.num_workers=2"
    _, err = trouble_lab.run(tmp_path, *words, faults="5:worker", status=2)
    last = err.strip().splitlines()[-1]
    assert re.match(r"error: DataLoader worker \(pid \d+\) is killed by signal: Killed; the system .*num_workers", last)
    assert "Traceback" not in err and (tmp_path / "x" / "states-4.ckpt").is_file()
    steps = trouble_lab.lines(tmp_path / "steps.jsonl", "step")
    assert [line["step"] for line in steps if line["changed"]] == [1, 2, 3, 4, 5]  # none is cut in the middle
