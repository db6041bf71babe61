"""``prepare iemocap`` on a miniature."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from corpora_lab import prepare

from s3prl_ekd.corpora.iemocap import prepare_iemocap


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


def test_the_closing_table_counts_what_the_corpus_holds(iemocap: Path, tmp_path: Path) -> None:
    labels = iemocap / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    text = labels.read_text().replace("\tneu", "\t\tneu")  # as other tools write it back
    labels.write_text(text + "[9.5 - 9.9]\n[10.1 - 10.4]\tSes01F_impro01_F998\n")  # cut short: no labels
    result = prepare_iemocap(iemocap, tmp_path / "data")
    assert (result.splits, result.utterances) == (tuple(f"fold{k}" for k in range(1, 6)), (5,) * 5)
    assert result.minutes == pytest.approx(25 * 4000 / 16_000 / 60) and result.speakers == 5
    assert result.notes[0] == "emotions: neu 5, hap 10, ang 5, sad 5"


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
