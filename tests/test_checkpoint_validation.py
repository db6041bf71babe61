"""When the validation loss of pretraining is measured: with each checkpoint, at no cost to training; and a stop."""

from __future__ import annotations

import json
import os
import signal
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from console import code
from pretrain_lab import Logger, final_weights, hold_out, new_run, run
from target_cache_lab import batches, make_expert, train
from validation_lab import HELD_OUT, save


@pytest.fixture(scope="module")
def lab(lab: Path) -> Path:
    return hold_out(lab)


@pytest.mark.parametrize(
    "options",
    [{}, {"targets": {"normalise": "standardise"}, "teacher_dropping": {}, "balance": {}}],
    ids=["paper", "every option"],
)
def test_training_knows_nothing_of_it(lab: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Dropout draws, running statistics and weights are those of a run without, bit for bit."""
    results = []
    for data in ({}, HELD_OUT):
        expert = make_expert(lab, None, data, **options)
        losses = train(expert, batches(expert, 1))
        save(expert, tmp_path / str(len(data)))
        assert expert.model.training and expert.objective.training
        losses += train(expert, batches(expert, 1))
        results.append((losses, expert.model.state_dict(), expert.objective.state_dict()))
    (losses, *states), (same, *others) = results
    assert losses == same
    for one, other in zip(states, others, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_long_one_shows_how_far_it_is(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expert = make_expert(lab, None, HELD_OUT)
    save(expert, tmp_path)
    assert "validation: " not in capsys.readouterr().err
    monkeypatch.setattr("s3prl_ekd.pretrain.ekd.validation.BAR_AFTER", 0.0)
    save(expert, tmp_path, 8)
    assert "validation:   0%" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("Triton Error [CUDA]: out of memory")]
)
def test_no_memory_for_it_costs_no_checkpoint(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: RuntimeError
) -> None:
    expert = make_expert(lab, None, HELD_OUT)

    def full(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(expert.objective, "forward", full)
    assert save(expert, tmp_path) == []
    assert f"no validation loss: {error}" in caplog.text
    assert expert.model.training and expert.objective.training


def test_it_takes_no_time_of_training(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    expert = make_expert(lab, None, HELD_OUT)
    data = iter(list(expert.get_train_dataloader()))
    speeds = []
    for step in (1, 2):
        clock[0] += 1.0
        batch = next(data)
        _, records = expert(batch, records={}, global_step=step, log_step=1)
        speeds.append(records["ekd"]["audio_seconds_per_second"] / batch.seconds)
        monkeypatch.setattr(expert.validation, "measure", lambda *a: clock.__setitem__(0, clock[0] + 50.0))
        save(expert, tmp_path)
    assert speeds == pytest.approx([1.0, 1.0])


def test_tensorboard_has_it(lab: Path, tmp_path: Path) -> None:
    expert, logger = make_expert(lab, None, HELD_OUT), Logger(tmp_path)
    expert.log_records({}, logger, "ekd/train-", 4)
    save(expert, tmp_path)
    assert {"ekd/valid-loss", "ekd/valid-wavlm.6/cosine"} <= logger.tags


def test_a_run_that_goes_on_measures_what_it_owes(lab: Path, tmp_path: Path) -> None:
    """And from then on each loss when it is told that the checkpoint is on the disk."""
    first = make_expert(lab, None, HELD_OUT)
    state = first.add_state_to_save({"Step": 3, "Args": Namespace(expdir=str(tmp_path))})
    whole = (tmp_path / "validation.jsonl").read_text()
    owing = make_expert(lab, None, HELD_OUT)
    owing.load_model(state)
    (tmp_path / "states-4.ckpt").write_text("4")
    arguments = Namespace(expdir=str(tmp_path), past_exp=str(tmp_path / "states-4.ckpt"), upstream="ekd")
    owing.checkpoint_validation.on_train_begin(arguments, Logger(tmp_path), state["Step"])
    assert (tmp_path / "validation.jsonl").read_text() == whole  # nothing is owed
    (tmp_path / "validation.jsonl").write_text("")
    logger = Logger(tmp_path)
    owing.checkpoint_validation.on_train_begin(arguments, logger, state["Step"])
    assert (tmp_path / "validation.jsonl").read_text() == whole and "ekd/valid-loss" in logger.tags
    assert len(save(owing, tmp_path, 8)) == 1
    for _ in range(2):
        owing.checkpoint_validation.on_saved(tmp_path / "states-8.ckpt")
    lines = (tmp_path / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8]
    again = make_expert(lab, None, HELD_OUT)  # from step 4, what is later moved away, by another save_step
    again.load_model(state)
    assert [line["step"] for line in save(again, tmp_path, 10)] == [4, 10]


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, 12], ids=["midway", "the last"])
def test_a_stop_while_validating_costs_no_training(lab: Path, tmp_path: Path, step: int) -> None:
    """The checkpoint is there already; with -a the run begins with the loss that it lacks."""
    rules = ["-o", "config.pretrain_expert.datarc.valid_sets=['valid']"]
    done = run(tmp_path, *new_run(lab, "whole"), *rules)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (tmp_path / "whole" / "validation.jsonl").read_text()
    text = (
        "import os, signal, sys\n"
        "from s3prl_ekd.bridge import launch\n"
        "from s3prl_ekd.pretrain.ekd.validation import Validation\n"
        "measure, calls = Validation.measure, []\n"
        "def stopped(self, *rest):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == {step // 4}:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return measure(self, *rest)\n"
        "Validation.measure = stopped\n"
        "sys.exit(launch.run_pretrain())\n"
    )
    words = [*new_run(lab, "cut"), *rules, "--device", "cpu"]
    cut = code(text, *words, cwd=tmp_path)
    assert cut.returncode == 128 + signal.SIGINT, cut.stderr[-2000:]
    assert "stopped by SIGINT; continue with: " in cut.stderr
    kept = (tmp_path / "cut" / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == list(range(4, step, 4))
    again = run(tmp_path, *new_run(lab, "cut"), *rules, "-a")
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"[ekd] step {step}: validation loss " in again.stdout
    assert ("[ekd] step 10: loss" in again.stdout) == (step == 8)  # no step is done again
    assert (tmp_path / "cut" / "validation.jsonl").read_text() == lines
    weights = final_weights(tmp_path / "whole")
    assert all(torch.equal(value, weights[name]) for name, value in final_weights(tmp_path / "cut").items())
    finished = run(tmp_path, *new_run(lab, "cut"), *rules, "-a")
    assert finished.returncode == 0 and "finished at step 12; nothing to do" in finished.stderr


@pytest.mark.slow
def test_the_command_says_it_and_a_continued_run_repeats_it(lab: Path, tmp_path: Path) -> None:
    words = ["-u", "ekd", "-n", "x", "-g", str(lab / "model.yaml"), "-c", str(lab / "runner.yaml")]
    datarc = "config.pretrain_expert.datarc"
    plain = run(tmp_path, *words, "-p", "plain")
    assert plain.returncode == 0, plain.stderr[-2000:]
    done = run(tmp_path, *words, "-p", "whole", "-o", f"{datarc}.valid_sets=['valid']")
    assert done.returncode == 0, done.stderr[-2000:]
    for step in (4, 8, 12):
        assert f"[ekd] step {step}: validation loss " in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "whole" / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12] and lines[-1]["loss"] < lines[0]["loss"]
    weights = final_weights(tmp_path / "whole")
    assert all(torch.equal(value, weights[name]) for name, value in final_weights(tmp_path / "plain").items())
    assert os.path.samefile(tmp_path / "whole/dev-best.ckpt", tmp_path / "whole/states-epoch-4.ckpt")
    for later in ("states-8.ckpt", "states-epoch-4.ckpt"):
        (tmp_path / "whole" / later).unlink()
    done = run(tmp_path, "-u", "ekd", "-e", "whole/states-4.ckpt")
    assert done.returncode == 0, done.stderr[-2000:]
    again = [json.loads(line) for line in (tmp_path / "whole" / "validation.jsonl").read_text().splitlines()]
    assert again == lines
