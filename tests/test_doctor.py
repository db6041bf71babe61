"""doctor: what it finds broken, and the exit status."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from bridge_corpora import librispeech

from s3prl_ekd import doctor
from s3prl_ekd.cli import main
from s3prl_ekd.variants import packaged


def runner_config(folder: Path, **data: object) -> Path:
    values = yaml.safe_load(packaged("config_runner.yaml").read_text())
    values["pretrain_expert"]["datarc"] |= {key: value for key, value in data.items()}
    file = folder / "runner.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def model_config(folder: Path, *teachers: dict) -> Path:
    file = folder / "model.yaml"
    start = teachers[0]["name"]
    file.write_text(yaml.safe_dump({"base": "config_model.yaml", "ekd": {"teachers": list(teachers),
                                                                        "initialise_from": start}}))  # fmt: skip
    return file


def test_a_sound_setup_is_status_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    libri = librispeech(tmp_path / "libri")
    data = {"libri_root": str(libri["root"]), "file_path": str(libri["tables"]), "sets": ["train-clean-100"]}
    config = runner_config(tmp_path, **data)
    model = model_config(tmp_path, {"name": "a", "source": "random:hubert_base", "layers": [4]})
    assert main(["doctor", "-c", str(config), "-g", str(model)]) == 0
    shown = capsys.readouterr().out
    for words in ("torchaudio", "hub ", "has ekd_student", "FFmpeg", "6 utterances", "nothing needed is broken"):
        assert words in shown


def test_each_problem_is_named(tmp_path: Path) -> None:
    (data,) = [row for row in doctor.pretraining_data(runner_config(tmp_path)) if row.what == "data"]
    assert data.state == "broken" and "file_path: no folder /path/to" in data.found and "prepare" in data.todo
    teachers = (
        {"name": "a", "source": "hubert_bsae", "layers": [4]},
        {"name": "b", "source": "random:hubert_base", "layers": [14]},
    )
    rows = {row.what: row for row in doctor.teachers(model_config(tmp_path, *teachers))}
    assert rows["a"].state == "broken" and "did you mean hubert_base" in rows["a"].found
    assert rows["b"].state == "broken" and rows["b"].todo == "ekd.teachers[1].layers: 14 > 12"
    assert doctor.prepared(tmp_path)[-1].found == "nothing prepared here"
    assert doctor.prepared(tmp_path / "none")[0].state == "broken"


def test_a_teacher_not_yet_downloaded_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3prl.util import download

    monkeypatch.setattr(download, "get_dir", lambda: tmp_path)
    (row,) = doctor.teachers(model_config(tmp_path, {"name": "a", "source": "hubert_base", "layers": [4]}))[1:]
    assert row.state == "note" and "not downloaded" in row.found and "https://" in row.todo


def test_a_broken_config_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.yaml").write_text("ekd: [1\n")
    assert main(["doctor", "-g", str(tmp_path / "model.yaml")]) == 1
    assert "not valid YAML" in capsys.readouterr().out
