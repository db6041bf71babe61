"""Audio that ``prepare`` refuses, of each corpus: of another form, too short, damaged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpora_lab import audio, prepare

from s3prl_ekd.bridge.taskdata import speaker_lists
from s3prl_ekd.compat import torchaudio_io
from s3prl_ekd.corpora.probe import info_or_reason


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
        assert "(--manifest), prepare converts" in error
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
    assert info_or_reason(file).samples == 16_000
    file.write_bytes(content + b"\0" * 50)
    assert info_or_reason(file).samples == 16_000
    file.write_bytes(content[:-9_000])
    assert info_or_reason(file) == f"{file}: the audio data is damaged (its end is missing)"
    for said in (b"\xff\xff\xff\xff", b"\0\0\0\0"):
        file.write_bytes(content[:4] + said + content[8:])
        assert info_or_reason(file).samples == 16_000


def test_a_name_that_is_not_utf_8_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables are UTF-8."""
    folder = tmp_path / "speech"
    folder.mkdir()
    for name in (b"a.wav", b"caf\xe9.wav"):
        soundfile.write(os.fsencode(folder) + b"/" + name, 0.1 * np.ones(16_000), 16_000)
    assert prepare("audio", folder, "--out", tmp_path / "data") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 files left out, first: " in said and "caf\ufffd.wav: a name that is not UTF-8" in said


def test_where_nothing_of_a_set_can_be_read_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of paths that are all wrong, where they were looked for is what the user needs."""
    manifest = tmp_path / "manifest.tsv"
    manifest.write_text("path\nclips/a.wav\nclips/b.wav\n")
    assert prepare("--manifest", manifest, "--out", tmp_path / "data", "--tasks", "pretrain") == 2
    error = capsys.readouterr().err
    assert "no readable audio in set" in error and f"; first: {tmp_path / 'clips' / 'a.wav'}: " in error


def test_a_manifest_and_its_data_in_a_folder_that_is_not_utf_8(tmp_path: Path) -> None:
    """Of its clips one is linked and one converted."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    for split, rate in (("train", 16_000), ("dev", 16_000), ("test", 8_000)):
        soundfile.write(os.fsencode(folder / f"{split}.wav"), 0.1 * np.ones(8_000), rate)
    lines = [f"{split}.wav\t{split}\tann" for split in ("train", "dev", "test")]
    (folder / "manifest.tsv").write_text("\n".join(["path\tsplit\tspeaker", *lines]) + "\n")
    assert prepare("--manifest", folder / "manifest.tsv", "--out", folder / "data", "--tasks", "sid") == 0
    lists = speaker_lists(folder / "data" / "sid" / "VoxCeleb1", folder / "data" / "sid" / "split.txt", "")
    assert [torchaudio_io.load(lists[split][0])[0].shape[1] for split in lists] == [8_000, 8_000, 16_000]


def test_a_data_folder_in_the_corpus_is_no_part_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each clip would be there once more for every task that was prepared, those to test on among them."""
    speech = tmp_path / "speech"
    lines = [f"{split}.wav\t{split}\tyes" for split in ("train", "dev", "test")]
    for split in ("train", "dev", "test"):
        audio(speech / f"{split}.wav")
    (speech / "manifest.tsv").write_text("\n".join(["path\tsplit\tkeyword", *lines]) + "\n")
    assert prepare("--manifest", speech / "manifest.tsv", "--out", speech / "data") == 0
    assert prepare("audio", speech, "--out", speech / "data") == 0
    said = capsys.readouterr().out
    assert "speech 3 " in said and "3 files left out: an earlier call put them there for other tasks" in said
    assert prepare("audio", speech / "data" / "ks", "--out", tmp_path / "other") == 0  # but where it is asked for
    assert "ks 3 " in capsys.readouterr().out


def test_recordings_of_which_pretraining_would_hear_little_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seconds in (("short", 20), ("long", 100)):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", np.zeros(seconds * 16_000), 16_000)
        assert prepare("audio", tmp_path / name, "--name", name, "--out", tmp_path / "data") == 0
    said = " ".join(capsys.readouterr().out.split())
    rest = "one crop of 15.6 s (task.sequence_length) of each clip; cut its files into clips of about 15.6 s"
    assert said.count("an epoch hears") == 1 and f"long: an epoch hears 16 % of it, {rest}" in said
