"""What a call refuses because an earlier one's scores are in its ``--out``, with a stand-in for the native runner."""

from __future__ import annotations

import pytest
from evaluate_stand_in import calls, evaluate, files, set_dev
from export_student import write_student

from s3prl_ekd.evaluate import inputs
from s3prl_ekd.evaluate.scores_file import read_models, read_scores
from s3prl_ekd.export.huggingface import export_huggingface
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.fingerprint import weights_digest


@pytest.fixture(autouse=True)
def runner(stand_in):
    """All calls are of the stand-in."""


SEVERAL = ("--upstream", "fbank", "--upstream", "mel=fbank")


def test_a_table_does_not_replace_one_models_scores(data, tmp_path, capfd, caplog):
    assert evaluate(data, tmp_path) == 0
    before = files(tmp_path / "out")
    capfd.readouterr()
    assert evaluate(data, tmp_path, upstream=SEVERAL, tasks="pr") == 2
    message = f"--out {tmp_path / 'out'}: holds the scores of one model (fbank), and this call makes a table; choose"
    assert message in " ".join(capfd.readouterr().err.split())
    assert files(tmp_path / "out") == before
    assert evaluate(data, tmp_path, "--overwrite", upstream=SEVERAL, tasks="pr") == 0
    assert len(read_models(tmp_path / "out")) == 2
    assert "the table replaces the scores of fbank" in caplog.text


def test_a_tested_rate_is_not_replaced_by_another(data, tmp_path, capfd):
    set_dev(tmp_path, (["voxceleb1", "0.003", None, None, None], 0.6))
    assert evaluate(data, tmp_path, "--lr", "0.003") == 0
    capfd.readouterr()
    assert evaluate(data, tmp_path, "--lr", "0.01") == 2
    told = " ".join(capfd.readouterr().err.split())
    assert (
        "sid was tested there at learning rate 0.003, now 0.01; to pick on dev give all (--lr sid:0.003,0.01)" in told
    )
    assert calls(tmp_path / "out") == ["sid-lr0.003"] and read_scores(tmp_path / "out")["tasks"]["sid"]["lr"] == 0.003

    assert evaluate(data, tmp_path, "--lr", "0.003,0.01") == 0  # the finished one is not trained anew
    assert calls(tmp_path / "out") == ["sid-lr0.003", "sid-lr0.01"] and calls(tmp_path / "out", "tests.txt") == [
        "sid-lr0.003"
    ]
    assert evaluate(data, tmp_path, "--lr", "0.003") == 0  # the picked one alone: its score stays
    assert evaluate(data, tmp_path, "--lr", "0.01", tasks="pr") == 0  # another task
    assert evaluate(data, tmp_path, "--overwrite", "--lr", "0.01") == 0
    assert read_scores(tmp_path / "out")["tasks"]["sid"]["lr"] == 0.01


def test_a_rate_of_one_of_several_models_is_not_replaced(data, tmp_path, capfd):
    assert evaluate(data, tmp_path, "--lr", "0.1", "--seeds", "1,2", upstream=SEVERAL, tasks="er") == 0
    capfd.readouterr()
    assert evaluate(data, tmp_path, "--lr", "0.01", "--seeds", "2", upstream=SEVERAL, tasks="er") == 2
    assert "er was tested there at learning rate 0.1, now 0.01" in " ".join(capfd.readouterr().err.split())
    assert evaluate(data, tmp_path, "--lr", "0.01", "--seeds", "3", upstream=SEVERAL, tasks="er") == 0


def test_the_configurations_own_rate_is_compared_too_and_is_not_trained_anew(data, tmp_path, capfd):
    config = (data / "sid.yaml").read_text()
    (data / "sid.yaml").write_text(config[:-1] + ', "optimizer": {"lr": 0.1}}')
    assert evaluate(data, tmp_path) == 0
    capfd.readouterr()
    assert evaluate(data, tmp_path, "--lr", "0.01") == 2
    assert "give all (--lr sid:0.1,0.01)" in " ".join(capfd.readouterr().err.split())
    assert evaluate(data, tmp_path, "--lr", "0.1,0.01") == 0
    assert calls(tmp_path / "out") == ["sid", "sid-lr0.01"] and calls(tmp_path / "out", "tests.txt") == ["sid"]
    (data / "sid.yaml").write_text(config[:-1] + ', "optimizer": {"lr": 0.2}}')
    assert evaluate(data, tmp_path, "--lr", "0.3") == 2  # that score is of other data
    told = " ".join(capfd.readouterr().err.split())
    assert f"sid was tested there before {data / 'sid.yaml'} changed" in told
    assert evaluate(data, tmp_path, "--lr", "0.3", "--overwrite") == 0
    assert read_scores(tmp_path / "out")["tasks"]["sid"]["lr"] == 0.3


def test_of_two_rows_of_one_model_the_one_of_its_own_name_is_meant(data, tmp_path):
    assert evaluate(data, tmp_path, upstream=("--upstream", "a=mfcc")) == 0
    assert evaluate(data, tmp_path, "--seeds", "2", upstream=("--upstream", "mfcc=mfcc")) == 0
    assert evaluate(data, tmp_path, "--seeds", "3", upstream=("--upstream", "mfcc")) == 0
    seeds = {record["label"]: record["seeds"] for _, record in read_models(tmp_path / "out")}
    assert seeds == {"a": [1337], "mfcc": [2, 3]}


def test_a_card_that_is_edited_leaves_its_student_the_same(data, tmp_path, capfd):
    checkpoint = write_student(tmp_path / "states-1.ckpt")
    folders = [export_huggingface(checkpoint, tmp_path / "hf" / name) for name in ("ekd-1.0", "ekd-1.1")]
    students = ("--ckpt", str(folders[0]), "--ckpt", str(folders[1]))
    assert evaluate(data, tmp_path, upstream=students) == 0
    assert [record["label"] for _, record in read_models(tmp_path / "out")] == ["hf/ekd-1.0", "hf/ekd-1.1"]
    (folders[0] / "README.md").write_text("with scores")
    assert evaluate(data, tmp_path, "--seeds", "2", upstream=students) == 0
    config = folders[0] / "config.json"
    config.write_text(config.read_text().replace("{", '{"_note": 1, ', 1))
    capfd.readouterr()
    assert evaluate(data, tmp_path, "--seeds", "3", upstream=students) == 2
    assert f"whose {folders[0]} has changed since" in capfd.readouterr().err


def test_a_teacher_that_the_first_runs_download_is_known_as_the_same_later(data, tmp_path, monkeypatch, capfd):
    """Its digest is not known before; where the download is gone on another day, it is not known again."""
    file, script = tmp_path / "hubert.pt", tmp_path / "run_downstream.py"
    monkeypatch.setattr(sources, "hub_file", lambda *_, **__: file if file.is_file() else None)
    script.write_text(f"open({str(file)!r}, 'w').close()\n" + script.read_text())
    teacher = ("--teacher", "hubert_base")
    assert evaluate(data, tmp_path, upstream=teacher) == 0
    digest = read_scores(tmp_path / "out")["checkpoint_sha256"]
    assert digest == weights_digest(sources.describe("hubert_base"), "", download=False) is not None
    for seed in ("2", "3"):
        inputs._weights.cache_clear()  # a call is a process
        assert evaluate(data, tmp_path, "--seeds", seed, upstream=teacher) == 0
        assert read_scores(tmp_path / "out")["checkpoint_sha256"] == digest
        file.unlink()
    file.write_text("other weights")
    inputs._weights.cache_clear()
    capfd.readouterr()
    assert evaluate(data, tmp_path, "--seeds", "4", upstream=teacher) == 2
    assert "holds the scores of hubert_base, whose hubert_base has changed since" in capfd.readouterr().err
