"""IC: Fluent Speech Commands in its own layout and from a manifest, as s3prl's own classes read what was prepared."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest
import yaml
from corpora_lab import audio, prepare
from manifest_lab import ids
from superb_corpora import intents

from s3prl_ekd.compat.shims import apply_shims
from s3prl_ekd.corpora.intent_tables import SLOTS


def as_s3prl_reads(config: Path) -> dict[str, list[tuple[str, ...]]]:
    """Split -> (file's stem, value of each slot) of each clip, through s3prl's expert and its numbers of values."""
    apply_shims()
    expert = importlib.import_module("s3prl.downstream.fluent_commands.expert")
    model = expert.DownstreamExpert(8, yaml.safe_load(config.read_text())["downstream_expert"], str(config.parent))
    found = {}
    for split, one in (("train", model.train_dataset), ("dev", model.dev_dataset), ("test", model.test_dataset)):
        found[split] = []
        for _, numbers, stem in (one[number] for number in range(len(one))):
            slots = [model.Sy_intent[slot][int(number)] for slot, number in zip(SLOTS, numbers, strict=True)]
            found[split].append((stem, *slots))
    return found


def test_fluent_speech_commands_stays_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    intents(tmp_path / "FSC")
    out = tmp_path / "data"
    assert prepare("fluent_commands", tmp_path / "FSC", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "train 8, dev 3, test 3" in printed
    assert "ic: 2 intents of 2 actions, 2 objects, 1 locations\n" in printed
    assert "ic: 3 utterances to test on; SUPERB's test set has 3793\n" in printed
    assert f"-d fluent_commands -c {out / 'ic.yaml'}" in printed
    assert as_s3prl_reads(out / "ic.yaml")["test"][1] == ("test1", "increase", "heat", "none")


def test_two_clips_to_test_on_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """s3prl's predictions go by the file's name alone."""
    intents(tmp_path / "FSC")
    table = tmp_path / "FSC" / "data" / "test_data.csv"
    audio(tmp_path / "FSC" / "wavs" / "other" / "test0.wav")
    table.write_text(table.read_text() + "9,wavs/other/test0.wav,b,x,activate,lights,none\n")
    assert prepare("fluent_commands", tmp_path / "FSC", "--out", tmp_path / "data") == 2
    assert f"{table}: 2 clips are called test0, and s3prl's predictions go by that name" in capsys.readouterr().err
    (tmp_path / "FSC" / "wavs" / "other" / "test0.wav").rename(tmp_path / "FSC" / "wavs" / "other" / "a,b.wav")
    table.write_text(table.read_text().replace("wavs/other/test0.wav", '"wavs/other/a,b.wav"'))
    assert prepare("fluent_commands", tmp_path / "FSC", "--out", tmp_path / "data") == 2
    assert f"{table}: 'a,b': s3prl's prediction file would cut this name at its comma" in capsys.readouterr().err
    assert prepare("fluent_commands", tmp_path, "--out", tmp_path / "data") == 2
    assert f"{tmp_path / 'data' / 'train_data.csv'}: no such table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("None", "location 'None', which s3prl reads as nan; expected words"),
        ("", "no location"),
        ("attic", "location 'attic' is none of train_data.csv's"),
    ],
)
def test_a_value_that_s3prl_has_no_number_for(
    value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    intents(tmp_path / "FSC")
    table = tmp_path / "FSC" / "data" / "valid_data.csv"
    lines = list(csv.reader(table.open()))
    lines[2][-1] = value
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    assert prepare("fluent_commands", tmp_path / "FSC", "--out", tmp_path / "data") == 2
    assert f"{table}: line 3: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("none\n2,", "none,\n2,", "line 3: more cells than the header's 7"),
        ("lights,activate", "lights, now,activate", "line 2: more cells than the header's 7"),
        ("none\n2,", "\n2,", "line 3: no location"),
        ("none\n1,", "none\n\n1,", "line 4: no location"),
        ("turn on the lights,activate", '"turn on\nthe lights",activate', "line 4: no location"),
    ],
)
def test_a_line_that_s3prl_reads_otherwise_is_named(
    before: str, after: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one cell too many in the first line pandas makes an index, and each column has its neighbour's values."""
    intents(tmp_path / "FSC")
    table = tmp_path / "FSC" / "data" / "valid_data.csv"
    text = table.read_text().replace(before, after, 1)
    if "location" in message:
        text = text.replace("increase,heat,none", "increase,heat,")
    table.write_bytes(text.replace("\n", "\r\n").encode())
    assert prepare("fluent_commands", tmp_path / "FSC", "--out", tmp_path / "data") == 2
    assert f"{table}: {message}" in capsys.readouterr().err


def write_manifest(folder: Path, **changes: str) -> Path:
    """Three rows a split; ``changes``: the action of the row of that name, such as ``dev1``."""
    lines = ["path\tsplit\taction\tobject\tlocation\ttext"]
    for split in ("train", "dev", "test"):
        for number in range(3):
            name = f"{split}{number}"
            audio(folder / split / f"clip-{number}.{'wav' if number else 'flac'}", 4000 + number)
            action = changes.get(name, ["turn, on", "turn off", 'say "hi"'][number])
            lines.append(f"{split}/clip-{number}.{'wav' if number else 'flac'}\t{split}\t{action}\theat\tnone\tHi, you")
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.tsv"


def test_a_manifests_rows_are_in_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "data"
    caplog.set_level("INFO")
    assert prepare("--manifest", write_manifest(tmp_path / "in"), "--out", out) == 0
    assert "prepared for ic, since it has columns action, object, location and split" in caplog.text
    printed = capsys.readouterr().out
    assert "train 3, dev 3, test 3" in printed and "3 intents of 3 actions, 1 objects, 1 locations" in printed
    names = ids(out / "ic")
    for split, part in as_s3prl_reads(out / "ic.yaml").items():
        for stem, action, *_ in part:
            number = int(names[stem].partition("-")[2][0])
            assert names[stem].startswith(split) and action == ["turn, on", "turn off", 'say "hi"'][number]
    with (out / "ic" / "data" / "test_data.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["transcription"] == "Hi, you"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dev1": "run"}, "6: action 'run' is in no row of train"),
        ({"train1": "NA", "dev1": "NA", "test1": "NA"}, "3: action 'NA', which s3prl reads as nan; expected words"),
        (
            {f"{split}{number}": str(number) for split in ("train", "dev", "test") for number in range(3)},
            "2: action '0', which s3prl reads as 0; expected words",
        ),
    ],
)
def test_a_manifests_value_that_s3prl_has_no_number_for(
    changes: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_manifest(tmp_path / "in", **changes)
    assert prepare("--manifest", manifest, "--out", tmp_path / "data") == 2
    assert f"{manifest}:{message}" in capsys.readouterr().err
