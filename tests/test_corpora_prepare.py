"""Manifests laid out for the tasks: files are there, lengths are the audio's, splits stay apart, nothing is lost."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from s3prl_ekd.cli import main
from s3prl_ekd.corpora import folders, layout_pretrain
from s3prl_ekd.corpora import lexicon as lexicon_module
from s3prl_ekd.corpora.command import next_command
from s3prl_ekd.corpora.layout_emotion import emotion_labels, session_numbers
from s3prl_ekd.corpora.layout_speech import normalise
from s3prl_ekd.corpora.prepare import prepare_manifest
from s3prl_ekd.errors import EkdError

WORDS = {"A": "AH0", "DOG": "D AO1 G", "RUNS": "R AH1 N Z", "HOME": "HH OW1 M", "I'LL": "AY1 L"}
FORMATS = [("flac", 16000, 1), ("wav", 16000, 1), ("wav", 44100, 2), ("flac", 8000, 1), ("ogg", 16000, 1)]


@pytest.fixture(autouse=True)
def small_cmudict(monkeypatch):
    entries = {word: [tuple(phones.split())] for word, phones in WORDS.items()}
    monkeypatch.setattr(lexicon_module, "_cmudict", lambda: entries)


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A folder with one manifest per task over the same 30 files of five formats, three speakers."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "corpus"
    rows = []
    for index in range(30):
        suffix, rate, channels = FORMATS[index % len(FORMATS)]
        wave = 0.1 * rng.standard_normal((int(rate * rng.uniform(0.2, 0.6)), channels))
        path = f"audio/part.{index % 2}/clip-{index} x.{suffix}"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / path, wave, rate)
        speaker = ["ann", "bob-1", "bob.1"][index % 3]
        split = ["train", "dev", "test"][(index // 3) % 3]
        text = ["A dog runs home", "I’ll run-- A DOG".replace("run", "dog"), '"Home," I\'ll'][index % 3]
        emotion = ["angry", "happy", "neutral", "sad"][index % 4]
        fold = str(index // 3 % 3 + 1)
        rows.append({"path": path, "split": split, "speaker": speaker, "text": text, "fold": fold, "emotion": emotion})
    for task, columns in {
        "asr": ["path", "split", "speaker", "text"],
        "sid": ["path", "split", "speaker"],
        "er": ["path", "fold", "speaker", "emotion"],
        "pretrain": ["path", "speaker"],
    }.items():
        lines = ["\t".join(columns)] + ["\t".join(row[name] for name in columns) for row in rows]
        (folder / f"{task}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder: a link's target, or a file's hash."""
    found = {}
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base, name)
            content = os.readlink(path) if path.is_symlink() else hashlib.sha1(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = content
    return found


def ids(folder: Path) -> dict[str, str]:
    with (folder / "ids.tsv").open(encoding="utf-8") as stream:
        return {row["id"]: row["path"] for row in csv.DictReader(stream, delimiter="\t")}


def test_speech_trees_hold_what_the_manifest_says(corpus, tmp_path):
    out = tmp_path / "data"
    results = prepare_manifest(corpus / "asr.tsv", out, ["pr", "asr"])
    assert [result.task for result in results] == ["asr", "pr"]
    rows = {row["path"]: row for row in csv.DictReader((corpus / "asr.tsv").open(encoding="utf-8"), delimiter="\t")}
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
            info, source = soundfile.info(file), soundfile.info(corpus / row["path"])
            assert (info.samplerate, info.channels, info.format) == (16000, 1, "FLAC")
            assert info.frames == -(-source.frames * 16000 // source.samplerate)
            transcripts = (file.parent / f"{speaker}-{chapter}.trans.txt").read_text().splitlines()
            assert f"{key} {normalise(row['text'])}" in transcripts
        # two speakers whose names differ in punctuation only share a folder, but no utterance
        assert len({key.split("-")[0] for key in names}) == 2
    assert [result.notes[0] for result in results] == ["24 files converted to 16 kHz mono FLAC"] * 2
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


def test_sid_tree_split_file_and_speakers_agree(corpus, tmp_path):
    out = tmp_path / "data"
    prepare_manifest(corpus / "sid.tsv", out, ["sid"])
    rows = {row["path"]: row for row in csv.DictReader((corpus / "sid.tsv").open(), delimiter="\t")}
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
        plain = soundfile.info(corpus / row["path"])
        assert found[0].is_symlink() == ((plain.samplerate, plain.channels) == (16000, 1))


def test_er_sessions_partition_the_corpus(corpus, tmp_path):
    out = tmp_path / "data"
    prepare_manifest(corpus / "er.tsv", out)
    rows = {row["path"]: row for row in csv.DictReader((corpus / "er.tsv").open(), delimiter="\t")}
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


def test_emotions_and_folds_of_other_corpora():
    assert emotion_labels(["sad", "neu", "fear", "hap", "ang"]) == {"ang": 0, "fear": 1, "hap": 2, "neu": 3, "sad": 4}
    assert emotion_labels(["sad", "ang"]) == {"ang": 0, "sad": 1}
    assert session_numbers(["10", "9", "x", "9"]) == {"9": 1, "10": 2, "x": 3}


def test_pretraining_sets_add_up_over_one_root(corpus, tmp_path, capsys):
    out = tmp_path / "data"
    prepare_manifest(corpus / "pretrain.tsv", out, name="one")
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
    (elsewhere / "0, b.wav").unlink()
    assert main(["prepare", "audio", str(elsewhere), "--out", str(out)]) == 0
    assert "more: replaces an earlier set of 2 other files" in capsys.readouterr().out


def test_twice_is_the_same_and_tasks_add_up(corpus, tmp_path):
    out = tmp_path / "data"
    arguments = ["prepare", "--out", str(out), "--manifest"]
    for task in ("asr", "sid", "er", "pretrain"):
        assert main([*arguments, str(corpus / f"{task}.tsv"), "--tasks", "pr,asr" if task == "asr" else task]) == 0
    first = snapshot(out)
    assert {name.split("/")[0] for name in first} == {
        *("pr", "pr.yaml", "asr", "asr.yaml", "sid", "sid.yaml", "er", "er.yaml", "pretrain", "pretrain.yaml")
    }
    for task in ("pretrain", "er", "sid", "asr"):
        assert main([*arguments, str(corpus / f"{task}.tsv"), "--tasks", "asr,pr" if task == "asr" else task]) == 0
    assert snapshot(out) == first


def test_a_failed_run_leaves_the_earlier_result(corpus, tmp_path, capsys):
    out = tmp_path / "data"
    prepare_manifest(corpus / "asr.tsv", out, ["pr", "asr"])
    first = snapshot(out)
    text = (corpus / "asr.tsv").read_text(encoding="utf-8").replace("A dog runs home", "A dog runs to Zanzibar")
    (corpus / "asr.tsv").write_text(text, encoding="utf-8")
    status = main(["prepare", "--manifest", str(corpus / "asr.tsv"), "--out", str(out), "--tasks", "pr,asr"])
    error = capsys.readouterr().err
    assert status == 2
    assert "2 of 7 words have no pronunciation: TO, ZANZIBAR" in error
    assert error.count("\n") == 1
    assert snapshot(out) == first
    lexicon = tmp_path / "more.txt"
    lexicon.write_text("TO\tT UW1\nZANZIBAR\tZ AE1 N Z IH0 B AA2 R\n")
    arguments = ["--lexicon", str(lexicon), "--out", str(out), "--tasks", "pr"]
    assert main(["prepare", "--manifest", str(corpus / "asr.tsv"), *arguments]) == 0
    assert "ZANZIBAR\tZ AE1" in (out / "pr" / "lexicon.txt").read_text()


def test_a_full_disk_leaves_the_pretraining_sets_and_their_root(corpus, tmp_path, monkeypatch, capsys):
    """The second set comes from elsewhere, so that every path would be relative to another root."""
    out, elsewhere = tmp_path / "data", tmp_path / "more"
    prepare_manifest(corpus / "pretrain.tsv", out, name="one")
    first = snapshot(out)
    elsewhere.mkdir()
    soundfile.write(elsewhere / "a.wav", np.zeros(4000), 16000)
    for name in ("write_lengths", "write_pretrain_config"):
        with monkeypatch.context() as patch:
            original = getattr(layout_pretrain, name)

            def full(file, *rest, original=original):
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


def test_a_kill_at_any_moment_loses_no_folder(tmp_path):
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


def test_a_linked_folder_stays_a_link(tmp_path):
    (tmp_path / "other disk" / "pr").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pr").symlink_to(tmp_path / "other disk" / "pr")
    for text in ("one", "two"):
        fill(tmp_path / "data" / "pr", text)
        assert (tmp_path / "data" / "pr").is_symlink()
        assert (tmp_path / "other disk" / "pr" / "file").read_text() == text
    assert [path.name for path in (tmp_path / "other disk").iterdir()] == ["pr"]


def test_a_task_given_twice_is_refused_before_anything_is_written(corpus, tmp_path, capsys):
    out, other = tmp_path / "data", tmp_path / "other" / "manifest.tsv"
    other.parent.mkdir()
    rows = (corpus / "sid.tsv").read_text().replace("audio/", f"{corpus}/audio/")
    other.write_text(rows)
    both = [str(corpus / "sid.tsv"), str(other)]
    assert main(["prepare", "--manifest", *both, "--tasks", "sid", "--out", str(out)]) == 2
    assert f"{both[0]} and {both[1]}: both are for task sid" in capsys.readouterr().err
    same = [str(corpus / "pretrain.tsv"), str(corpus / "sid.tsv")]  # one folder, one name
    assert main(["prepare", "--manifest", *same, "--tasks", "pretrain", "--out", str(out)]) == 2
    assert "both are for the pretraining set corpus" in capsys.readouterr().err
    voxceleb = ["voxceleb1", str(corpus), "--split-file", str(other)]
    assert main(["prepare", *voxceleb, "--manifest", both[0], "--tasks", "sid", "--out", str(out)]) == 2
    assert f"{both[0]} and voxceleb1 {corpus}: both are for task sid" in capsys.readouterr().err
    assert not out.exists()
    assert main(["prepare", "--manifest", *both, "--tasks", "pretrain", "--out", str(out)]) == 0
    assert {file.stem for file in (out / "pretrain").glob("*.csv")} == {"corpus", "other"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split-file", "x"], "--split-file: is for voxceleb1, not for manifest"),
        (["librispeech", "."], "--tasks: librispeech is for pr, asr, pretrain, not for sid"),
        (["voxceleb1", "nowhere", "--split-file", "x"], "nowhere: no such folder"),
        (["voxceleb1", "."], "--split-file is missing"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(corpus, tmp_path, capsys, words, message):
    out = tmp_path / "data"
    assert main(["prepare", *words, "--manifest", str(corpus / "sid.tsv"), "--tasks", "sid", "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", ["../evil", "a/b", ".", "..", ".hidden", "a\\b"])
def test_a_set_is_named_inside_its_folder(corpus, tmp_path, capsys, name):
    for words in (["audio", str(corpus)], ["--manifest", str(corpus / "pretrain.tsv")]):
        assert main(["prepare", *words, "--name", name, "--out", str(tmp_path / "data")]) == 2
        assert f"--name {name}: no name for a pretraining set" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.csv"))


def test_audio_of_other_types_is_counted_and_hidden_folders_are_not_entered(tmp_path, capsys):
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


def test_the_next_command_can_be_pasted(corpus, tmp_path):
    for result in prepare_manifest(corpus / "asr.tsv", tmp_path / "my data", ["asr", "pretrain"]):
        assert shlex.split(next_command(result))[-1] == str(result.config)


def test_a_folder_that_is_not_ours_is_never_replaced(corpus, tmp_path):
    precious = tmp_path / "data" / "sid" / "speech.wav"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    with pytest.raises(EkdError, match="was not made by prepare"):
        prepare_manifest(corpus / "sid.tsv", tmp_path / "data", ["sid"])
    assert precious.read_text() == "mine"


def test_what_cannot_be_written_is_one_line(corpus, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["prepare", "--manifest", str(corpus / "sid.tsv"), "--out", str(tmp_path / "file")]) == 2
    assert main(["prepare", "--manifest", str(corpus / "sid.tsv"), "--out", "/proc/none"]) == 2
    assert main(["prepare", "--manifest", str(corpus / "sid.tsv"), "--out", str(tmp_path / "x"), "--tasks", "vad"]) == 2
    assert main(["prepare", "--out", str(tmp_path / "x")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if line.startswith("error: ")]) == 4
    assert "Traceback" not in "".join(errors)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at your service, sir.", "AT YOUR SERVICE SIR"),
        ("I’ll “go”—now…", "I'LL GO NOW"),
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
def test_transcripts_are_spelled_in_27_letters(text, expected):
    assert normalise(text) == expected
