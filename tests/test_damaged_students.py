"""A checkpoint with a value of another kind, by a hand or a program of somebody's: one line for every command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_ekd.cli import main
from s3prl_ekd.export.superb import export_superb


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("config",), "mine", "EKD.config: "),
        (("config", "ekd", "teachers"), None, "EKD.config.ekd.teachers: "),
        (("config", "ekd", "teachers", 0, "source"), 3, "EKD.config.ekd.teachers[0].source: "),
        (("config", "ekd", "teachers", 1, "layers"), "all", "EKD.config.ekd.teachers[1].layers: "),
        (("config", "ekd", "mode"), "mean", "EKD.config.ekd.mode: "),
        (("config", "ekd", "cosine_weight"), "1", "EKD.config.ekd.cosine_weight: "),
        (("config", "student", "dropout"), "1", "EKD.config.student.dropout: "),
        (("head_sets", 0, "labels"), 3, "EKD.head_sets[0].labels: "),
        (("head_sets", 0), {}, "EKD.head_sets[0].name: required key is missing"),
        (("shape", "width"), None, "(width: expected a number of 1 or more, found None)"),
        (("shape", "layers"), -1, "(layers: expected a number of 1 or more, found -1)"),
        (("shape", "attention"), "gated", "(attention: expected one of plain, gated_relative, found 'gated')"),
        (("shape", "normalize"), "no", "(normalize: expected a bool, found 'no')"),
        (("shape", "conv_layers"), [], "(conv_layers is empty)"),
    ],
)
def test_a_value_of_another_kind_is_named(
    keys: tuple[Any, ...],
    value: Any,
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    place = state["EKD"]
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    damaged, out = str(tmp_path / "damaged.ckpt"), ("--out", str(tmp_path / "out"))
    torch.save(state, damaged)
    for words in (
        ("macs", "--heads", damaged),
        ("merge", str(checkpoint), damaged, *out),
        ("export", "hf", "--ckpt", damaged, *out),
        ("export", "superb", "--ckpt", damaged, *out),
    ):
        assert main(list(words)) == 2
        told = capsys.readouterr().err
        assert f"{damaged}: damaged student checkpoint" in told and message in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lacks", ["weight", "heads"])
def test_weights_that_are_missing_are_not_merged(
    lacks: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    if lacks == "weight":
        state["EKD"]["encoder"].pop("norm.weight")
    else:
        state["EKD"]["heads"] = {}
    torch.save(state, tmp_path / "damaged.ckpt")
    assert main(["merge", str(checkpoint), str(tmp_path / "damaged.ckpt"), "--out", str(tmp_path / "out.ckpt")]) == 2
    assert f"{tmp_path / 'damaged.ckpt'}: damaged student checkpoint (" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("shape", [{"width": "wide"}, None, []])
def test_a_submissions_numbers_of_another_kind_are_its_own_codes_to_refuse(
    shape: object, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export_superb(checkpoint, tmp_path / "submission")
    saved = torch.load(folder / "model.pt", weights_only=True)
    torch.save(saved | {"shape": shape}, folder / "model.pt")
    assert main(["macs", str(folder)]) == 2
    told = capsys.readouterr().err
    assert f"{folder}: its expert.py cannot be run: " in told and told.count("\n") == 1


@pytest.mark.parametrize("weights", [3, {}, "each", None])
def test_a_damaged_submission_is_written_anew(weights: object, checkpoint: Path, tmp_path: Path) -> None:
    folder = export_superb(checkpoint, tmp_path / "submission")
    whole = torch.load(folder / "model.pt", weights_only=True)
    saved = whole | {"weights": dict.fromkeys(whole["weights"], 3) if weights == "each" else weights}
    torch.save(saved, folder / "model.pt")
    export_superb(checkpoint, folder)
    again = torch.load(folder / "model.pt", weights_only=True)
    assert all(torch.equal(again["weights"][name], value) for name, value in whole["weights"].items())
