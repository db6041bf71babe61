"""What an interrupted or refused `prepare` leaves behind: the earlier result, whole."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from manifest_lab import prepare_manifest, snapshot

from s3prl_ekd import doctor
from s3prl_ekd.cli import main
from s3prl_ekd.corpora import folders, layout_pretrain
from s3prl_ekd.errors import EkdError


def test_twice_is_the_same_and_tasks_add_up(manifests: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    arguments = ["prepare", "--out", str(out), "--manifest"]
    for task in ("asr", "sid", "er", "pretrain"):
        assert main([*arguments, str(manifests / f"{task}.tsv"), "--tasks", "pr,asr" if task == "asr" else task]) == 0
    first = snapshot(out)
    assert {name.split("/")[0] for name in first} == {
        *("pr", "pr.yaml", "asr", "asr.yaml", "sid", "sid.yaml", "er", "er.yaml", "pretrain", "pretrain.yaml")
    }
    for task in ("pretrain", "er", "sid", "asr"):
        assert main([*arguments, str(manifests / f"{task}.tsv"), "--tasks", "asr,pr" if task == "asr" else task]) == 0
    assert snapshot(out) == first


def test_a_failed_run_leaves_the_earlier_result(
    manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    prepare_manifest(manifests / "asr.tsv", out, ["pr", "asr"])
    first = snapshot(out)
    text = (manifests / "asr.tsv").read_text(encoding="utf-8").replace("A dog runs home", "A dog runs to Zanzibar")
    (manifests / "asr.tsv").write_text(text, encoding="utf-8")
    status = main(["prepare", "--manifest", str(manifests / "asr.tsv"), "--out", str(out), "--tasks", "pr,asr"])
    error = capsys.readouterr().err
    assert status == 2
    assert "2 of 7 words have no pronunciation: TO, ZANZIBAR" in error
    assert error.count("\n") == 1
    assert snapshot(out) == first
    lexicon = tmp_path / "more.txt"
    lexicon.write_text("TO\tT UW1\nZANZIBAR\tZ AE1 N Z IH0 B AA2 R\n")
    arguments = ["--lexicon", str(lexicon), "--out", str(out), "--tasks", "pr"]
    assert main(["prepare", "--manifest", str(manifests / "asr.tsv"), *arguments]) == 0
    assert "ZANZIBAR\tZ AE1" in (out / "pr" / "lexicon.txt").read_text()


def test_a_full_disk_leaves_the_pretraining_sets_and_their_root(
    manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second set comes from elsewhere, so that every path would be relative to another root."""
    out, elsewhere = tmp_path / "data", tmp_path / "more"
    prepare_manifest(manifests / "pretrain.tsv", out, name="one")
    first = snapshot(out)
    elsewhere.mkdir()
    soundfile.write(elsewhere / "a.wav", np.zeros(4000), 16000)
    for name in ("write_lengths", "write_pretrain_config"):
        with monkeypatch.context() as patch:
            original = getattr(layout_pretrain, name)

            def full(file: Path, *rest: Any, original: Callable[..., None] = original) -> None:
                original(file, *rest)
                raise OSError(28, "No space left on device", str(file))

            patch.setattr(layout_pretrain, name, full)
            assert main(["prepare", "audio", str(elsewhere), "--out", str(out)]) == 2
        assert "No space left on device" in capsys.readouterr().err
        assert snapshot(out) == first
    assert main(["prepare", "audio", str(elsewhere), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["pretrain", "pretrain.yaml"]
    assert {path.name for path in (out / "pretrain").iterdir()} == {
        *("one.csv", "more.csv", "root.txt", ".s3prl-ekd.json")
    }


@pytest.mark.parametrize("name", ["root.txt", "valid.txt"])
def test_a_damaged_folder_of_pretraining_sets_is_one_line(
    name: str, manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, again = tmp_path / "data", ("prepare", "--manifest", str(manifests / "pretrain.tsv"), "--out")
    prepare_manifest(manifests / "pretrain.tsv", out)
    (out / "pretrain" / name).write_bytes(b"\xff\0\xfe")
    assert main([*again, str(out)]) == 2
    assert f"error: {out / 'pretrain' / name}: not the text that prepare wrote" in capsys.readouterr().err
    if name == "valid.txt":
        (row,) = [row for row in doctor.prepared(out) if row.what == "pretrain"]
        assert row.state == "broken" and f"{name}: not the text" in row.found


def test_pretraining_sets_may_lie_on_another_disk(
    manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, out = tmp_path / "other disk", tmp_path / "data"
    disk.mkdir()
    out.mkdir()
    (out / "pretrain").symlink_to(disk)
    replace = os.replace

    def on_one_disk(source: Any, target: Any) -> None:
        if len({disk in Path(path).parent.resolve().joinpath("file").parents for path in (source, target)}) == 2:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", on_one_disk)
    prepare_manifest(manifests / "pretrain.tsv", out, name="one")
    assert sorted(path.name for path in out.iterdir()) == ["pretrain", "pretrain.yaml"]
    assert (disk / "one.csv").is_file()


def test_two_calls_at_a_time_write_one_after_the_other(manifests: Path, tmp_path: Path) -> None:
    """Side by side, of two pretraining sets one was missing from the configuration."""
    out = tmp_path / "data"
    with folders.turn_in(out):
        second = threading.Thread(target=prepare_manifest, args=(manifests / "pretrain.tsv", out))
        second.start()
        second.join(0.5)
        assert second.is_alive()
        assert not list(out.iterdir())
    second.join(60)
    assert sorted(path.name for path in out.iterdir()) == ["pretrain", "pretrain.yaml"]


def fill(folder: Path, text: str) -> None:
    with folders.fresh_folder(folder, folder) as fresh:
        (fresh / "file").write_text(text)


KILLED = """
import os, pathlib, shutil, sys
from s3prl_ekd.corpora.folders import fresh_folder

left = [int(sys.argv[2])]

def killed_at_its_turn(original):
    def act(*args, **kwargs):
        if left[0] == 0:
            os._exit(9)
        left[0] -= 1
        return original(*args, **kwargs)
    return act

pathlib.Path.rename = killed_at_its_turn(pathlib.Path.rename)
shutil.rmtree = killed_at_its_turn(shutil.rmtree)
folder = pathlib.Path(sys.argv[1])
with fresh_folder(folder, folder) as fresh:
    (fresh / "file").write_text("new")
"""


def test_a_kill_at_any_moment_loses_no_folder(tmp_path: Path) -> None:
    """Before each rename and removal of a replacement the process is ended; the next call finds the old or the new."""
    found, moment, status = [], 0, 9
    while status == 9:
        folder = tmp_path / str(moment) / "pr"
        fill(folder, "old")
        status = subprocess.run([sys.executable, "-c", KILLED, folder, str(moment)], timeout=120).returncode
        with pytest.raises(EkdError, match="stop"), folders.fresh_folder(folder, folder):
            found.append((folder / "file").read_text())
            raise EkdError("stop")
        assert (folder / "file").read_text() == found[-1]
        assert [path.name for path in folder.parent.iterdir()] == ["pr"]
        moment += 1
    assert status == 0
    assert found == ["old"] * 3 + ["new"] * (moment - 3)  # the first removal and two renames come before it is there
    assert moment > 4


def test_a_linked_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "other disk" / "pr").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pr").symlink_to(tmp_path / "other disk" / "pr")
    for text in ("one", "two"):
        fill(tmp_path / "data" / "pr", text)
        assert (tmp_path / "data" / "pr").is_symlink()
        assert (tmp_path / "other disk" / "pr" / "file").read_text() == text
    assert [path.name for path in (tmp_path / "other disk").iterdir()] == ["pr"]


def test_a_folder_that_is_not_ours_is_never_replaced(manifests: Path, tmp_path: Path) -> None:
    precious = tmp_path / "data" / "sid" / "speech.wav"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    with pytest.raises(EkdError, match="was not made by prepare"):
        prepare_manifest(manifests / "sid.tsv", tmp_path / "data", ["sid"])
    assert precious.read_text() == "mine"


def test_what_a_task_is_prepared_from_is_not_replaced_by_it(
    manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A converted file is nowhere else, and the new folder's link led to where it had been."""
    out = tmp_path / "data"
    prepare_manifest(manifests / "asr.tsv", out, ["pr"])
    again = ["path\tsplit\tspeaker\ttext"]
    for file in sorted((out / "pr" / "LibriSpeech").rglob("*.flac")):
        again.append(f"{file}\t{file.relative_to(out / 'pr' / 'LibriSpeech').parts[0]}\tann\thome")
    (tmp_path / "again.tsv").write_text("\n".join(again) + "\n")
    first = snapshot(out)
    words = ["prepare", "--manifest", str(tmp_path / "again.tsv"), "--tasks", "pr", "--out"]
    assert main([*words, str(out)]) == 2
    assert f"is in {out / 'pr'}, which this call replaces; choose another --out" in capsys.readouterr().err
    assert snapshot(out) == first
    assert main([*words, str(tmp_path / "other")]) == 0


def test_a_corpus_in_the_folder_of_its_task_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    lines = ["path\tsplit\taction\tobject\tlocation"]
    for split in ("train", "dev", "test"):
        soundfile.write(tmp_path / f"{split}.wav", np.zeros(4000), 8000)
        lines.append(f"{split}.wav\t{split}\tbring\tshoes\there")
    (tmp_path / "manifest.tsv").write_text("\n".join(lines) + "\n")
    prepare_manifest(tmp_path / "manifest.tsv", out)
    first = snapshot(out)
    assert main(["prepare", "fluent_commands", str(out / "ic"), "--out", str(out)]) == 2
    assert f"{out / 'ic'}: is in {out / 'ic'}, which this call replaces" in capsys.readouterr().err
    assert snapshot(out) == first
    assert main(["prepare", "fluent_commands", str(out / "ic"), "--out", str(tmp_path / "other")]) == 0


def test_audio_in_the_folder_of_pretraining_sets_stays(
    manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second set that was put beside the first one's table, whose call would have removed it."""
    out = tmp_path / "data"
    prepare_manifest(manifests / "pretrain.tsv", out)
    more = out / "pretrain" / "more"
    more.mkdir()
    soundfile.write(more / "b.flac", np.zeros(4000), 16000)
    (more / "manifest.tsv").write_text("path\nb.flac\n")
    first = snapshot(out)
    assert main(["prepare", "--manifest", str(more / "manifest.tsv"), "--tasks", "pretrain", "--out", str(out)]) == 2
    assert f"manifest.tsv:2: b.flac: is in {out / 'pretrain'}, which this call replaces" in capsys.readouterr().err
    (more / "b.flac").rename(tmp_path / "b.flac")
    (more / "manifest.tsv").write_text(f"path\n{tmp_path / 'b.flac'}\n")
    assert main(["prepare", "--manifest", str(more / "manifest.tsv"), "--tasks", "pretrain", "--out", str(out)]) == 2
    assert f"{more / 'manifest.tsv'}: is in {out / 'pretrain'}, which this call replaces" in capsys.readouterr().err
    (more / "manifest.tsv").write_text("path\nb.flac\n")
    (tmp_path / "b.flac").rename(more / "b.flac")
    assert snapshot(out) == first
