"""A student that was fine-tuned downstream (``-f``) is a student again: ``-k``, exports, Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bridge_corpora import overrides, voxceleb
from console import forked
from export_student import write_student

from s3prl_ekd import EkdError, load_student, read_torch_file
from s3prl_ekd.cli import main
from s3prl_ekd.student_checkpoint import is_student
from s3prl_ekd.student_part import START_KEY

pytestmark = pytest.mark.slow


def test_a_fine_tuned_student_is_a_student(tmp_path: Path) -> None:
    start = write_student(tmp_path / "start" / "states-10.ckpt")
    data = overrides("voxceleb1", voxceleb(tmp_path / "vox")) + ",,config.optimizer.lr=0.01"
    words = ["-m", "train", "-u", "ekd_student", "-d", "voxceleb1", "--device", "cpu", "-o", data]
    done = forked("run_downstream.py", *words, "-p", "tuned", "-f", "-k", start, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    tuned = tmp_path / "tuned" / "states-2.ckpt"
    before, after = load_student(start), load_student(tuned)
    saved = read_torch_file(tuned)["Upstream"]
    for name, value in after.encoder.state_dict().items():
        assert torch.equal(value, saved[f"encoder.{name}"])
    assert any(
        not torch.equal(value, after.encoder.state_dict()[name]) for name, value in before.encoder.state_dict().items()
    )
    assert len(after.heads) == 0 and is_student(tuned) and after.part["config"] == before.part["config"]

    done = forked("run_downstream.py", *words, "-p", "again", "-k", tuned, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert main(["export", "hf", "--ckpt", str(tuned), "--out", str(tmp_path / "hf")]) == 0
    exported = load_student(tmp_path / "hf").encoder.state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in after.encoder.state_dict().items())

    frozen = tmp_path / "again" / "states-2.ckpt"  # holds a head only
    assert not is_student(frozen)
    with pytest.raises(EkdError, match="not a checkpoint of `run_pretrain.py -u ekd`"):
        load_student(frozen)
    # all of the student is in the file; of an earlier version's, which held its weights alone, it is gone
    start.unlink()
    assert main(["export", "hf", "--ckpt", str(tuned), "--out", str(tmp_path / "later")]) == 0
    for name in ("config.json", "README.md", "model.safetensors"):
        assert (tmp_path / "later" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    done = forked("run_downstream.py", *words, "-p", "twice", "-f", "-k", tuned, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    twice = load_student(tmp_path / "twice" / "states-2.ckpt").part
    assert twice["fine_tuned"] == "voxceleb1, voxceleb1" and twice["config"] == before.part["config"]
    goes_on = ["-m", "train", "--device", "cpu", "-e", tuned, "-k", tuned, "-o", "config.runner.total_steps=3"]
    done = forked("run_downstream.py", *goes_on, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_student(tmp_path / "tuned" / "states-3.ckpt").part["fine_tuned"] == "voxceleb1"

    states = read_torch_file(tmp_path / "twice" / "states-2.ckpt")
    for part, said in (
        (None, "a fine-tuned student; the checkpoint that it began with, .*, is not there"),
        ([1], "UpstreamStudent is a list, expected a dictionary"),
        (states[START_KEY] | {"shape": 1}, "damaged student checkpoint: UpstreamStudent.shape is a int"),
    ):
        kept = {key: value for key, value in states.items() if key != START_KEY or part is not None}
        torch.save(kept | ({} if part is None else {START_KEY: part}), tmp_path / "other.ckpt")
        with pytest.raises(EkdError, match=f"{tmp_path}/other.ckpt: {said}"):
            load_student(tmp_path / "other.ckpt")
