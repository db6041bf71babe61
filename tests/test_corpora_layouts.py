"""The tasks' trees made from manifests: files are there, lengths are the audio's, splits stay apart."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from manifest_lab import ids, manifest_rows, prepare_manifest

from s3prl_ekd.cli import main
from s3prl_ekd.corpora.layout_emotion import emotion_labels, session_numbers
from s3prl_ekd.corpora.layout_speech import normalise
from s3prl_ekd.errors import EkdError


def test_speech_trees_hold_what_the_manifest_says(manifests: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    results = prepare_manifest(manifests / "asr.tsv", out, ["pr", "asr"])
    assert [result.task for result in results] == ["asr", "pr"]
    rows = manifest_rows(manifests / "asr.tsv")
    for task in ("pr", "asr"):
        config = yaml.safe_load((out / f"{task}.yaml").read_text())["downstream_expert"]
        tree = Path(config["corpus"]["path"] if task == "pr" else config["datarc"]["libri_root"])
        names = ids(out / task)
        assert sorted(names.values()) == sorted(rows)
        files = {file.stem: file for file in tree.rglob("*.flac")}  # what s3prl's PR corpus sees
        assert set(files) == set(names)
        for key, file in files.items():
            row = rows[names[key]]
            speaker, chapter, _ = key.split("-")
            assert file.relative_to(tree).parts == (row["split"], speaker, chapter, f"{key}.flac")
            info, source = soundfile.info(file), soundfile.info(manifests / row["path"])
            assert (info.samplerate, info.channels, info.format) == (16000, 1, "FLAC")
            assert info.frames == -(-source.frames * 16000 // source.samplerate)
            transcripts = (file.parent / f"{speaker}-{chapter}.trans.txt").read_text().splitlines()
            assert f"{key} {normalise(row['text'])}" in transcripts
        # two speakers whose names differ in punctuation only share a folder, but no utterance
        assert len({key.split("-")[0] for key in names}) == 2
    assert [result.notes[0] for result in results] == ["24 files converted to 16 kHz mono FLAC"] * 2
    assert [result.notes[1] for result in results] == [
        f"30 of 30 transcripts are respelled in A-Z and ' under {task}/LibriSpeech, first: 'A dog runs home' as "
        "'A DOG RUNS HOME'"
        for task in ("asr", "pr")
    ]
    data = yaml.safe_load((out / "asr.yaml").read_text())["downstream_expert"]["datarc"]
    assert (data["train"], data["dev-clean"], data["test-clean"]) == (["train"], ["dev"], ["test"])
    for split in ("train", "dev", "test"):
        with (Path(data["bucket_file"]) / f"{split}.csv").open() as stream:
            reader = csv.DictReader(stream)
            assert reader.fieldnames == ["", "file_path", "length", "label"]
            lengths = [(row["file_path"], int(row["length"])) for row in reader]
        assert len(lengths) == sum(row["split"] == split for row in rows.values())
        assert lengths == sorted(lengths, key=lambda item: -item[1])
        assert all(soundfile.info(Path(data["libri_root"], path)).frames == n for path, n in lengths)
        assert all(path.startswith(f"{split}/") for path, _ in lengths)


def test_sid_tree_split_file_and_speakers_agree(manifests: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    prepare_manifest(manifests / "sid.tsv", out, ["sid"])
    rows = manifest_rows(manifests / "sid.tsv")
    data = yaml.safe_load((out / "sid.yaml").read_text())["downstream_expert"]["datarc"]
    entries = [line.split() for line in Path(data["meta_data"]).read_text().splitlines()]
    speakers = dict(line.split("\t") for line in (out / "sid" / "speakers.tsv").read_text().splitlines()[1:])
    assert speakers == {"id10001": "ann", "id10002": "bob-1", "id10003": "bob.1"}
    assert len(entries) == len(rows) == 30
    for number, entry in entries:
        row = rows[ids(out / "sid")[entry]]
        assert {"train": "1", "dev": "2", "test": "3"}[row["split"]] == number
        assert speakers[entry.split("/")[0]] == row["speaker"]
        found = list(Path(data["file_path"]).glob("*/wav/" + entry))  # s3prl's own search
        assert len(found) == 1
        info = soundfile.info(found[0])
        assert (info.samplerate, info.channels) == (16000, 1)
        plain = soundfile.info(manifests / row["path"])
        assert found[0].is_symlink() == ((plain.samplerate, plain.channels) == (16000, 1))


def test_er_sessions_partition_the_corpus(manifests: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    prepare_manifest(manifests / "er.tsv", out)
    rows = manifest_rows(manifests / "er.tsv")
    data = yaml.safe_load((out / "er.yaml").read_text())["downstream_expert"]["datarc"]
    assert data["test_fold"] == "fold1"
    assert json.loads((out / "er" / "folds.json").read_text()) == ["fold1", "fold2", "fold3"]
    names = ids(out / "er")
    everything = set()
    for fold in "123":
        meta = {
            part: json.loads(Path(data["meta_data"], f"Session{fold}", f"{part}_meta_data.json").read_text())
            for part in ("train", "test")
        }
        assert meta["test"]["labels"] == meta["train"]["labels"] == {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
        paths = {part: {item["path"] for item in content["meta_data"]} for part, content in meta.items()}
        assert not paths["train"] & paths["test"]
        assert len(paths["train"] | paths["test"]) == len(rows)
        everything |= paths["test"]
        for item in meta["test"]["meta_data"]:
            row = rows[names[Path(item["path"]).stem]]
            assert (row["fold"], row["speaker"], row["emotion"][:3]) == (fold, item["speaker"], item["label"])
            assert soundfile.info(Path(data["root"], item["path"])).samplerate == 16000
    assert len(everything) == len(rows)


def test_emotions_and_folds_of_other_corpora() -> None:
    assert emotion_labels(["sad", "neu", "fear", "hap", "ang"]) == {"ang": 0, "fear": 1, "hap": 2, "neu": 3, "sad": 4}
    assert emotion_labels(["sad", "ang"]) == {"ang": 0, "sad": 1}
    assert session_numbers(["10", "9", "x", "9"]) == {"9": 1, "10": 2, "x": 3}


def test_a_fold_under_two_names_is_refused(manifests: Path, tmp_path: Path) -> None:
    """They were two folds, numbered by Python's hash seed, and their speakers in train and test."""
    table = manifests / "er.tsv"
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    lines[1][1] = f"0{lines[1][1]}"
    table.write_text("\n".join("\t".join(cells) for cells in lines) + "\n")
    with pytest.raises(EkdError, match=re.escape(f"{table}: fold '01' is also spelled '1'; expected one name")):
        prepare_manifest(table, tmp_path / "data")


def test_pretraining_sets_add_up_over_one_root(
    manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    prepare_manifest(manifests / "pretrain.tsv", out, name="one")
    elsewhere = tmp_path / "more"
    elsewhere.mkdir()
    for index, seconds in enumerate((0.3, 0.7, 0.01)):
        soundfile.write(elsewhere / f"{index}, b.wav", np.zeros(int(48000 * seconds)), 48000)
    (elsewhere / "junk.mp3").write_bytes(b"no audio")
    assert main(["prepare", "audio", str(elsewhere), "--out", str(out)]) == 0
    root = Path((out / "pretrain" / "root.txt").read_text().strip())
    assert root == tmp_path
    data = yaml.safe_load((out / "pretrain.yaml").read_text())["pretrain_expert"]["datarc"]
    assert (data["libri_root"], data["file_path"]) == (str(root), str(out / "pretrain"))
    assert data["sets"] == ["more", "one"]
    counts = {}
    for name in data["sets"]:
        with (out / "pretrain" / f"{name}.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        counts[name] = len(rows)
        for row in rows:
            info = soundfile.info(root / row["file_path"])
            assert int(row["length"]) == -(-info.frames * 16000 // info.samplerate)
    assert counts == {"more": 2, "one": 30}
    assert "valid_sets" not in data
    (elsewhere / "0, b.wav").unlink()
    assert main(["prepare", "audio", str(elsewhere), "--out", str(out)]) == 0
    assert "more: replaces an earlier set of 2 other files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at your service, sir.", "AT YOUR SERVICE SIR"),
        ("I’ll “go”—now…", "I'LL GO NOW"),
        ("don´t, can′t", "DON'T CAN'T"),
        ("and/or, yes,no", "AND OR YES NO"),
        ("wait…what", "WAIT WHAT"),
        ("Café.Noir (end).'Tis so", "CAFE NOIR END 'TIS SO"),
        ("the U.S.A. and the U.S.'s p.m., e.g.this", "THE USA AND THE US'S PM EG THIS"),
        ("J.K.Rowling met A.Smith. I am.I was", "JK ROWLING MET A SMITH I AM I WAS"),
        ('“re”make said,"no"', "REMAKE SAID NO"),
        ("'hello,' she", "'HELLO' SHE"),
        ("Café naïve", "CAFE NAIVE"),
        ("the well-known", "THE WELL KNOWN"),
        ("in 1999", None),
        ("50 %", None),
        (" ' -- ", None),
        ("", None),
    ],
)
def test_transcripts_are_spelled_in_27_letters(text: str, expected: str | None) -> None:
    assert normalise(text) == expected


def pretraining_sets(out: Path) -> tuple[list[str], list[str]]:
    data = yaml.safe_load((out / "pretrain.yaml").read_text())["pretrain_expert"]["datarc"]
    return data["sets"], data.get("valid_sets", [])


def test_sets_are_held_out_for_validation(manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a manifest's column split, of which test is used for nothing, or by --held-out; and they stay so."""
    out, elsewhere = tmp_path / "data", tmp_path / "more"
    with (manifests / "asr.tsv").open() as stream:
        splits = [row["split"] for row in csv.DictReader(stream, delimiter="\t")]
    words = ["prepare", "--manifest", str(manifests / "asr.tsv"), "--tasks", "pretrain", "--out", str(out)]
    assert main([*words, "--name", "talks"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"talks: {splits.count('test')} utterances of split test left out" in shown
    assert pretraining_sets(out) == (["talks"], ["talks-dev"])
    for name, split in (("talks", "train"), ("talks-dev", "dev")):
        assert len((out / "pretrain" / f"{name}.csv").read_text().splitlines()) == 1 + splits.count(split)
    assert f"talks {splits.count('train')}, talks-dev (validation) {splits.count('dev')}" in shown

    elsewhere.mkdir()
    soundfile.write(elsewhere / "a.wav", np.zeros(8000), 16000)
    audio = ["prepare", "audio", str(elsewhere), "--out", str(out)]
    assert main([*audio, "--held-out"]) == 0
    assert pretraining_sets(out) == (["talks"], ["more", "talks-dev"])
    assert main([*words, "--name", "again", "--held-out"]) == 2  # all of it
    assert "pretraining sets again and talks: the one is held out, the other trained on" in capsys.readouterr().err
    (tmp_path / "linked").symlink_to(manifests)
    words = ["prepare", "audio", str(tmp_path / "linked"), "--out", str(out), "--held-out"]
    assert main(words) == 2  # the same files by a link
    assert "and talks: the one is held out" in capsys.readouterr().err
    assert pretraining_sets(out) == (["talks"], ["more", "talks-dev"])
    assert main(audio) == 0  # said again without it
    assert pretraining_sets(out) == (["more", "talks"], ["talks-dev"])
    capsys.readouterr()
    assert main(["doctor", "--data", str(out)]) == 0
    assert "validation: talks-dev: " in " ".join(capsys.readouterr().out.split())
    assert main([*audio[:-1], str(tmp_path / "new"), "--held-out"]) == 0
    shown = capsys.readouterr().out
    assert "no set to train on yet" in shown and "next:" not in shown  # its command would be refused
    assert main(["doctor", "--data", str(tmp_path / "new")]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert f"held-out sets, and none to train on yet s3prl-ekd prepare ... --out {tmp_path / 'new'}, without" in shown


def test_rows_to_test_on_are_no_training_set_whatever_else_the_column_says(manifests: Path, tmp_path: Path) -> None:
    """With one split of another name, test and dev were trained on."""
    table = manifests / "asr.tsv"
    with table.open() as stream:
        splits = [row["split"] for row in csv.DictReader(stream, delimiter="\t")]
    table.write_text(table.read_text().replace("\ttrain\t", "\textra\t", 1))
    prepare_manifest(table, tmp_path / "data", ["pretrain"], name="talks")
    assert pretraining_sets(tmp_path / "data") == (["talks"], ["talks-dev"])
    assert len((tmp_path / "data" / "pretrain" / "talks.csv").read_text().splitlines()) == 1 + splits.count("train")


def test_a_held_out_part_does_not_outlive_its_manifest(
    manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Split dev of a manifest, prepared again as a whole, would be held out twice, or trained on and held out."""
    out, table = tmp_path / "data", manifests / "asr.tsv"
    words = ["prepare", "--manifest", str(table), "--tasks", "pretrain", "--name", "talks", "--out", str(out)]
    assert main(words) == 0 and pretraining_sets(out) == (["talks"], ["talks-dev"])
    assert main([*words, "--held-out"]) == 0 and pretraining_sets(out) == ([], ["talks"])
    assert "talks-dev: removed, as its " in capsys.readouterr().out
    assert main(words) == 0 and pretraining_sets(out) == (["talks"], ["talks-dev"])
    whole = table.read_text()
    table.write_text(whole.replace("split", "part", 1))
    assert main(words) == 0 and pretraining_sets(out) == (["talks"], [])
    # another manifest's set of that name stays
    soundfile.write(manifests / "other.wav", np.zeros(8000), 16000)
    (manifests / "other.tsv").write_text("path\nother.wav\n")
    other = ["prepare", "--manifest", str(manifests / "other.tsv"), "--name", "talks-dev", "--out", str(out)]
    assert main([*other, "--tasks", "pretrain", "--held-out"]) == 0
    assert main(words) == 0 and pretraining_sets(out) == (["talks"], ["talks-dev"])
    (out / "pretrain" / "talks-dev.csv").unlink()  # how a set is taken out
    assert main(words) == 0 and pretraining_sets(out) == (["talks"], [])


@pytest.mark.parametrize("options", [["--held-out"], ["--name", "talks"]])
def test_options_of_a_pretraining_set_need_one(
    manifests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    words = ["prepare", "--manifest", str(manifests / "asr.tsv"), "--out", str(tmp_path / "data"), *options]
    assert main(words) == 2
    assert f"{options[0]}: is for a pretraining set, but this call prepares only sid" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert main([*words, "--tasks", "pretrain"]) == 0
