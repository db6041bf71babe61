"""``dev-best.ckpt`` of pretraining: the checkpoint of the lowest validation loss, through stops and going back."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from s3prl_ekd.pretrain.ekd.best_checkpoint import BestCheckpoint

LOSSES = {4: 0.9, 8: 0.7, 12: 0.8}


def write(folder: Path, step: int) -> Path:
    """A checkpoint of a step, as the runner writes it."""
    file = folder / f"states-{step}.ckpt"
    torch.save({"Step": step}, file)
    return file


def validated(folder: Path, *steps: int) -> None:
    """``validation.jsonl`` with the losses of these steps."""
    lines = [json.dumps({"step": step, "loss": LOSSES[step]}) for step in steps]
    (folder / "validation.jsonl").write_text("\n".join(lines) + "\n")


def best_step(folder: Path) -> int:
    return torch.load(folder / "dev-best.ckpt", weights_only=True)["Step"]


def test_the_lowest_is_kept_after_the_runner_has_deleted_it(tmp_path: Path) -> None:
    best = BestCheckpoint(tmp_path)
    for step, loss in LOSSES.items():
        best.offer(write(tmp_path, step), loss)
    best.offer(write(tmp_path, 16), math.nan)
    assert os.path.samefile(tmp_path / "dev-best.ckpt", tmp_path / "states-8.ckpt")  # takes no room of its own
    (tmp_path / "states-8.ckpt").unlink()
    assert best_step(tmp_path) == 8
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("resumed_at", "lines", "loss", "kept"),
    [
        (12, (4, 8, 12), 0.7, 8),
        (4, (4, 8, 12), 0.9, 4),  # what comes after 4 is done again
        (8, (4,), math.inf, 8),  # the best one's own loss is not there: the stop came before it
    ],
    ids=["on", "back", "owed"],
)
def test_a_run_that_goes_on_knows_the_best_up_to_there(
    tmp_path: Path, resumed_at: int, lines: tuple[int, ...], loss: float, kept: int
) -> None:
    for step in LOSSES:
        write(tmp_path, step)
    shutil.copy(tmp_path / "states-8.ckpt", tmp_path / "dev-best.ckpt")
    validated(tmp_path, *lines)
    best = BestCheckpoint(tmp_path)
    best.resume(tmp_path / f"states-{resumed_at}.ckpt", resumed_at)
    assert best.loss == loss and best_step(tmp_path) == kept


def test_a_stop_between_the_loss_and_the_file_loses_neither(tmp_path: Path) -> None:
    write(tmp_path, 4)
    (tmp_path / "states-4.ckpt").rename(tmp_path / "dev-best.ckpt")
    validated(tmp_path, 4, 8)
    best = BestCheckpoint(tmp_path)
    best.resume(write(tmp_path, 8), 8)
    assert best_step(tmp_path) == 8 and best.loss == 0.7


def test_damage_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    validated(tmp_path, 4)
    (tmp_path / "dev-best.ckpt").write_text("no checkpoint")
    best = BestCheckpoint(tmp_path)
    best.resume(write(tmp_path, 4), 4)
    assert f"{tmp_path}/dev-best.ckpt: the best so far is not known (" in caplog.text
    best.offer(tmp_path / "states-4.ckpt", 0.9)
    assert best_step(tmp_path) == 4


def test_without_hard_links_it_is_copied_and_a_full_disk_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EPERM, "not here")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", refused)
    best = BestCheckpoint(tmp_path)
    best.offer(write(tmp_path, 4), 0.9)
    assert best_step(tmp_path) == 4 and not os.path.samefile(tmp_path / "dev-best.ckpt", tmp_path / "states-4.ckpt")
    monkeypatch.setattr(shutil, "copyfile", full)
    best.offer(write(tmp_path, 8), 0.7)
    assert f"[ekd] {tmp_path}/dev-best.ckpt: cannot be written (No space left on device)" in caplog.text
    assert best_step(tmp_path) == 4 and best.loss == 0.9
