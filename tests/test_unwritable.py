"""A place that cannot be written is one line and status 2, for every command that writes."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from export_student import write_student

from s3prl_ekd import cli
from s3prl_ekd.errors import EkdError
from s3prl_ekd.writable import empty_folder, output_file


@pytest.mark.parametrize("place", ["file", "/proc", "/proc/new"])
@pytest.mark.parametrize(
    "words", ["export superb --ckpt", "export hf --ckpt", "export onnx --ckpt", "export public --runs", "merge",
              "report", "demo"],
)  # fmt: skip
def test_below_a_file_or_where_nothing_can_be_made(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: str, place: str
) -> None:
    if place.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("no /proc here")
    checkpoint = write_student(tmp_path / "run" / "states-1.ckpt")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "heads": {"a.1": {"l1": 1.0}}}\n')
    (tmp_path / "file").write_text("here first")
    out = {"export onnx --ckpt": "x.onnx", "export public --runs": "x.zip", "report": "x.html"}.get(words, "x")
    sources = {"report": [checkpoint.parent], "merge": [checkpoint, checkpoint], "demo": []}.get(words, [checkpoint])
    out = str(tmp_path / place / out)
    assert cli.main([*words.split(), *map(str, sources), "--out", out]) == 2
    *_, last = capfd.readouterr().err.strip().splitlines()
    assert last.startswith(f"error: --out {out}: cannot be ")
    assert (tmp_path / "file").read_text() == "here first"


def fail(code: int, filename: str | None) -> None:
    raise OSError(code, os.strerror(code), filename)


def test_what_the_disk_refuses_is_the_users_and_the_rest_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from s3prl_ekd.macs import command as macs_command

    for code in (errno.EROFS, errno.ENOSPC, errno.EACCES):
        monkeypatch.setattr(macs_command, "run", lambda args, code=code: fail(code, "/there"))
        assert cli.main(["macs", "x"]) == 2
        assert capsys.readouterr().err == f"error: /there: {os.strerror(code)}\n"
    monkeypatch.setattr(macs_command, "run", lambda args: fail(errno.ENOSPC, None))
    assert cli.main(["macs", "x"]) == 2
    assert capsys.readouterr().err == f"error: {os.strerror(errno.ENOSPC)}\n"
    for code, name in ((errno.EBADF, "/there"), (errno.ENOENT, "/there")):
        monkeypatch.setattr(macs_command, "run", lambda args, code=code, name=name: fail(code, name))
        with pytest.raises(OSError):
            cli.main(["macs", "x"])


def test_of_a_link_in_a_folder_that_is_emptied_only_the_link_goes(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for folder in (data, out / "below"):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    (out / "file").touch()
    (out / "link").symlink_to(data)
    (out / "broken").symlink_to(tmp_path / "none")
    empty_folder(out)
    assert out.is_dir() and not list(out.iterdir()) and (data / "file").is_file()


def test_output_files_are_seen_to_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert output_file(tmp_path / "new" / "x.zip", ".zip").parent.is_dir()
    with pytest.raises(EkdError, match=r"x.txt: expected a file name ending in .zip"):
        output_file(tmp_path / "x.txt", ".zip")
    with pytest.raises(EkdError, match="is a folder; name the file to write"):
        output_file(tmp_path / "new")
    (tmp_path / "there").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path / "there" and mode == os.W_OK))
    with pytest.raises(EkdError, match=r"--out \S+/there: no permission to write there"):
        output_file(tmp_path / "there")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: fail(errno.EROFS, str(dir)))
    with pytest.raises(EkdError, match=r"--out \S+/x: cannot be written to \(Read-only file system\)"):
        output_file(tmp_path / "x")
