"""A head is tested, and goes on, on the weights that it was trained on; other ones under their path are refused."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from bridge_corpora import overrides, voxceleb
from console import forked
from export_student import write_student
from torch import nn

from s3prl_ekd import EkdError
from s3prl_ekd.bridge import checkpoints
from s3prl_ekd.bridge.upstream_weights import KEY, UpstreamWeights
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.teachers.build import load_teacher

TEACHER = "embedded:tiny_hubert"


def arguments(**changes: Any) -> Namespace:
    given = {"upstream_trainable": False, "past_exp": "x", "init_ckpt": "x/states-2.ckpt", "upstream_ckpt": TEACHER}
    return Namespace(**given | {"upstream_model_config": None} | changes)


@pytest.fixture(scope="module")
def model() -> nn.ModuleDict:
    """An upstream of ours."""
    return nn.ModuleDict({"encoder": load_teacher(TEACHER, "-k")})


def saved(model: Any, args: Namespace) -> dict[str, Any]:
    """A checkpoint of a head on ``model``."""
    found: list[dict[str, Any]] = []
    weights = UpstreamWeights(lambda state, path: found.append(state))
    weights.compare(model, args, {})
    weights.save({"Step": 1}, "states-1.ckpt")
    return found[0]


def with_another_weight(model: nn.ModuleDict) -> nn.ModuleDict:
    other = Encoder(model.encoder.shape)
    state = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    next(iter(state.values())).view(-1)[0] += 1e-6
    other.load_state_dict(state)
    return nn.ModuleDict({"encoder": other})


def test_one_other_weight_is_refused(model: nn.ModuleDict) -> None:
    other, checkpoint = with_another_weight(model), saved(model, arguments(past_exp=None))
    assert set(checkpoint) == {"Step", KEY}
    UpstreamWeights(torch.save).compare(model, arguments(), checkpoint)
    said = f"^-k {TEACHER}: these are not the weights that x/states-2.ckpt was trained on; give those, or train"
    with pytest.raises(EkdError, match=said):
        UpstreamWeights(torch.save).compare(other, arguments(), checkpoint)


def test_what_has_no_weights_of_its_own_to_compare_passes(model: nn.ModuleDict) -> None:
    """A head that starts from another's (-i), one of before the digest, a tuned upstream, an upstream of s3prl's."""
    other, checkpoint = with_another_weight(model), saved(model, arguments())
    check = UpstreamWeights(torch.save).compare
    check(other, arguments(past_exp=None), checkpoint)
    check(other, arguments(), {"Step": 1})
    check(other, arguments(upstream_trainable=True), checkpoint)
    check(nn.ModuleDict({"encoder": nn.Linear(1, 1)}), arguments(), checkpoint)
    assert saved(model, arguments(upstream_trainable=True)) == {"Step": 1}


@pytest.mark.slow
def test_a_student_that_was_trained_again_gets_no_old_head(tmp_path: Path) -> None:
    """Through the commands: the same weights may move, others may not take their place."""
    student = write_student(tmp_path / "student" / "states-10.ckpt")
    data = overrides("voxceleb1", voxceleb(tmp_path / "vox"))
    train = ["-m", "train", "-u", "ekd_student", "-d", "voxceleb1", "--device", "cpu", "-p", "head", "-a"]
    done = forked("run_downstream.py", *train, "-k", student, "-o", data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    head = tmp_path / "head" / "states-2.ckpt"
    assert len(checkpoints.read(head)[KEY]) == 64

    moved = shutil.move(student, tmp_path / "moved.ckpt")
    test = ["-m", "evaluate", "-e", head, "--device", "cpu"]
    done = forked("run_downstream.py", *test, "-k", moved, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]

    write_student(student, seed=2)
    longer = [*train, "-o", f"{data},,config.runner.total_steps=4"]
    for words in (test, longer):
        done = forked("run_downstream.py", *words, cwd=tmp_path)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 2 and last.startswith(f"error: -k {student}: these are not the weights that"), last
    assert [file.name for file in head.parent.glob("states-*")] == ["states-2.ckpt"]
