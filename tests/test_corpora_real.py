"""LibriSpeech, VoxCeleb1 and IEMOCAP in made miniatures of their own layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from s3prl_ekd.cli import main
from s3prl_ekd.corpora.lengths import read_lengths, samples_or_reason


def audio(file: Path, samples: int = 4000) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, 0.1 * np.random.default_rng(samples).standard_normal(samples), 16000)
    return file


def prepare(*arguments) -> int:
    return main(["prepare", *map(str, arguments)])


@pytest.fixture
def librispeech(tmp_path) -> Path:
    root = tmp_path / "LibriSpeech"
    for number, split in enumerate(["train-clean-100", "dev-clean", "test-clean"], start=1):
        folder = root / split / str(number) / "7"
        for index in range(3):
            audio(folder / f"{number}-7-{index:04d}.flac", 4000 + 100 * index)
        lines = [f"{number}-7-{index:04d} HELLO WORLD\n" for index in range(3)]
        (folder / f"{number}-7.trans.txt").write_text("".join(lines))
    return root


@pytest.fixture
def lexicon(tmp_path) -> Path:
    file = tmp_path / "lexicon.txt"
    file.write_text("HELLO\tHH AH0 L OW1\nWORLD\tW ER1 L D\n")
    return file


def test_librispeech_is_used_in_place(librispeech, lexicon, tmp_path, capsys):
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
    assert runner["sets"] == ["train-clean-100"]
    for path, _ in read_lengths(out / "pretrain" / "train-clean-100.csv"):
        assert Path(runner["libri_root"], path).is_file()
    assert prepare("librispeech", librispeech.parent, "--out", out, "--lexicon", lexicon) == 0  # the folder above it


def test_librispeech_errors_name_what_is_missing(librispeech, lexicon, tmp_path, capsys):
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


@pytest.mark.parametrize("damage", ["cut", "short"])
def test_a_clip_that_would_end_a_training_is_named(librispeech, lexicon, tmp_path, capsys, damage):
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
def test_a_wav_that_was_cut_short_is_named(tmp_path, subtype):
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


def test_voxceleb1_split_file_is_checked_against_the_wavs(tmp_path, capsys):
    root, split, out = tmp_path / "VoxCeleb1", tmp_path / "iden_split.txt", tmp_path / "data"
    entries = [(part, f"id1000{speaker}/video/{part:05d}.wav") for speaker in (1, 2) for part in (1, 2, 3)]
    for index, (_, path) in enumerate(entries):
        audio(root / ("dev" if index % 2 else "test") / "wav" / path)
    split.write_text("".join(f"{part} {path}\n" for part, path in entries))
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


def test_iemocap_labels_are_s3prls(tmp_path, capsys):
    """Against what s3prl's IEMOCAP_preprocess.py keeps: four emotions, excited as happy, labelled wavs only."""
    root, out = tmp_path / "IEMOCAP", tmp_path / "data"
    emotions = ["neu", "hap", "exc", "ang", "sad", "fru", "xxx"]
    for session in range(1, 6):
        dialog = f"Ses0{session}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n", "\n"]
        for index, emotion in enumerate(emotions):
            name = f"{dialog}_F{index:03d}"
            audio(root / f"Session{session}" / "sentences" / "wav" / dialog / f"{name}.wav")
            lines += [f"[6.2901 - 8.2357]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]\n", "C-E2:\tNeutral;\t()\n", "\n"]
        lines.append(f"[6.2901 - 8.2357]\t{dialog}_F999\tneu\t[2.5, 2.5, 2.5]\n")  # no such wav
        labels = root / f"Session{session}" / "dialog" / "EmoEvaluation"
        (labels / "Categorical").mkdir(parents=True)
        (labels / f"{dialog}.txt").write_text("".join(lines))
        (labels / f"._{dialog}.txt").write_bytes(b"\x00\x05\x16\x07")
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
