"""KS: Speech Commands in its own layout and from a manifest, as s3prl's own classes read what was prepared."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml
from bridge_corpora import tone
from corpora_lab import audio, prepare
from manifest_lab import ids
from superb_corpora import keywords

from s3prl_ekd.compat.shims import apply_shims
from s3prl_ekd.corpora.keyword_folders import CLASSES, split_of
from s3prl_ekd.corpora.layout_keyword import keyword_class
from s3prl_ekd.corpora.speech_commands import NAMES


@pytest.fixture(scope="module")
def s3prls() -> Any:
    """s3prl's expert module of KS."""
    apply_shims()
    return importlib.import_module("s3prl.downstream.speech_commands.expert")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Both folders under the names of SUPERB's recipe."""
    keywords(tmp_path / "KS")
    for name, made in zip(NAMES, ("train", "test"), strict=True):
        (tmp_path / "KS" / made).rename(tmp_path / "KS" / name)
    return tmp_path / "KS"


def as_s3prl_reads(config: Path, s3prls: Any) -> dict[str, list[tuple[str, str]]]:
    """Split -> (class, file's name) of each clip that s3prl's datasets list."""
    data = yaml.safe_load(config.read_text())["downstream_expert"]["datarc"]
    train, dev = s3prls.split_dataset(data["speech_commands_root"])
    sets = {"train": s3prls.SpeechCommandsDataset(train, **data), "dev": s3prls.SpeechCommandsDataset(dev, **data),
            "test": s3prls.SpeechCommandsTestingDataset(**data)}  # fmt: skip
    return {split: sorted((name, Path(file).name) for name, file in one.data) for split, one in sets.items()}


def test_the_split_of_a_name_is_s3prls(tmp_path: Path, s3prls: Any) -> None:
    names = [f"{number:08x}_nohash_{number % 3}.wav" for number in range(300)]
    names += ["plain.wav", "a_nohash_b_nohash_0.wav"]
    (tmp_path / "yes").mkdir()
    for name in names:
        (tmp_path / "yes" / name).touch()
    train, dev = ({file.name for _, file in part} for part in s3prls.split_dataset(tmp_path))
    found = {name: split_of(name) for name in names}
    assert {name for name, split in found.items() if split == "train"} == train
    assert {name for name, split in found.items() if split == "dev"} == dev
    assert min(len(train), len(dev), len(names) - len(train) - len(dev)) > 10
    assert tuple(importlib.import_module("s3prl.downstream.speech_commands.dataset").CLASSES) == CLASSES


def test_speech_commands_stays_where_it_is(
    corpus: Path, tmp_path: Path, s3prls: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    assert prepare("speech_commands", corpus, "--out", out) == 0
    printed = capsys.readouterr().out
    found = as_s3prl_reads(out / "ks.yaml", s3prls)
    assert f"train {len(found['train']) - 1}, dev {len(found['dev']) - 1}, test {len(found['test'])}" in printed
    assert "ks: 1 noises below _background_noise_: silence, in train and in dev\n" in printed
    assert "ks: 12 utterances to test on; SUPERB's test set has 3081\n" in printed
    assert f"-d speech_commands -c {out / 'ks.yaml'}" in printed
    # the training folder alone, its test set elsewhere
    (corpus / NAMES[1]).rename(tmp_path / "elsewhere")
    assert prepare("speech_commands", corpus / NAMES[0], "--out", out) == 2
    assert f"{NAMES[1]}: no such folder; --test-set names the unpacked" in capsys.readouterr().err
    assert prepare("speech_commands", corpus / NAMES[0], "--test-set", tmp_path / "elsewhere", "--out", out) == 0
    assert as_s3prl_reads(out / "ks.yaml", s3prls) == found


def test_a_folder_that_is_none_of_speech_commands_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("speech_commands", corpus, "--out", tmp_path / "data")

    def refused() -> str:
        assert prepare(*words) == 2
        return capsys.readouterr().err

    noise = corpus / NAMES[0] / "_background_noise_" / "noise.wav"
    noise.unlink()
    tone(noise, 1, 0.5)
    assert f"{noise}: 8000 samples long; s3prl cuts 16000, a second, out of" in refused()
    noise.unlink()
    tone(noise, 1, 1.0)
    assert prepare(*words) == 0
    tone(corpus / NAMES[1] / "house" / "a.wav", 1, 1.0)
    assert "house: expected folders of the test set's classes, yes, no," in refused()
    (corpus / NAMES[1] / "house" / "a.wav").unlink()
    assert prepare(*words) == 0  # a folder without clips is nobody's class
    for file in (corpus / NAMES[0]).glob("*/*.wav"):
        if split_of(file.name) == "dev" and file != noise:
            file.unlink()
    assert "no clip of dev by the hash of its name; expected Speech Commands" in refused()
    noise.rename(corpus / "noise.wav")
    noise.parent.rmdir()
    assert "no _background_noise_ in it; expected speech_commands_v0.01" in refused()
    assert prepare("iemocap", corpus, "--test-set", corpus, "--out", tmp_path / "data") == 2
    assert "--test-set: is for speech_commands, not for iemocap" in capsys.readouterr().err


def write_manifest(folder: Path, rows: list[tuple[str, str, str, int]]) -> Path:
    """Rows of (file's name, split, keyword, samples)."""
    lines = ["path\tsplit\tspeaker\tkeyword"]
    for name, split, keyword, samples in rows:
        audio(folder / name, samples)
        lines.append(f"{name}\t{split}\tann\t{keyword}")
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.tsv"


def test_a_manifests_rows_are_in_their_splits(
    tmp_path: Path, s3prls: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(f"{word}{number}.wav", split, word, 8000)
            for split, count in (("train", 3), ("dev", 2), ("test", 1))
            for word in ("Yes", "no", "House", "tree 2") for number in range(count)]  # fmt: skip
    rows = [(f"{split}/{name}", split, word, samples) for name, split, word, samples in rows]
    rows += [(f"{number}a_nohash_0.wav", "train", "no", 8000) for number in range(9)]  # Speech Commands' own names
    rows += [("hum.flac", "train", "silence", 40_000), ("hiss.wav", "dev", "_background_noise_", 16_000)]
    rows += [("quiet.wav", "test", "_silence_", 8000), ("stop.wav", "test", "stop", 8000)]
    out = tmp_path / "data"
    caplog.set_level("INFO")
    assert prepare("--manifest", write_manifest(tmp_path / "in", rows), "--out", out) == 0
    assert "prepared for ks, since it has columns keyword and split" in caplog.text
    printed = capsys.readouterr().out
    assert "train 22, dev 9, test 6" in printed
    assert "ks: 1 files converted to 16 kHz mono WAV\n" in printed
    assert "ks: no clip to train on of test's stop\n" in printed
    assert "ks: 2 silences of train and dev serve both, as s3prl has it\n" in printed
    names, source = ids(out / "ks"), {f"in/{name}": (split, keyword_class(word)) for name, split, word, _ in rows}
    found = as_s3prl_reads(out / "ks.yaml", s3prls)
    assert {split: len(part) for split, part in found.items()} == {"train": 21 + 2, "dev": 8 + 2, "test": 6}
    by_file = {key.partition("-")[2]: path for key, path in names.items()}
    assert len(by_file) == len(rows)
    for split, part in found.items():
        for chosen, file in part:
            expected = source[f"in/{by_file[file]}"]
            assert expected == (split, chosen) or (chosen == "_silence_" and split != "test")
    for file in (out / "ks").rglob("*.wav"):
        assert soundfile.info(file).format == "WAV"


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_a_name_made_for_one_clip_may_be_anothers_own(form: str, tmp_path: Path, s3prls: Any) -> None:
    """Linked files stood in each other's way; of converted ones the last was left."""
    names = [f"{speaker}_yes{take}.{form}" for speaker in range(12) for take in ("", "_1", "_2", "_3")]
    rows = [(name, "test" if at < 4 else "dev" if at < 16 else "train", "yes", 8000) for at, name in enumerate(names)]
    assert prepare("--manifest", write_manifest(tmp_path / "in", rows), "--out", tmp_path / "data") == 0
    found = as_s3prl_reads(tmp_path / "data" / "ks.yaml", s3prls)
    assert {split: len(part) for split, part in found.items()} == {"train": 32, "dev": 12, "test": 4}
    assert len(ids(tmp_path / "data" / "ks")) == len(names)


def test_a_silence_to_train_on_is_a_second_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"{split}.wav", split, "yes", 8000) for split in ("train", "dev", "test")]
    manifest = write_manifest(tmp_path / "in", [*rows, ("hum.wav", "dev", "silence", 15_999)])
    assert prepare("--manifest", manifest, "--out", tmp_path / "data") == 2
    assert f"{manifest}:5: 15999 samples long; s3prl cuts 16000, a second, out of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keyword", "expected"),
    [("YES", "yes"), ("go", "go"), ("house", "_unknown_"), ("unknown", "_unknown_"), ("_silence_", "_silence_")],
)
def test_the_class_of_a_keyword(keyword: str, expected: str) -> None:
    assert keyword_class(keyword) == expected


@pytest.mark.parametrize("keyword", ["<silence>", "[Background noise]", "<unknown>", "yes!"])
def test_a_keyword_in_brackets_is_of_one_class_in_every_split(keyword: str, tmp_path: Path, s3prls: Any) -> None:
    """The class is s3prl's by the folder's name: such a silence was trained on, and unknown in the test set."""
    rows = [(f"{split}.wav", split, keyword, 16_000) for split in ("train", "dev", "test")]
    assert prepare("--manifest", write_manifest(tmp_path / "in", rows), "--out", tmp_path / "data") == 0
    found = as_s3prl_reads(tmp_path / "data" / "ks.yaml", s3prls)
    assert {name for part in found.values() for name, _ in part} == {keyword_class(keyword)}
