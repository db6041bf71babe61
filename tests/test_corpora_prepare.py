"""The command `prepare`: what it refuses before anything is written, what it counts, what it says."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
from manifest_lab import prepare_manifest

from s3prl_ekd.cli import main
from s3prl_ekd.corpora import command
from s3prl_ekd.errors import EkdError


def test_a_task_given_twice_is_refused_before_anything_is_written(
    manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "data", tmp_path / "other" / "manifest.tsv"
    other.parent.mkdir()
    rows = (manifests / "sid.tsv").read_text().replace("audio/", f"{manifests}/audio/")
    other.write_text(rows)
    both = [str(manifests / "sid.tsv"), str(other)]
    assert main(["prepare", "--manifest", *both, "--tasks", "sid", "--out", str(out)]) == 2
    assert f"{both[0]} and {both[1]}: both are for task sid" in capsys.readouterr().err
    same = [str(manifests / "pretrain.tsv"), str(manifests / "sid.tsv")]  # one folder, one name
    assert main(["prepare", "--manifest", *same, "--tasks", "pretrain", "--out", str(out)]) == 2
    assert "both are for the pretraining set corpus" in capsys.readouterr().err
    voxceleb = ["voxceleb1", str(manifests), "--split-file", str(other)]
    assert main(["prepare", *voxceleb, "--manifest", both[0], "--tasks", "sid", "--out", str(out)]) == 2
    assert f"{both[0]} and voxceleb1 {manifests}: both are for task sid" in capsys.readouterr().err
    assert not out.exists()
    assert main(["prepare", "--manifest", *both, "--tasks", "pretrain", "--out", str(out)]) == 0
    assert {file.stem for file in (out / "pretrain").glob("*.csv")} == {"corpus", "corpus-dev", "other", "other-dev"}


def test_the_next_commands_come_in_the_order_in_which_they_are_run(
    manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--manifest", str(manifests / "asr.tsv"), "--tasks", "asr,pr,pretrain", "--out", str(tmp_path / "data")]
    assert main(["prepare", *words]) == 0
    lines = capsys.readouterr().out.partition("next:\n")[2].splitlines()
    commands = [shlex.split(line) for line in lines]
    assert [words[0] for words in commands] == ["run_pretrain.py"] + ["run_downstream.py"] * (len(commands) - 1)
    name = commands[0][commands[0].index("-n") + 1]
    tasks = [words[words.index("-n") + 1].removeprefix(f"{name}-") for words in commands[1:]]
    assert tasks == ["pr", "asr"]
    assert all(words[words.index("-k") + 1] == f"result/pretrain/{name}" for words in commands[1:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split-file", "x"], "--split-file: is for voxceleb1, not for manifest"),
        (["librispeech", "."], "--tasks: librispeech is for pr, asr, pretrain, not for sid"),
        (["--tasks", ""], "--tasks: empty; expected some of"),
        (["voxceleb1", "nowhere", "--split-file", "x"], "nowhere: no such folder"),
        (["voxceleb1", "."], "--split-file is missing"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    out = tmp_path / "data"
    assert main(["prepare", "--manifest", str(manifests / "sid.tsv"), "--tasks", "sid", "--out", str(out), *words]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", ["../evil", "a/b", ".", "..", ".hidden", "a\\b", "a\nb"])
def test_a_set_is_named_inside_its_folder(
    manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for words in (["audio", str(manifests)], ["--manifest", str(manifests / "pretrain.tsv")]):
        assert main(["prepare", *words, "--name", name, "--out", str(tmp_path / "data")]) == 2
        assert f"--name {name!r}: no name for a pretraining set" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.csv"))


def test_audio_of_other_types_is_counted_and_hidden_folders_are_not_entered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "talks"
    for path in ("a.wav", "deep/b.FLAC", ".snapshot/a.wav", "deep/.Trash/c.wav", "deep/._b.wav"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / path, np.zeros(4000), 16000, format=Path(path).suffix[1:])
    for path in ("c.m4a", "deep/d.M4A", "e.webm", ".snapshot/c.m4a", "notes.txt"):
        (folder / path).write_bytes(b"x")
    assert main(["prepare", "audio", str(folder), "--out", str(tmp_path / "data")]) == 0
    shown = capsys.readouterr().out
    assert "pretrain: 3 files of other types left out (.m4a, .webm)\n" in shown
    assert "talks 2 " in shown


def test_the_closing_table_counts_what_the_manifest_holds(manifests: Path, tmp_path: Path) -> None:
    minutes = sum(soundfile.info(file).duration for file in (manifests / "audio").rglob("clip*")) / 60
    splits, folds = ("train", "dev", "test"), ("fold1", "fold2", "fold3")
    for task, names in (("asr", splits), ("sid", splits), ("er", folds), ("pretrain", ("corpus",))):
        (result,) = prepare_manifest(manifests / f"{task}.tsv", tmp_path / "data", [task])
        assert (result.splits, result.utterances) == (names, (30,) if task == "pretrain" else (12, 9, 9))
        assert result.minutes == pytest.approx(minutes, rel=1e-3) and result.speakers == 3


def test_what_a_split_asks_for_in_vain_is_said(manifests: Path, tmp_path: Path) -> None:
    """Speakers whom training does not know, and speakers, emotions and folds that are not kept apart."""
    rows = (manifests / "sid.tsv").read_text().replace("test\tbob.1", "test\teve")
    (manifests / "sid.tsv").write_text(rows)
    (sid,) = prepare_manifest(manifests / "sid.tsv", tmp_path / "data", ["sid"])
    assert sid.notes[1:] == ("1 speakers of test are not in train and cannot be identified: eve",)
    (asr,) = prepare_manifest(manifests / "asr.tsv", tmp_path / "data", ["asr"])
    assert "3 of 3 test speakers are also in train" in asr.notes
    (er,) = prepare_manifest(manifests / "er.tsv", tmp_path / "data", ["er"])
    assert "3 speakers are in several folds, first: ann" in er.notes
    for name in ("fold", "emotion"):
        header, *rows = (manifests / "er.tsv").read_text().splitlines()
        column = header.split("\t").index(name)
        same = ["\t".join([*(cells := row.split("\t"))[:column], "1", *cells[column + 1 :]]) for row in rows]
        (manifests / "one.tsv").write_text("\n".join([header, *same]))
        with pytest.raises(
            EkdError, match="(1 folds and 4|3 folds and 1) emotions; task er needs two of each at least"
        ):
            prepare_manifest(manifests / "one.tsv", tmp_path / "data", ["er"])


def test_a_set_in_brackets_is_shown_as_it_is_called(
    manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """rich takes them for a style."""
    words = ["--manifest", str(manifests / "pretrain.tsv"), "--name", "talks [clean]", "--out", str(tmp_path / "data")]
    assert main(["prepare", *words]) == 0
    assert "talks [clean] 30" in capsys.readouterr().out


@pytest.mark.parametrize("gpu", [False, True])
def test_the_next_command_can_be_pasted(
    manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    monkeypatch.setattr(command, "shows_gpu", lambda: gpu)
    for result in prepare_manifest(manifests / "asr.tsv", tmp_path / "my data", ["asr", "pretrain"]):
        words = shlex.split(command.next_command(result))
        assert words[words.index("-c") + 1 :] == [str(result.config)] + ([] if gpu else ["--device", "cpu"])


def test_a_name_that_is_too_long_is_the_one_that_is_named(
    manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the audio that a link of that name was to lead to."""
    table = manifests / "er.tsv"
    table.write_text(table.read_text().replace("ann", "a" * 300))
    assert main(["prepare", "--manifest", str(table), "--out", str(tmp_path / "data")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'data' / '.er.partial'}/") and last.endswith(": File name too long")


def test_what_cannot_be_written_is_one_line(
    manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["prepare", "--manifest", str(manifests / "sid.tsv"), "--out", str(tmp_path / "file")]) == 2
    assert main(["prepare", "--manifest", str(manifests / "sid.tsv"), "--out", "/proc/none"]) == 2
    words = ["--manifest", str(manifests / "sid.tsv"), "--out", str(tmp_path / "x")]
    assert main(["prepare", *words, "--tasks", "vad"]) == 2
    assert main(["prepare", "--out", str(tmp_path / "x")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if line.startswith("error: ")]) == 4
    assert "Traceback" not in "".join(errors)
