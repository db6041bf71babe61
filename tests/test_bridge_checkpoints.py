"""Checkpoints of s3prl's runners: saved whole or not at all, found again, and refused in one line."""

from __future__ import annotations

import errno
import io
import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from s3prl_ekd.bridge import checkpoints
from s3prl_ekd.errors import EkdError


def state(step: int) -> dict:
    return {"Step": step, "Args": Namespace(upstream="tera"), "Config": {}, "Optimizer": {}}


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    keeper, path = checkpoints.AtomicCheckpoints(), tmp_path / "states-1.ckpt"
    keeper.save(state(1), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle|local object"):
        keeper.save({"x": lambda: None}, path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["states-1.ckpt"]


class SmallDisk(io.FileIO):
    """A file on a disk with room for 100 kB."""

    def write(self, data: bytes) -> int:
        if self.tell() + len(data) > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_full_disk_is_one_line_and_a_bug_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, path = checkpoints.AtomicCheckpoints(), tmp_path / "states-2.ckpt"
    monkeypatch.setattr(checkpoints, "open", SmallDisk, raising=False)
    with pytest.raises(EkdError, match=r"states-2.ckpt: the checkpoint could not be written \(No space left on device"):
        keeper.save({str(index): torch.zeros(5_000) for index in range(9)}, path)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr(torch, "save", lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        keeper.save(state(2), path)


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        EkdError, match=r"states-2.ckpt: the checkpoint could not be written \(No such file or directory"
    ):
        checkpoints.AtomicCheckpoints().save(state(2), tmp_path / "gone" / "states-2.ckpt")


def test_the_old_checkpoint_goes_only_after_the_new_is_complete(tmp_path: Path) -> None:
    keeper = checkpoints.AtomicCheckpoints()
    keeper.save(state(1), tmp_path / "states-1.ckpt")
    keeper.remove(tmp_path / "states-1.ckpt")  # max_keep: 1 removes before it writes
    assert (tmp_path / "states-1.ckpt").exists()
    keeper.save(state(2), tmp_path / "dev-best.ckpt")
    assert (tmp_path / "states-1.ckpt").exists()
    keeper.save(state(2), tmp_path / "states-2.ckpt")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["dev-best.ckpt", "states-2.ckpt"]
    keeper.remove(tmp_path / "states-2.ckpt")  # resumed: the same name is written again
    keeper.save(state(2), tmp_path / "states-2.ckpt")
    assert (tmp_path / "states-2.ckpt").exists()
    keeper.remove(tmp_path / "dev-best.ckpt")  # what is no states-*.ckpt goes at once
    assert [item.name for item in tmp_path.iterdir()] == ["states-2.ckpt"]


def test_of_a_run_made_longer_the_oldest_checkpoint_goes_not_the_finished_one(tmp_path: Path) -> None:
    """s3prl sorts names by their number, and the last of a run is states-epoch-N: it would go before states-4."""
    keeper = checkpoints.AtomicCheckpoints()
    for step, name in ((4, "states-4.ckpt"), (8, "states-8.ckpt"), (12, "states-epoch-3.ckpt")):
        keeper.save(state(step), tmp_path / name)

    def save(step: int) -> set[str]:
        """As s3prl's runners under ``max_keep: 3``."""
        found = sorted(tmp_path.glob("states-*.ckpt"), key=lambda path: int(path.stem.split("-")[-1]))
        for path in found[: len(found) - 2]:
            keeper.remove(path)
        keeper.save(state(step), tmp_path / f"states-{step}.ckpt")
        return {path.name for path in tmp_path.iterdir()}

    assert save(16) == {"states-8.ckpt", "states-epoch-3.ckpt", "states-16.ckpt"}
    assert save(20) == {"states-epoch-3.ckpt", "states-16.ckpt", "states-20.ckpt"}
    assert save(24) == {"states-16.ckpt", "states-20.ckpt", "states-24.ckpt"}
    (tmp_path / "states-epoch-9.ckpt").write_bytes(b"cannot be read today")
    assert save(28) == {"states-24.ckpt", "states-28.ckpt", "states-epoch-9.ckpt"}


def test_newest_goes_by_step_and_skips_the_unreadable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step, name in ((90, "states-90.ckpt"), (100, "states-epoch-2.ckpt")):
        torch.save(state(step), tmp_path / name)
    assert checkpoints.newest(tmp_path, checkpoints.read).name == "states-epoch-2.ckpt"
    whole = (tmp_path / "states-90.ckpt").read_bytes()
    (tmp_path / "states-110.ckpt").write_bytes(whole[: len(whole) // 2])
    assert checkpoints.newest(tmp_path, checkpoints.read).name == "states-epoch-2.ckpt"
    assert "states-110.ckpt: cannot be read (cut short" in caplog.text
    assert checkpoints.newest(tmp_path / "none", checkpoints.read) is None


def test_one_folder_is_one_run(tmp_path: Path) -> None:
    """Neither a new run beside an old one's checkpoints, nor a step back that the later ones would undo."""
    checkpoints.check_unused(tmp_path / "nowhere")
    checkpoints.check_unused(tmp_path)
    for name, step in (("states-4.ckpt", 4), ("states-8.ckpt", 8), ("states-epoch-1.ckpt", 8)):
        torch.save(state(step), tmp_path / name)
    with pytest.raises(EkdError, match=r"holds states-epoch-1.ckpt of an earlier run; resume that run \(-a\)"):
        checkpoints.check_unused(tmp_path)
    for name in ("states-8.ckpt", "states-epoch-1.ckpt"):
        checkpoints.check_last(tmp_path / name, checkpoints.read)
    with pytest.raises(EkdError, match=r"-e .*states-4.ckpt: is of step 4, but its folder also holds states-\S+ of"):
        checkpoints.check_last(tmp_path / "states-4.ckpt", checkpoints.read)


@pytest.mark.parametrize("content,words", [(b"", "empty"), (b"hello", "cannot be read"), (None, "no such checkpoint")])
def test_unreadable_checkpoints_are_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "states-1.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EkdError, match=words) as caught:
        checkpoints.read(path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_kind_says_so(tmp_path: Path) -> None:
    torch.save(state(1), tmp_path / "a.ckpt")
    with pytest.raises(EkdError, match="not a checkpoint of s3prl's downstream runner: it has no 'Downstream'"):
        checkpoints.read_runner(tmp_path / "a.ckpt", ("Args", "Downstream"), "s3prl's downstream runner")
    for wrong, said in (({"Args": {}}, "its Args is a dict"), ({"Config": 3}, "its Config is a int")):
        torch.save({"Args": Namespace(), "Config": {}} | wrong, tmp_path / "b.ckpt")
        with pytest.raises(EkdError, match=f"b.ckpt: not a checkpoint of the runner: {said}"):
            checkpoints.read_runner(tmp_path / "b.ckpt", ("Args", "Config"), "the runner")


def test_a_missing_best_checkpoint_names_what_is_there(tmp_path: Path) -> None:
    missing = tmp_path / "dev-clean-best.ckpt"
    for files, end in (([], "experiment folder$"), (["states-9.ckpt"], "; that folder holds states-9.ckpt$")):
        for name in files:
            torch.save(state(9), tmp_path / name)
        with pytest.raises(EkdError, match=f"-e {missing}: no such checkpoint or .*{end}"):
            checkpoints.resume_from(None, False, str(missing), checkpoints.read)


def test_where_a_run_goes_on(tmp_path: Path) -> None:
    """-a: in its own folder, where there is a checkpoint; else -e, a file or a folder's newest."""
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
    torch.save(state(4), other / "states-4.ckpt")

    def found(auto: bool, past: Path | None) -> Path | None:
        return checkpoints.resume_from(str(own), auto, str(past) if past else None, checkpoints.read, "; a hint")

    assert found(True, None) is None and found(False, None) is None
    assert found(True, other) == found(False, other) == found(False, other / "states-4.ckpt") == other / "states-4.ckpt"
    with pytest.raises(EkdError, match=f"^-e {own}: the folder holds no states-\\*.ckpt; a hint$"):
        found(False, own)
    torch.save(state(2), own / "states-2.ckpt")
    assert found(True, None) == found(True, other) == own / "states-2.ckpt" and found(False, None) is None


@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled, but CUDA is not available")
def test_the_scaler_takes_up_a_waiting_state(monkeypatch: pytest.MonkeyPatch) -> None:
    from s3prl_ekd.bridge import scaler

    monkeypatch.setattr(torch.amp.GradScaler, "is_enabled", lambda self: True)
    taken = []
    monkeypatch.setattr(torch.amp.GradScaler, "load_state_dict", lambda self, given: taken.append(given))
    scaler.load_state_on_create({"scale": 4.0})
    made = scaler.TrackedGradScaler()
    assert scaler._current is not None and scaler._current() is made and taken == [{"scale": 4.0}]
    scaler.TrackedGradScaler()
    assert len(taken) == 1
    del made


def test_only_checkpoints_that_the_runner_has_named_are_counted_and_deleted(tmp_path: Path) -> None:
    """s3prl takes every states-*.ckpt for its own and fails at one without a number; in a folder [x] it finds none."""
    folder = tmp_path / "run [1]"
    folder.mkdir()
    keeper = checkpoints.AtomicCheckpoints()
    for step, name in (
        (2, "states-2k.ckpt"),
        (4, "states-4.ckpt"),
        (8, "states-epoch-2.ckpt"),
        (2, "states-copy-2.ckpt"),
    ):
        keeper.save(state(step), folder / name)
    assert sorted(keeper.glob(f"{folder}/states-*.ckpt")) == [
        f"{folder}/states-4.ckpt",
        f"{folder}/states-epoch-2.ckpt",
    ]
    keeper.remove(folder / "states-4.ckpt")
    keeper.save(state(12), folder / "states-12.ckpt")
    left = {path.name for path in folder.iterdir()}
    assert left == {"states-2k.ckpt", "states-copy-2.ckpt", "states-epoch-2.ckpt", "states-12.ckpt"}
