"""A downstream training that was stopped goes on as if it had not been: the place in its epoch and its draws."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bridge_corpora import iemocap, librispeech, overrides, voxceleb
from console import forked
from torch.utils.data import DataLoader, Dataset, Subset

from s3prl_ekd.bridge import checkpoints
from s3prl_ekd.bridge.scaler import TrackedGradScaler, scaler_state
from s3prl_ekd.bridge.training_place import KEY, TrainingPlace


class Clips(Dataset):
    """As s3prl's of SID: which part of a clip is drawn where it is read."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[float, ...]:
        return index, random.random(), np.random.rand(), torch.rand(()).item()


Loaders = Callable[..., DataLoader]


def loaders(workers: int, clips: int = 3) -> Loaders:
    """The ``get_dataloader`` of an expert that draws the clips of each epoch, ten of twelve."""

    def get_dataloader(split: str) -> DataLoader:
        drawn = Subset(Clips(), random.sample(range(12), 10))
        return DataLoader(drawn, clips, shuffle=split == "train", num_workers=workers)

    return get_dataloader


def train(get: Loaders, file: Path, steps: int, state: dict[str, Any] | None = None) -> list[Any]:
    """Batches and draws of a training that evaluates after every third step and saves after every one."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    place, seen = TrainingPlace(torch.save), list[Any]()
    get_dataloader = place.follow(get, state or {})
    step = state["Step"] if state else 0
    while step < steps:
        for batch in get_dataloader("train"):
            step += 1
            seen.append([part.tolist() for part in batch] + [torch.rand(()).item(), random.random(), np.random.rand()])
            if step % 3 == 0:
                random.seed(1)
                torch.manual_seed(1)
                with place.evaluating():
                    seen.append([part.tolist() for part in next(iter(get_dataloader("dev")))])
            place.save({"Step": step}, str(file.with_name(f"{step}.ckpt")))
            if step == steps:
                break
    return seen


@pytest.mark.parametrize("workers", [0, 2])
def test_wherever_it_stops_the_rest_is_the_same(tmp_path: Path, workers: int) -> None:
    """Ten clips in batches of three are four steps an epoch: in the middle, at its end, in a later one."""
    whole = train(loaders(workers), tmp_path / "x", 10)
    for step in (1, 3, 4, 6, 8, 9):
        state = checkpoints.read(tmp_path / f"{step}.ckpt")
        rest = train(loaders(workers), tmp_path / "x", 10, state)
        assert rest == whole[-len(rest) :] and len(rest) == 10 - step + (3 - step // 3)


def test_other_batches_begin_the_epoch_anew(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(loaders(0), tmp_path / "x", 6)
    rest = train(loaders(0, clips=5), tmp_path / "x", 8, checkpoints.read(tmp_path / "6.ckpt"))
    assert "[ekd] the epoch had 4 batches and has 2 now: it starts again" in capsys.readouterr().out
    assert len({clip for batch in rest for clip in batch[0]}) == 10


def test_a_checkpoint_of_s3prl_begins_its_epoch_anew(tmp_path: Path) -> None:
    rest = train(loaders(0), tmp_path / "x", 8, {"Step": 4})
    assert rest[:2] == train(loaders(0), tmp_path / "x", 4)[:2]


def test_what_holds_no_place_is_saved_as_it_is(tmp_path: Path) -> None:
    TrainingPlace(torch.save).save({"Step": 1}, str(tmp_path / "1.ckpt"))
    assert checkpoints.read(tmp_path / "1.ckpt") == {"Step": 1}


@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled, but CUDA is not available")
def test_the_scale_of_fp16s_loss_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3prl's runner would begin with that of a new run, and leave out steps until it is found."""
    found: list[dict[str, float]] = []
    monkeypatch.setattr(torch.amp.GradScaler, "is_enabled", lambda self: True)
    monkeypatch.setattr(torch.amp.GradScaler, "state_dict", lambda self: {"scale": 4.0})
    monkeypatch.setattr(torch.amp.GradScaler, "load_state_dict", lambda self, state: found.append(state))
    scaler = TrackedGradScaler()
    train(loaders(0), tmp_path / "x", 1)
    TrainingPlace(torch.save).follow(loaders(0), checkpoints.read(tmp_path / "1.ckpt"))
    assert not found
    scaler = TrackedGradScaler()  # in use, or it would be none
    assert scaler.state_dict() == scaler_state() and found == [{"scale": 4.0}]


CORPORA = {"ctc": librispeech, "voxceleb1": voxceleb, "emotion": iemocap, "asr": librispeech}
MORE = {
    "ctc": "downstream_expert.corpus.num_workers=2",
    "voxceleb1": "downstream_expert.datarc.max_timestep=4000,,config.downstream_expert.datarc.train_batch_size=1",
    "emotion": "downstream_expert.datarc.train_batch_size=2,,config.runner.gradient_accumulate_steps=2",
    "asr": "downstream_expert.modelrc.RNNs.dropout=[0.5],,config.downstream_expert.datarc.batch_size=2",
}


@pytest.mark.slow
@pytest.mark.parametrize("task", list(MORE))
def test_a_stopped_run_ends_in_the_weights_of_one_that_was_not(tmp_path: Path, task: str) -> None:
    """Order of the clips, crops (SID), dropout and SpecAugment (ASR), accumulated batches, dev in between."""
    more = "runner.eval_step=2,,config.runner.max_keep=9,,config." + MORE[task]
    options = f"{overrides(task, CORPORA[task](tmp_path / 'corpus'), steps=7)},,config.{more}"
    start = ("-m", "train", "-n", "x", "-u", "fbank", "-d", task, "--device", "cpu")
    done = forked("run_downstream.py", *start, "-o", options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "result/downstream/x"
    whole = checkpoints.read(folder / "states-7.ckpt")
    for step in (4, 5, 6, 7):
        (folder / f"states-{step}.ckpt").unlink()
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    done = forked("run_downstream.py", *start, "-a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    again = checkpoints.read(folder / "states-7.ckpt")
    assert again["Epoch"] == whole["Epoch"] and again[KEY]["drawn"] == whole[KEY]["drawn"]
    for part in ("Featurizer", "Downstream"):
        assert whole[part].keys() == again[part].keys()
        assert all(value.equal(again[part][name]) for name, value in whole[part].items()), part
