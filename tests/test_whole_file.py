"""A file is there whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from s3prl_ekd.whole_file import sweep, whole_file


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_at_the_end(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")
    with whole_file(path, durable) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["scores.json"]


def test_after_a_failure_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left"), whole_file(path) as partial:
        partial.write_text("ne")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["scores.json"]


def test_an_error_names_the_file_and_not_its_part(tmp_path: Path) -> None:
    """/dev/full is a disk that is always full; a write to it fails without a name."""
    path = tmp_path / "scores.json"
    with pytest.raises(OSError, match="No space left") as full, whole_file(path), open("/dev/full", "w") as disk:
        disk.write("new")
    with pytest.raises(FileNotFoundError) as gone, whole_file(tmp_path / "gone" / "x") as partial:
        partial.write_text("new")
    assert (full.value.filename, gone.value.filename) == (str(path), str(tmp_path / "gone" / "x"))
    with pytest.raises(OSError, match=r"^in a library's words$"), whole_file(path):
        raise OSError("in a library's words")


def test_a_kill_leaves_a_part_that_does_not_look_like_the_file(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal; from s3prl_ekd.whole_file import whole_file\n"
        f"with whole_file(pathlib.Path({str(tmp_path / 'states-1.ckpt')!r})) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".states-1.ckpt.tmp-")
    assert not list(tmp_path.glob("states-*.ckpt"))


def test_what_a_kill_left_under_our_number_is_not_written_to(tmp_path: Path) -> None:
    """It may be a second name of another file: dev-best.ckpt is made by a link."""
    (tmp_path / "states-1.ckpt").write_text("one")
    os.link(tmp_path / "states-1.ckpt", tmp_path / f".dev-best.ckpt.tmp-{os.getpid()}")
    with whole_file(tmp_path / "dev-best.ckpt") as partial:
        partial.write_text("two")
    assert (tmp_path / "states-1.ckpt").read_text() == "one"
    assert sorted(os.listdir(tmp_path)) == ["dev-best.ckpt", "states-1.ckpt"]


def test_sweep_removes_only_what_dead_processes_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, dead = tmp_path / f".states-1.ckpt.tmp-{os.getpid()}", tmp_path / ".states-1.ckpt.tmp-4194305"
    for path in (mine, dead):
        path.touch()
    sweep(tmp_path)
    assert mine.exists() and not dead.exists()
    dead.touch()
    sweep(tmp_path, "other.ckpt")
    assert dead.exists()
    sweep(tmp_path, "states-1.ckpt")
    assert mine.exists() and not dead.exists()

    def of_another_user(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "kill", of_another_user)
    sweep(tmp_path)
    assert mine.exists()
