"""LibriSpeech, VoxCeleb1 and IEMOCAP in made miniatures of their own layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from s3prl_ekd.cli import main
from s3prl_ekd.corpora.length_csv import read_lengths
from s3prl_ekd.corpora.probe import samples_or_reason


def audio(file: Path, samples: int = 4000) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, 0.1 * np.random.default_rng(samples).standard_normal(samples), 16000)
    return file


def prepare(*arguments: object) -> int:
    return main(["prepare", *map(str, arguments)])


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    root = tmp_path / "LibriSpeech"
    for number, split in enumerate(["train-clean-100", "dev-clean", "test-clean"], start=1):
        folder = root / split / str(number) / "7"
        for index in range(3):
            audio(folder / f"{number}-7-{index:04d}.flac", 4000 + 100 * index)
        lines = [f"{number}-7-{index:04d} HELLO WORLD\n" for index in range(3)]
        (folder / f"{number}-7.trans.txt").write_text("".join(lines))
    return root


@pytest.fixture
def lexicon(tmp_path: Path) -> Path:
    file = tmp_path / "lexicon.txt"
    file.write_text("HELLO\tHH AH0 L OW1\nWORLD\tW ER1 L D\n")
    return file


@pytest.fixture
def voxceleb1(tmp_path: Path) -> tuple[Path, Path]:
    """Two speakers with a clip for train, dev and test each, in two parts; and the split file."""
    root, split = tmp_path / "VoxCeleb1", tmp_path / "iden_split.txt"
    entries = [(part, f"id1000{speaker}/video/{part:05d}.wav") for speaker in (1, 2) for part in (1, 2, 3)]
    for index, (_, path) in enumerate(entries):
        audio(root / ("dev" if index % 2 else "test") / "wav" / path)
    split.write_text("".join(f"{part} {path}\n" for part, path in entries))
    return root, split


EMOTIONS = ["neu", "hap", "exc", "ang", "sad", "fru", "xxx"]


@pytest.fixture
def iemocap(tmp_path: Path) -> Path:
    """Five sessions of one dialog with an utterance for each label, and one that is labelled and has no wav."""
    root = tmp_path / "IEMOCAP"
    for session in range(1, 6):
        dialog = f"Ses0{session}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n", "\n"]
        for index, emotion in enumerate(EMOTIONS):
            name = f"{dialog}_F{index:03d}"
            audio(root / f"Session{session}" / "sentences" / "wav" / dialog / f"{name}.wav")
            lines += [f"[6.2901 - 8.2357]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]\n", "C-E2:\tNeutral;\t()\n", "\n"]
        lines.append(f"[6.2901 - 8.2357]\t{dialog}_F999\tneu\t[2.5, 2.5, 2.5]\n")  # no such wav
        labels = root / f"Session{session}" / "dialog" / "EmoEvaluation"
        (labels / "Categorical").mkdir(parents=True)
        (labels / f"{dialog}.txt").write_text("".join(lines))
        (labels / f"._{dialog}.txt").write_bytes(b"\x00\x05\x16\x07")
    return root


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
        note = (
            f"{task}: 8 of 8 transcripts are spelled anew in A-Z and ' under {task}/LibriSpeech, first: 'Hello, world.'"
        )
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


def test_librispeech_without_dev_clean_has_no_validation_loss_and_says_so(
    librispeech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (librispeech / "dev-clean").rename(tmp_path / "away")
    assert prepare("librispeech", librispeech, "--out", tmp_path / "data", "--tasks", "pretrain") == 0
    assert "no dev-clean in it, so there will be no validation loss" in " ".join(capsys.readouterr().out.split())
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
    assert "2-7-0009.flac: no transcript" in capsys.readouterr().err
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


@pytest.mark.parametrize("form", [(44100, 1), (16000, 2)])
def test_audio_that_s3prl_would_read_wrongly_is_refused(
    librispeech: Path,
    lexicon: Path,
    voxceleb1: tuple[Path, Path],
    iemocap: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: tuple[int, int],
) -> None:
    """s3prl takes samples as they are; pretraining reads by our own reader, which converts."""
    rate, channels = form
    out = tmp_path / "data"
    root, split = voxceleb1
    calls = {
        librispeech: ("librispeech", librispeech, "--lexicon", lexicon, "--tasks", "pr,asr"),
        root: ("voxceleb1", root, "--split-file", split),
        iemocap: ("iemocap", iemocap),
    }
    for corpus, words in calls.items():
        assert prepare(*words, "--out", out) == 0
        suffix = "flac" if corpus == librispeech else "wav"
        first, second = sorted(corpus.rglob(f"*.{suffix}"))[:2]
        for file in (first, second):
            soundfile.write(file, 0.1 * np.ones((8000, channels)), rate)
        capsys.readouterr()
        assert prepare(*words, "--out", tmp_path / "none") == 2
        error = capsys.readouterr().err
        assert f"{first}: {rate} Hz, {channels} channel" in error
        assert "; 2 of " in error
        assert "(--manifest), which converts" in error
        assert error.count("\n") == 1
    assert not list((tmp_path / "none").iterdir())
    speech = librispeech / "train-clean-100" / "1" / "7" / "1-7-0000.flac"
    soundfile.write(speech, 0.1 * np.ones((8000, channels)), rate)
    assert prepare("librispeech", librispeech, "--tasks", "pretrain", "--out", out) == 0


@pytest.mark.parametrize("damage", ["cut", "short"])
def test_a_clip_that_would_end_a_training_is_named(
    librispeech: Path, lexicon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """A copy that was cut short has a sound header; s3prl's upstreams need a frame. Pretraining leaves both out."""
    file, out = librispeech / "train-clean-100" / "1" / "7" / "1-7-0001.flac", tmp_path / "data"
    audio(file, 40_000 if damage == "cut" else 320)
    if damage == "cut":
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    reason = "the audio data is damaged (its end is missing)" if damage == "cut" else "only 0.020 s long"
    assert prepare("librispeech", librispeech, "--out", out, "--lexicon", lexicon, "--tasks", "pr,asr") == 2
    assert f"{file}: {reason}" in capsys.readouterr().err
    assert prepare("librispeech", librispeech, "--out", out, "--tasks", "pretrain") == 0
    assert "1 of 3 files left out" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_wav_that_was_cut_short_is_named(tmp_path: Path, subtype: str) -> None:
    """libsndfile takes it for a shorter clip. Headers of streams promise nothing, and a chunk more is no harm."""
    file = tmp_path / "clip.wav"
    soundfile.write(file, 0.1 * np.ones(16_000), 16_000, subtype=subtype)
    content = file.read_bytes()
    assert samples_or_reason(file) == 16_000
    file.write_bytes(content + b"\0" * 50)
    assert samples_or_reason(file) == 16_000
    file.write_bytes(content[:-9_000])
    assert samples_or_reason(file) == f"{file}: the audio data is damaged (its end is missing)"
    for said in (b"\xff\xff\xff\xff", b"\0\0\0\0"):
        file.write_bytes(content[:4] + said + content[8:])
        assert samples_or_reason(file) == 16_000


def test_voxceleb1_split_file_is_checked_against_the_wavs(
    voxceleb1: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root, split), out = voxceleb1, tmp_path / "data"
    assert prepare("voxceleb1", root, "--out", out) == 2
    assert "--split-file is missing" in capsys.readouterr().err
    assert prepare("voxceleb1", root, "--split-file", split, "--out", out) == 0
    data = yaml.safe_load((out / "sid.yaml").read_text())["downstream_expert"]["datarc"]
    assert data["file_path"] == str(root)
    assert Path(data["meta_data"]).read_text() == split.read_text()

    split.write_text(split.read_text() + "1 id10003/gone/1.wav\n1 id10003/gone/2.wav\n")
    assert prepare("voxceleb1", root, "--split-file", split, "--out", out) == 2
    assert "2 of 8 files are not below" in capsys.readouterr().err
    assert prepare("voxceleb1", root, "--split-file", split, "--out", out, "--allow-missing") == 0
    assert "gone" not in Path(data["meta_data"]).read_text()
    split.write_text("1 id10001/a/b.wav\n3 id10001/a/b.wav\n")
    assert prepare("voxceleb1", root, "--split-file", split, "--out", out) == 2
    assert f"{split}:2: id10001/a/b.wav is there twice, first in line 1" in capsys.readouterr().err
    for line in ("4 id10001/a/b.wav", "1 id10001/b.wav", "1 id11252/a/b.wav"):
        split.write_text(line + "\n")
        assert prepare("voxceleb1", root, "--split-file", split, "--out", out) == 2
        assert f"{split}:1: " in capsys.readouterr().err


def test_voxceleb1_speakers_without_training_clips_are_noted(
    voxceleb1: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, split = voxceleb1
    assert prepare("voxceleb1", root, "--split-file", split, "--out", tmp_path / "data") == 0
    assert "cannot be identified" not in capsys.readouterr().out
    split.write_text(split.read_text().replace("1 id10002", "2 id10002"))
    assert prepare("voxceleb1", root, "--split-file", split, "--out", tmp_path / "data") == 0
    printed = capsys.readouterr().out
    for part in ("dev", "test"):
        assert f"sid: 1 speakers of {part} are not in train and cannot be identified: id10002\n" in printed


def test_iemocap_copies_are_no_further_utterances(
    iemocap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copied label file and a copied wav, as a hand in a file manager leaves them."""
    out, labels = tmp_path / "data", iemocap / "Session1" / "dialog" / "EmoEvaluation"
    assert prepare("iemocap", iemocap, "--out", out) == 0
    first = {file: file.read_text() for file in (out / "er").rglob("*.json")}
    assert len(first) > 10
    original = labels / "Ses01F_impro01.txt"
    copy = original.with_name("Ses01F_impro01 (1).txt")
    copy.write_text(original.read_text())
    dialog = iemocap / "Session1" / "sentences" / "wav" / "Ses01F_impro01"
    for other in (dialog.parent / "backup", dialog.parent / "A" / dialog.name):
        shutil.copytree(dialog, other)
    capsys.readouterr()
    assert prepare("iemocap", iemocap, "--out", out) == 0
    assert {file: file.read_text() for file in (out / "er").rglob("*.json")} == first
    assert "er: 25 utterances; SUPERB's folds hold 5531\n" in capsys.readouterr().out
    copy.write_text(original.read_text().replace("_F000\tneu", "_F000\tfru"))
    assert prepare("iemocap", iemocap, "--out", out) == 2
    error = capsys.readouterr().err
    assert f"{original}: Ses01F_impro01_F000 is neu, but fru in {copy}" in error
    assert {file: file.read_text() for file in (out / "er").rglob("*.json")} == first


def test_iemocap_as_superb_has_it_needs_no_note(
    iemocap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3prl_ekd.corpora.iemocap.IEMOCAP_UTTERANCES", 25)
    assert prepare("iemocap", iemocap, "--out", tmp_path / "data") == 0
    assert "SUPERB's folds" not in capsys.readouterr().out


def test_iemocap_labels_are_s3prls(iemocap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against what s3prl's IEMOCAP_preprocess.py keeps: four emotions, excited as happy, labelled wavs only."""
    root, out = iemocap, tmp_path / "data"
    assert prepare("iemocap", root, "--out", out) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Session1/Ses01F_impro01_F999 and 4 more: labelled, but not in sentences/wav" in printed
    data = yaml.safe_load((out / "er.yaml").read_text())["downstream_expert"]["datarc"]
    assert data["root"] == str(root)
    for session in range(1, 6):
        meta = {
            part: json.loads((out / "er" / "meta_data" / f"Session{session}" / f"{part}_meta_data.json").read_text())
            for part in ("train", "test")
        }
        assert meta["test"]["labels"] == {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
        assert [item["label"] for item in meta["test"]["meta_data"]] == ["neu", "hap", "hap", "ang", "sad"]
        assert {item["path"].split("/")[0] for item in meta["test"]["meta_data"]} == {f"Session{session}"}
        assert len(meta["train"]["meta_data"]) == 20
        assert not any(item["path"].startswith(f"Session{session}/") for item in meta["train"]["meta_data"])
        assert {item["speaker"] for item in meta["test"]["meta_data"]} == {f"Ses0{session}F"}
        assert all((root / item["path"]).is_file() for item in meta["test"]["meta_data"])
    (root / "Session3").rename(root / "Third")
    assert prepare("iemocap", root, "--out", out) == 2
    assert "Session3 is missing" in capsys.readouterr().err
