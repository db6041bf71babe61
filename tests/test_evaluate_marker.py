"""run.json: which earlier run counts as done, and which one had other settings or read other things."""

from __future__ import annotations

import json
import os

import pytest
from evaluate_stand_in import calls, evaluate, make_data, plan
from export_student import write_student

from s3prl_ekd.checked import read_yaml
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.marker import Marker, read_marker, write_marker
from s3prl_ekd.evaluate.models import Upstream
from s3prl_ekd.evaluate.plan import make_plan
from s3prl_ekd.evaluate.schedule import run_all
from s3prl_ekd.evaluate.scores_file import read_scores
from s3prl_ekd.evaluate.tasks import TASKS


def test_other_settings_are_refused_then_overwritten(data, tmp_path, stand_in, board):
    run_all(plan(data, tmp_path, ["pr"]), board)
    changed = plan(data, tmp_path, ["pr"], normalize=True)
    with pytest.raises(EkdError, match="another normalize .False, now True.*--overwrite"):
        run_all(changed, board)
    run_all(changed, board, overwrite=True)
    assert calls(tmp_path / "out") == ["pr", "pr"]


@pytest.mark.parametrize("what", ["checkpoint", "configuration", "table"])
def test_what_lies_under_the_same_path_may_have_changed(what, tmp_path, stand_in, board):
    """A student trained again under its name, data prepared again: the scores of the former are not theirs."""
    data = make_data(tmp_path / "own")
    student = write_student(tmp_path / "states-1.ckpt")
    model = Upstream("ekd_student", "mine", checkpoint=student)

    def planned():
        return make_plan([TASKS["sid"]], data, tmp_path / "out", model, {})

    run_all(planned(), board)
    config = data / "sid.yaml"
    config.write_text("# the same, prepared again\n" + config.read_text())
    os.utime(student, (1, 1))
    run_all(planned(), board)
    assert calls(tmp_path / "out") == ["sid"]
    if what == "checkpoint":
        file = write_student(student, seed=2)
    elif what == "table":
        file = data / "split.txt"
        file.write_text(file.read_text() + "2 id10001/b/1.wav\n")
    else:
        file = config
        file.write_text(json.dumps({**read_yaml(file), "specaug": {}}))
    with pytest.raises(EkdError, match=rf"run.json: an earlier run here was made before {file} changed"):
        run_all(planned(), board)
    run_all(planned(), board, overwrite=True)
    assert calls(tmp_path / "out") == ["sid", "sid"]


@pytest.mark.parametrize("what", ["transcripts", "weights", "base"])
def test_what_no_path_of_the_call_names_may_have_changed_too(what, tmp_path, stand_in, board, monkeypatch):
    """Texts prepared again beside the same audio; a teacher's name that has other weights now; a file's ``base:``."""
    from s3prl_ekd.evaluate import inputs as reading

    data, task, model = make_data(tmp_path / "own"), "sid", Upstream("fbank", "fbank")
    if what == "transcripts":
        task, changing = "asr", tmp_path / "libri" / "train-clean-100" / "1" / "1-1.trans.txt"
        changing.parent.mkdir(parents=True)
        section = {"datarc": {"libri_root": str(tmp_path / "libri"), "train": ["train-clean-100"], "dev-clean": ["x"]}}
        config = read_yaml(data / "asr.yaml") | {"downstream_expert": section}
        (data / "asr.yaml").write_text(json.dumps(config))
        named = f"the transcripts below {tmp_path / 'libri' / 'train-clean-100'}"
    elif what == "weights":
        changing = tmp_path / "weights"
        monkeypatch.setattr("s3prl_ekd.teachers.fingerprint.weights_digest", lambda *a, **b: changing.read_text())
        model, named = Upstream("ekd_teacher", "t", checkpoint="embedded:tiny_hubert"), "the weights of embedded:tiny"
    else:
        changing, mine = tmp_path / "base.yaml", tmp_path / "mine.yaml"
        mine.write_text("base: base.yaml\n")
        model, named = Upstream("ekd_student", "u", model_config=mine), f"the student of {mine}"
    former, latter = ("base: config_model.yaml\n", "base: config_model.yaml\nstudent: {layers: 1}\n")
    changing.write_text(former)

    def planned():
        reading._texts.cache_clear()
        reading._weights.cache_clear()  # a call is a process
        return make_plan([TASKS[task]], data, tmp_path / "out", model, {})

    run_all(planned(), board)
    changing.write_text(former)
    run_all(planned(), board)
    assert calls(tmp_path / "out") == [task]
    changing.write_text(latter)
    with pytest.raises(EkdError, match=f"an earlier run here was made before {named}"):
        run_all(planned(), board)


def test_asrs_tables_count(tmp_path, stand_in, board):
    data, file = make_data(tmp_path / "own"), tmp_path / "tables" / "train.csv"
    file.parent.mkdir()
    file.write_text("a")
    model = Upstream("fbank", "fbank")
    config = read_yaml(data / "asr.yaml") | {"downstream_expert": {"datarc": {"bucket_file": str(file.parent)}}}
    (data / "asr.yaml").write_text(json.dumps(config))
    run_all(make_plan([TASKS["asr"]], data, tmp_path / "out", model, {}), board)
    file.write_text("b")
    with pytest.raises(EkdError, match=f"an earlier run here was made before {file} changed"):
        run_all(make_plan([TASKS["asr"]], data, tmp_path / "out", model, {}), board)


def test_a_mistake_that_ended_at_once_does_not_block_the_folder(data, tmp_path, stand_in):
    broken = tmp_path / "out" / "runs" / "broken"
    broken.parent.mkdir(parents=True)
    broken.touch()
    assert evaluate(data, tmp_path, upstream=("--upstream", "mfcc")) == 2
    broken.unlink()
    assert evaluate(data, tmp_path, upstream=("--upstream", "fbank")) == 0
    assert read_scores(tmp_path / "out")["upstream"] == "fbank"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--override", "config.optimizer.lr=0.1", "--seed", "1"), "another config.optimizer.lr (not set, now 0.1)"),
        (("--override", "config.runner.total_steps=3", "--seed", "1"), "another config.runner.total_steps (4, now 3)"),
        (("--seed", "1"), "another config.runner.total_steps (4, now not set)"),
        (("--seed", "1", "--label", "mfcc"), "another upstream (-u fbank, now -u mfcc)"),
    ],
)
def test_what_an_earlier_run_had_is_named(data, tmp_path, stand_in, capfd, words, told):
    """The one setting, not all of them: their lists are as long as a preset."""
    assert evaluate(data, tmp_path, "--override", "config.runner.total_steps=4", "--seed", "1") == 0
    (tmp_path / "out" / "scores.json").unlink()  # which would be asked first
    model = ("--upstream", "mfcc" if "mfcc" in words else "fbank")
    assert evaluate(data, tmp_path, *words, upstream=model) == 2
    assert f"run.json: an earlier run here had {told}; choose another --out, or --overwrite" in capfd.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["[1", "[]", "{}", '{"settings": {}, "inputs": {}, "status": 1}', '{"settings": null, "inputs": {}}',
     '{"settings": {}, "inputs": ["a"]}'],
)  # fmt: skip
def test_a_damaged_marker_is_one_clear_line(data, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(EkdError, match=rf"{tmp_path}/run.json: not readable .*; delete {tmp_path} to run it again$"):
        read_marker(tmp_path)


def test_a_marker_is_read_as_it_was_written(tmp_path):
    marker = Marker({"seed": 1}, {"a": "b"})
    write_marker(tmp_path, marker)
    expected = {"settings": {"seed": 1}, "inputs": {"a": "b"}, "state": "started", "seconds": 0.0}
    assert json.loads((tmp_path / "run.json").read_text()) == expected  # no result before there is one
    assert read_marker(tmp_path) == marker
    marker.state, marker.result = "finished", {"per": 1.0}
    write_marker(tmp_path, marker)
    assert read_marker(tmp_path) == marker
