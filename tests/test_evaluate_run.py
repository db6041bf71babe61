"""Running a plan: interruptions, failures and what is kept, with a stand-in for the native runner."""

from __future__ import annotations

import json
import signal
import threading
from concurrent.futures import wait

import pytest
from evaluate_stand_in import calls, evaluate, plan

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import run as running
from s3prl_ekd.evaluate.folder_lock import locked_folder
from s3prl_ekd.evaluate.marker import read_marker
from s3prl_ekd.evaluate.process import Children
from s3prl_ekd.evaluate.schedule import run_all


def test_a_second_call_on_one_folder_waits_for_its_turn(data, tmp_path, stand_in, capsys):
    with locked_folder(tmp_path / "out", "--out out"):
        assert evaluate(data, tmp_path) == 2
    assert "another s3prl-ekd evaluate or robustness is at work there" in capsys.readouterr().err
    assert evaluate(data, tmp_path) == 0


def test_the_last_score_that_is_printed_counts_and_all_seconds(data, tmp_path, stand_in, board, monkeypatch):
    [one] = plan(data, tmp_path, ["pr"])
    one.expdir.mkdir(parents=True)
    begun = {"settings": one.settings(), "inputs": {}, "state": "started", "seconds": 1000.0}
    (one.expdir / "run.json").write_text(json.dumps(begun))
    monkeypatch.setattr(running, "runner_scores", lambda task, output, split: [99.0, 100 / 3])
    run_logged = running.run_logged
    monkeypatch.setattr(running, "run_logged", lambda *given: (run_logged(*given)[0], 7.0))
    result = run_all([one], board)["pr"]
    assert result["per"] == pytest.approx(100 / 3) and result["seconds"] == 1000 + 7 + 7


def test_a_try_that_fails_has_taken_its_time(data, tmp_path, stand_in, board):
    [one] = plan(data, tmp_path, ["pr"])
    broken = tmp_path / "out" / "runs" / "broken"
    broken.parent.mkdir(parents=True)
    broken.touch()
    tries = []
    for _ in range(2):
        with pytest.raises(EkdError, match="boom"):
            running.do_train(one, board)
        tries.append(read_marker(one.expdir).seconds)
    assert 0 < tries[0] < tries[1]


def test_a_log_that_was_cleared_away_is_named(data, tmp_path, stand_in, board):
    [one] = plan(data, tmp_path, ["pr"])
    running.do_train(one, board)
    (one.expdir / "train.log").unlink()
    with pytest.raises(EkdError, match=f"pr/train.log: not found: .*; delete {one.expdir} to train again"):
        run_all([one], board)


def test_a_checkpoint_that_was_cleared_away_is_said(data, tmp_path, stand_in, board):
    [run] = plan(data, tmp_path, ["sid"])
    running.do_train(run, board)
    (run.expdir / "dev-best.ckpt").unlink()
    with pytest.raises(EkdError, match=rf"^{run.expdir}: no checkpoint to test: it was deleted since .delete this"):
        run_all([run], board)


def test_batches_left_out_of_a_training_are_said(data, tmp_path, stand_in, board, caplog):
    [one] = plan(data, tmp_path, ["sid"])
    run_all([one], board)
    assert "skipped" not in caplog.text
    (one.expdir.parent / "full").touch()
    [other] = plan(data, tmp_path, ["asr"])
    run_all([other], board)
    assert "2 batches did not fit into the GPU's memory and were skipped in training" in caplog.text


def test_a_failure_names_the_log_and_then_continues(data, tmp_path, stand_in, board):
    broken = tmp_path / "out" / "runs" / "broken"
    broken.parent.mkdir(parents=True)
    broken.touch()
    with pytest.raises(EkdError) as caught:
        run_all(plan(data, tmp_path, ["pr"]), board)
    assert "train.log" in str(caught.value)
    assert "RuntimeError: boom" in str(caught.value)
    assert "\n" not in str(caught.value)
    broken.unlink()
    assert run_all(plan(data, tmp_path, ["pr"]), board)["pr"]["per"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_is_done_is_kept_when_the_rest_does_not_get_done(
    data, tmp_path, stand_in, monkeypatch, capsys, interrupted
):
    from s3prl_ekd.evaluate import schedule

    do_train, stop, stopped, heard = schedule.do_train, Children.stop, threading.Event(), []

    def train(run, *rest):
        if run.key == "er-fold2":
            if interrupted:  # the run goes on until it is stopped
                signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # as the kernel may choose, on a busy host
                heard.append(stopped.wait(20))
            raise EkdError("boom")
        return do_train(run, *rest)

    monkeypatch.setattr(schedule, "do_train", train)
    monkeypatch.setattr(Children, "stop", lambda children: (stop(children), stopped.set()))
    words = ("--preset", "tiny")
    assert evaluate(data, tmp_path, *words, tasks="pr,er,asr") == (143 if interrupted else 2)
    assert heard == [True] * interrupted
    record = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(record["tasks"]) == ["pr"] and record["tasks"]["pr"]["per"] == pytest.approx(100 / 3)
    said = " ".join(capsys.readouterr().out.split())
    assert "scores.json holds the tasks that are done" in said
    assert ("run the same command again to resume" in said) == interrupted
    monkeypatch.setattr(schedule, "do_train", do_train)
    assert evaluate(data, tmp_path, *words, tasks="pr,er,asr") == 0
    assert list(json.loads((tmp_path / "out" / "scores.json").read_text())["tasks"]) == ["pr", "er", "asr"]
    assert calls(tmp_path / "out") == ["asr", "er-fold1", "er-fold2", "pr"]  # nothing was done twice


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("", "--cache-states '': expected a folder"),
        ("a=b", "--cache-states 'a=b': expected a folder without '='"),
        ("{file}", "--cache-states {file}: cannot be made"),
        ("{file}/x", "--cache-states {file}/x: cannot be made"),
    ],
)
def test_a_cache_that_cannot_be_is_said_before_any_run(data, tmp_path, stand_in, capsys, folder, message):
    (tmp_path / "file").touch()
    folder, message = (text.format(file=tmp_path / "file") for text in (folder, message))
    assert evaluate(data, tmp_path, "--cache-states", folder, tasks="pr") == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


def test_a_relative_cache_is_below_the_current_folder(data, tmp_path, monkeypatch, capsys):
    (tmp_path / "lr=0.1").mkdir()
    monkeypatch.chdir(tmp_path / "lr=0.1")
    assert evaluate(data, tmp_path, "--cache-states", "states", "--dry-run") == 2
    assert "--cache-states 'states': expected a folder without '=' and ',,' in its path" in capsys.readouterr().err


def test_no_run_begins_after_a_failure(data, tmp_path, stand_in, board, monkeypatch):
    """Nor one that is reading its inputs meanwhile; nobody would stop it, and the call would wait for its end."""
    inputs, failed = running.inputs, threading.Event()

    def read(run):
        if run.task.name == "pr":
            raise EkdError("boom")
        assert failed.wait(60)
        return inputs(run)

    stop = Children.stop
    monkeypatch.setattr(Children, "stop", lambda children: (stop(children), failed.set()))
    monkeypatch.setattr(running, "inputs", read)
    with pytest.raises(EkdError, match="boom"):
        run_all(plan(data, tmp_path, ["pr", "sid"]), board, jobs=2)
    assert not (tmp_path / "out" / "runs" / "calls.txt").exists()


def test_what_ends_together_with_a_failure_counts(data, tmp_path, stand_in, board, monkeypatch):
    from s3prl_ekd.evaluate import schedule, side_by_side

    meet = threading.Barrier(2)

    def train(run, *rest):
        meet.wait()
        if run.task.name == "pr":
            raise EkdError("boom")
        return {"dev": 50.0, "seconds": 0.0, "steps": 2, "lr": None}

    def both(futures, timeout, return_when):
        return wait(futures)

    monkeypatch.setattr(schedule, "do_train", train)
    monkeypatch.setattr(side_by_side, "wait", both)
    results = {}
    with pytest.raises(EkdError, match="boom"):
        run_all(plan(data, tmp_path, ["pr", "sid"]), board, jobs=2, results=results)
    assert list(results) == ["sid"]
