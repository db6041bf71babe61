"""What was prepared, through s3prl's own dataset classes: from real speech where there is some, and the demo's."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from manifest_lab import prepare_manifest

from s3prl_ekd.corpora.command import run as run_command  # noqa: F401 - the command must import without torch
from s3prl_ekd.corpora.demo import ER_SPEAKERS, SMALL, make_demo_corpus, split_sentences
from s3prl_ekd.corpora.lexicon import phoneme_set
from s3prl_ekd.corpora.sentences import SENTENCES

needs_voices = pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="no espeakng_loader")


def table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def expert(out: Path, task: str) -> dict:
    return yaml.safe_load((out / f"{task}.yaml").read_text())["downstream_expert"]


def check_with_s3prl(speech: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare asr/, sid/ and er/ of ``speech`` and read every utterance as s3prl does."""
    import s3prl_ekd

    s3prl_ekd.register()
    from s3prl.downstream.asr.dataset import SequenceDataset
    from s3prl.downstream.asr.dictionary import Dictionary
    from s3prl.downstream.ctc.text import load_text_encoder
    from s3prl.downstream.emotion.dataset import IEMOCAPDataset
    from s3prl.downstream.voxceleb1 import dataset as voxceleb1

    from s3prl_ekd.compat.libriphone import LibriPhoneDataset

    for task in ("asr", "sid", "er"):
        prepare_manifest(speech / task / "manifest.tsv", out)

    rows = {Path(row["path"]).stem: row for row in table(speech / "asr" / "manifest.tsv")}
    data = expert(out, "asr")["datarc"]
    letters = Dictionary.load(data["dict_path"])
    heard = {}
    for split in ("train", "dev-clean", "test-clean"):
        dataset = SequenceDataset(split, data["eval_batch_size"], letters, **data)
        for index in range(len(dataset)):
            [wave], [label], [name] = dataset[index]
            spelled = letters.string(label).replace(" ", "").replace("|", " ").strip()
            assert rows[name]["split"] == split.split("-")[0]
            assert spelled == rows[name]["text"]
            assert abs(len(wave) / 16000 - float(rows[name]["seconds"])) < 0.01
            heard[name] = split
    assert set(heard) == set(rows)

    pr = expert(out, "pr")
    tokenizer = load_text_encoder(**pr["text"])
    spoken = {}
    for split in ("train", "dev", "test"):
        dataset = LibriPhoneDataset(pr["corpus"][split], tokenizer, 1, pr["corpus"]["path"], pr["corpus"]["lexicon"])
        for index in range(len(dataset)):
            path, label = dataset[index]
            assert tokenizer.unk_idx not in label
            assert tokenizer.decode(label) == rows[Path(path).stem]["phones"]
            spoken[Path(path).stem] = split
    assert spoken == {name: row["split"] for name, row in rows.items()}

    rows = {Path(row["path"]).stem: row for row in table(speech / "sid" / "manifest.tsv")}
    data = expert(out, "sid")["datarc"]
    monkeypatch.setattr(voxceleb1, "CACHE_PATH", str(out / "cache"))
    order = sorted({row["speaker"] for row in rows.values()})
    for split in ("train", "dev", "test"):
        dataset = voxceleb1.SpeakerClassifiDataset(split, Path(data["file_path"]), data["meta_data"])
        assert len(dataset) == sum(row["split"] == split for row in rows.values())
        for index in range(len(dataset)):
            wave, label, _ = dataset[index]
            row = rows[Path(dataset.dataset[index]).stem.replace("_", "-")]
            assert order[label] == row["speaker"]
            assert wave.ndim == 1

    rows = table(speech / "er" / "manifest.tsv")
    data = expert(out, "er")["datarc"]
    folds = json.loads((out / "er" / "folds.json").read_text())
    assert folds == [f"fold{number}" for number in range(1, 6)]
    total = 0
    for fold in folds:
        folder = Path(data["meta_data"]) / fold.replace("fold", "Session")
        test = IEMOCAPDataset(data["root"], folder / "test_meta_data.json")
        train = IEMOCAPDataset(data["root"], folder / "train_meta_data.json", pre_load=False)
        assert len(test) == sum(row["fold"] == fold[-1] for row in rows)
        assert len(train) + len(test) == len(rows)
        names = {"neu": "neutral", "hap": "happy", "ang": "angry", "sad": "sad"}
        said = sorted(names[test.idx2emotion[test[index][1]]] for index in range(len(test)))
        assert said == sorted(row["emotion"] for row in rows if row["fold"] == fold[-1])
        total += len(test)
    assert total == len(rows)


@pytest.mark.realspeech
@pytest.mark.slow
def test_real_speech_reaches_s3prls_datasets(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_with_s3prl(speech, tmp_path / "data", monkeypatch)


@pytest.mark.realspeech
@pytest.mark.slow
def test_real_pretraining_speech_is_all_there(speech: Path, tmp_path: Path) -> None:
    rows = table(speech / "pretrain" / "manifest.tsv")
    [result] = prepare_manifest(speech / "pretrain" / "manifest.tsv", tmp_path)
    assert result.task == "pretrain"
    assert result.utterances == (len(rows),)
    assert abs(result.minutes - sum(float(row["seconds"]) for row in rows) / 60) < 0.01 * result.minutes
    root = Path((tmp_path / "pretrain" / "root.txt").read_text().strip())
    with (tmp_path / "pretrain" / "pretrain.csv").open() as stream:
        first = next(csv.DictReader(stream))
    assert soundfile.read(root / first["file_path"])[0].shape[0] == int(first["length"])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    manifests = make_demo_corpus(folder, SMALL)
    assert set(manifests) == {"asr", "sid", "er", "pretrain"}
    return folder


@needs_voices
@pytest.mark.slow
def test_demo_corpus_reaches_s3prls_datasets(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_with_s3prl(demo, tmp_path / "data", monkeypatch)


@needs_voices
def test_demo_corpus_is_what_its_manifests_say(demo: Path) -> None:
    for name in ("asr", "sid", "er", "pretrain"):
        rows = table(demo / name / "manifest.tsv")
        assert len({row["path"] for row in rows}) == len(rows)
        for row in rows:
            wave, rate = soundfile.read(demo / row["path"])
            assert rate == 16000
            assert wave.ndim == 1
            assert abs(len(wave) / rate - float(row["seconds"])) < 0.001
            assert 0.5 < len(wave) / rate < 8
            assert 0.003 < np.sqrt(np.mean(wave**2)) < 0.3
    asr = table(demo / "asr" / "manifest.tsv")
    speakers = {split: {row["speaker"] for row in asr if row["split"] == split} for split in ("train", "dev", "test")}
    texts = {split: {row["text"] for row in asr if row["split"] == split} for split in ("train", "dev", "test")}
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not speakers[one] & speakers[other]
        assert not texts[one] & texts[other]
    assert {phone for row in asr for phone in row["phones"].split()} <= phoneme_set()
    er = table(demo / "er" / "manifest.tsv")
    folds = {
        speaker: {row["fold"] for row in er if row["speaker"] == speaker} for speaker in {r["speaker"] for r in er}
    }
    assert len(folds) == len(ER_SPEAKERS)
    assert all(len(numbers) == 1 for numbers in folds.values())


@needs_voices
@pytest.mark.slow
def test_the_samples_are_the_same_in_another_process(demo: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "from s3prl_ekd.corpora.demo import SMALL, Path, make_demo_corpus as make; make"
    code += f"(Path({str(tmp_path)!r}), SMALL)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    for file in sorted(demo.rglob("*.*")):
        assert file.read_bytes() == (tmp_path / file.relative_to(demo)).read_bytes(), file


def test_held_out_sentences_hold_no_new_word() -> None:
    for seed in range(5):
        train, dev, test = split_sentences(np.random.default_rng(seed))
        assert (len(train), len(dev), len(test)) == (80, 10, 10)
        assert {*train, *dev, *test} == set(SENTENCES)
        words = {word for text in train for word in text.split()}
        assert all(set(text.split()) <= words for text in (*dev, *test))


def test_prepare_imports_neither_torch_nor_s3prl() -> None:
    import subprocess
    import sys

    code = "import sys, s3prl_ekd.corpora.command; sys.exit(int('torch' in sys.modules or 's3prl' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
