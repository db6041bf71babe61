"""``prepare librispeech`` on a miniature."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from corpora_lab import audio, prepare

from s3prl_ekd.corpora.length_csv import read_lengths
from s3prl_ekd.corpora.librispeech import prepare_librispeech


def test_librispeech_is_used_in_place(
    librispeech: Path, lexicon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    assert prepare("librispeech", librispeech, "--out", out, "--lexicon", lexicon) == 0
    assert "train-clean-360, train-other-500 is not there" in capsys.readouterr().out.replace("\n", " ")
    corpus = yaml.safe_load((out / "pr.yaml").read_text())["downstream_expert"]["corpus"]
    assert corpus["path"] == str(librispeech)
    assert (corpus["train"], corpus["dev"], corpus["test"]) == (["train-clean-100"], ["dev-clean"], ["test-clean"])
    assert Path(corpus["lexicon"][0]).read_text() == lexicon.read_text()
    data = yaml.safe_load((out / "asr.yaml").read_text())["downstream_expert"]["datarc"]
    lengths = read_lengths(Path(data["bucket_file"]) / "dev-clean.csv")
    assert [n for _, n in lengths] == [4200, 4100, 4000]
    assert all((Path(data["libri_root"]) / path).is_file() for path, _ in lengths)
    runner = yaml.safe_load((out / "pretrain.yaml").read_text())["pretrain_expert"]["datarc"]
    assert runner["sets"] == ["train-clean-100"] and runner["valid_sets"] == ["dev-clean"]
    for path, _ in read_lengths(out / "pretrain" / "train-clean-100.csv"):
        assert Path(runner["libri_root"], path).is_file()
    assert prepare("librispeech", librispeech.parent, "--out", out, "--lexicon", lexicon) == 0  # the folder above it


def test_one_training_split_in_the_folder_above_is_enough_for_pretraining(librispeech: Path, tmp_path: Path) -> None:
    home = tmp_path / "corpora" / "LibriSpeech"
    home.mkdir(parents=True)
    (librispeech / "train-clean-100").rename(home / "train-clean-360")
    assert prepare("librispeech", home.parent, "--out", tmp_path / "data", "--tasks", "pretrain") == 0
    assert (tmp_path / "data" / "pretrain" / "train-clean-360.csv").is_file()


def test_transcripts_in_lower_case_and_with_punctuation_are_spelled_anew(
    librispeech: Path,
    lexicon: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """s3prl reads transcripts as they are: there is no word in them, for PR's lexicon and for ASR's dictionary."""
    for file in librispeech.rglob("*.trans.txt"):
        file.write_text(file.read_text().replace("HELLO WORLD", "Hello, world."))
    file = librispeech / "train-clean-100" / "1" / "7" / "1-7.trans.txt"
    file.write_text(file.read_text().replace("1-7-0001 Hello", "1-7-0001 99 hello"))
    before = {file: file.read_bytes() for file in librispeech.rglob("*") if file.is_file()}
    out = tmp_path / "data"
    assert prepare("librispeech", librispeech, "--out", out, "--lexicon", lexicon, "--tasks", "pr,asr") == 0
    printed = capsys.readouterr().out
    for task in ("pr", "asr"):
        note = f"{task}: 8 of 8 transcripts are respelled in A-Z and ' under {task}/LibriSpeech, first: 'Hello, world.'"
        assert f"{note} as 'HELLO WORLD'" in printed
    assert "1-7-0001.flac: '99 hello, world.')" in caplog.text
    assert {file: file.read_bytes() for file in librispeech.rglob("*") if file.is_file()} == before
    pr = yaml.safe_load((out / "pr.yaml").read_text())["downstream_expert"]["corpus"]
    assert Path(pr["lexicon"][0]).read_text() == lexicon.read_text()
    for name, split in (("train", "train-clean-100"), ("dev", "dev-clean"), ("test", "test-clean")):
        assert pr[name] == [name]
        audio_files = sorted((Path(pr["path"]) / name).rglob("*.flac"))
        assert len(audio_files) == 3 - (name == "train")
        assert all(file.resolve().is_relative_to(librispeech / split) for file in audio_files)
        [text] = (Path(pr["path"]) / name).rglob("*.trans.txt")
        assert {line.partition(" ")[2] for line in text.read_text().splitlines()} == {"HELLO WORLD"}
        assert len(read_lengths(out / "asr" / "len_for_bucket" / f"{name}.csv")) == len(audio_files)


def test_empty_transcripts_and_blank_lines_do_not_reach_s3prl(
    librispeech: Path, lexicon: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """s3prl's ASR takes the first word of every line, and an empty text for one of silence."""
    words = ("librispeech", librispeech, "--lexicon", lexicon, "--tasks", "pr,asr", "--out")
    train = librispeech / "train-clean-100" / "1" / "7" / "1-7.trans.txt"
    whole = train.read_text()
    for text, left in ((f"{whole}\n", 3), (whole.replace(" HELLO WORLD", "", 1), 2)):
        train.write_text(text)
        out = tmp_path / f"data-{left}"
        assert prepare(*words, out) == 0
        data = yaml.safe_load((out / "asr.yaml").read_text())["downstream_expert"]["datarc"]
        assert len(read_lengths(Path(data["bucket_file"]) / "train.csv")) == left
        (file,) = Path(data["libri_root"], "train").rglob("*.trans.txt")
        assert [line.partition(" ")[2] for line in file.read_text().splitlines()] == ["HELLO WORLD"] * left
    assert "1 utterances left out: their text is empty" in caplog.text


def test_two_splits_may_number_their_speakers_alike(librispeech: Path, lexicon: Path, tmp_path: Path) -> None:
    """An utterance of train got the transcript of that of its name in test."""
    for number, split in enumerate(["train-clean-100", "dev-clean", "test-clean"], start=1):
        said = ("Hello", "world", "hello hello")[number - 1]
        for file in (librispeech / split / str(number) / "7").iterdir():
            if file.suffix == ".txt":
                file.write_text(file.read_text().replace("HELLO WORLD", said).replace(f"{number}-7", "1-7"))
            file.rename(file.with_name(file.name.replace(f"{number}-7", "1-7")))
        (librispeech / split / str(number)).rename(librispeech / split / "1")
    out = tmp_path / "data"
    assert prepare("librispeech", librispeech, "--out", out, "--lexicon", lexicon, "--tasks", "pr,asr") == 0
    for task in ("pr", "asr"):
        for split, said in (("train", "HELLO"), ("dev", "WORLD"), ("test", "HELLO HELLO")):
            (text,) = (out / task / "LibriSpeech" / split).rglob("*.trans.txt")
            assert [line.partition(" ")[2] for line in text.read_text().splitlines()] == [said] * 3


def test_the_closing_table_counts_what_the_corpus_holds(librispeech: Path, lexicon: Path, tmp_path: Path) -> None:
    tasks = ("pr", "asr", "pretrain")
    for result in prepare_librispeech(librispeech, tmp_path / "data", tasks, [lexicon]):
        used = len(result.splits)
        assert used == (2 if result.task == "pretrain" else 3) and result.utterances == (3,) * used  # no test-clean
        assert result.minutes == pytest.approx(used * (4000 + 4100 + 4200) / 16_000 / 60) and result.speakers == used
        assert any("lexicon: 2 words" in note for note in result.notes) == (result.task == "pr")


def test_librispeech_without_dev_clean_has_no_validation_loss_and_says_so(
    librispeech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (librispeech / "dev-clean").rename(tmp_path / "away")
    assert prepare("librispeech", librispeech, "--out", tmp_path / "data", "--tasks", "pretrain") == 0
    assert "no speech is held out, so there will be no validation loss" in " ".join(capsys.readouterr().out.split())
    assert "valid_sets" not in (tmp_path / "data" / "pretrain.yaml").read_text()


def test_librispeech_errors_name_what_is_missing(
    librispeech: Path, lexicon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (librispeech / "dev-clean").rename(tmp_path / "away")
    out = tmp_path / "data"
    assert prepare("librispeech", librispeech, "--out", out, "--lexicon", lexicon) == 2
    assert "LibriSpeech split dev-clean is missing" in capsys.readouterr().err
    (tmp_path / "away").rename(librispeech / "dev-clean")
    audio(librispeech / "dev-clean" / "2" / "7" / "2-7-0009.flac")
    assert prepare("librispeech", librispeech, "--out", out, "--lexicon", lexicon, "--tasks", "asr") == 2
    assert capsys.readouterr().err.endswith("2-7-0009.flac: no transcript for it in its .trans.txt\n")
    assert prepare("librispeech", lexicon.parent / "nowhere", "--out", out) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert prepare("librispeech", librispeech, "--out", out, "--tasks", "sid") == 2
    assert "librispeech is for pr, asr, pretrain, not for sid" in capsys.readouterr().err
    assert prepare("librispeech", librispeech, "--out", out, "--name", "x") == 2
    assert "--name: is for audio and manifest, not for librispeech" in capsys.readouterr().err
    assert prepare("audio", librispeech, "--out", out, "--allow-missing") == 2
    assert "--allow-missing: is for voxceleb1, not for audio" in capsys.readouterr().err
    for file in (librispeech / "dev-clean").rglob("*.flac"):
        file.rename(file.with_suffix(".wav"))
    assert prepare("librispeech", librispeech, "--out", out, "--tasks", "asr", "--lexicon", lexicon) == 2
    assert "dev-clean: no .flac file in it" in capsys.readouterr().err


def test_librispeech_notes_what_a_checkout_or_s3prl_would_leave_out(
    librispeech: Path, lexicon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Links to folders, which a git checkout's PR code does not follow, and .FLAC, which nobody looks for."""
    out, words = tmp_path / "data", ["--lexicon", lexicon, "--tasks", "pr,asr"]
    assert prepare("librispeech", librispeech, "--out", out, *words) == 0
    printed = capsys.readouterr().out
    assert "behind links" not in printed
    assert ".FLAC" not in printed
    moved = tmp_path / "disk 2" / "1"
    moved.parent.mkdir()
    (librispeech / "train-clean-100" / "1").rename(moved)
    (librispeech / "train-clean-100" / "1").symlink_to(moved)
    upper = librispeech / "dev-clean" / "2" / "7" / "2-7-0002.flac"
    upper.rename(upper.with_suffix(".FLAC"))
    assert prepare("librispeech", librispeech, "--out", out, *words) == 0
    printed = capsys.readouterr().out
    assert "pr: 3 files lie behind links to folders" in printed
    assert "asr: 3 files lie behind" not in printed
    for task in ("pr", "asr"):
        assert f"{task}: 1 files left out: they end in .FLAC" in printed
    assert "train-clean-100 3, dev-clean 2, test-clean 3" in " ".join(printed.split())
    upper.with_suffix(".FLAC").rename(upper)
    whole = librispeech.rename(tmp_path / "disk 2" / "LibriSpeech")
    librispeech.symlink_to(whole)  # this one every list follows
    (librispeech / "train-clean-100" / "1").unlink()
    moved.rename(librispeech / "train-clean-100" / "1")
    assert prepare("librispeech", librispeech, "--out", out, *words) == 0
    assert "behind links" not in capsys.readouterr().out


def test_a_transcript_of_another_encoding_is_one_line(
    librispeech: Path, lexicon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = librispeech / "dev-clean" / "2" / "7" / "2-7.trans.txt"
    file.write_bytes(file.read_bytes() + "2-7-0003 CAFÉ\n".encode("latin-1"))
    assert prepare("librispeech", librispeech, "--out", tmp_path / "data", "--lexicon", lexicon) == 2
    error = capsys.readouterr().err
    assert f"{file}: not UTF-8 text" in error
    assert error.count("\n") == 1
