"""What training reads of a task's ``runner``, ``save_best_on`` and ``specaug``: what it cannot use is one line."""

from __future__ import annotations

import logging
import re

import pytest
from bridge_corpora import task_config
from dotted import changed

from s3prl_ekd.bridge import taskdata, taskkeys
from s3prl_ekd.errors import EkdError


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("gradient_accumulate_steps", 0, "input should be greater than or equal to 1, found 0"),
        ("total_steps", "1e3", "'1e3' is text to YAML; write 1.0e+3"),
        ("total_steps", 100, "100 are fewer than save_step (1000) and eval_step (5000), so that no checkpoint would"),
        ("eval_dataloaders", "dev", "input should be a valid list, found 'dev'"),
        ("eval_dataloaders", ["dve"], "no split 'dve'; there are train, dev, test"),
        ("fp16", "True", "input should be a valid boolean, found 'True'"),
        ("train_dataloader", "trian", "no split 'trian'; there are train, dev, test"),
    ],
)
def test_values_that_the_runner_cannot_train_with(key: str, value: object, message: str) -> None:
    config = task_config("sid")
    config["runner"][key] = value
    with pytest.raises(EkdError, match=re.escape(f"x.yaml: runner.{key}: {message}")):
        taskkeys.check_runner(config, "x.yaml", taskdata.splits("voxceleb1", config))
    assert taskdata.splits("asr", task_config("asr")) == ["train", "dev-clean", "dev-other", "test-clean", "test-other"]
    outside = changed(task_config("asr"), {"downstream_expert.datarc": {"test/../../x": [], "test-own": []}})
    assert taskdata.splits("asr", outside) == ["test-own"]  # s3prl names files by the split
    assert taskdata.splits("a_task_of_s3prls", config) is None


def test_a_run_that_counts_on_from_another_one_leaves_a_checkpoint() -> None:
    """With ``-i`` s3prl's first step is the one after the checkpoint's: there may be none, or none that is saved."""
    config = changed(task_config("sid"), {"runner.save_step": 30, "runner.eval_step": 50})
    for total, begin in ((90, 60), (89, 29), (100, 90)):
        config["runner"]["total_steps"] = total
        taskkeys.check_runner(config, "x.yaml", begin=begin)
    for total, begin in ((60, 60), (50, 60), (89, 60)):
        config["runner"]["total_steps"] = total
        said = f"x.yaml: runner.total_steps: {total}: -i counts on from its step {begin}, and the run ends before the "
        with pytest.raises(EkdError, match=f"^{re.escape(said)}next save_step.*; give more steps$"):
            taskkeys.check_runner(config, "x.yaml", begin=begin)


def test_steps_that_no_checkpoint_will_hold_are_told(caplog: pytest.LogCaptureFixture) -> None:
    config = changed(task_config("sid"), {"runner.save_step": 30, "runner.eval_step": 50})
    for total, kept in ((89, 60), (101, 100), (90, None), (100, None)):
        config["runner"]["total_steps"] = total
        caplog.clear()
        with caplog.at_level(logging.INFO, "s3prl_ekd"):
            taskkeys.check_runner(config, "x.yaml")
        said = (
            f"x.yaml: runner.total_steps: {total} is no multiple of save_step (30) or eval_step (50), and s3prl saves "
        )
        expected = [] if kept is None else [f"{said}nothing at the end: no checkpoint will hold the steps after {kept}"]
        assert caplog.messages == expected


def test_a_best_checkpoint_of_a_split_that_there_is_not() -> None:
    config = task_config("pr")
    for best in (["dve"], "dve"):
        config["downstream_expert"]["save_best_on"] = best
        with pytest.raises(EkdError, match="x.yaml: downstream_expert.save_best_on: no split 'dve'; there are train, "):
            taskkeys.check_runner(config, "x.yaml", taskdata.splits("ctc", config))
    for best in (None, [None], 3):  # s3prl asks whether the split that it has evaluated is in it
        config["downstream_expert"]["save_best_on"] = best
        with pytest.raises(EkdError, match="x.yaml: downstream_expert.save_best_on: .*expected a list of splits"):
            taskkeys.check_runner(config, "x.yaml", taskdata.splits("ctc", config))


@pytest.mark.parametrize(
    "values",
    [
        5,
        ["apply_time_warp"],
        {"num_freq_maks": 2},
        {"apply_time_warp": False, "apply_freq_mask": False, "apply_time_mask": False},
        {"num_time_mask": 0},
        {"time_mask_width_range": [0, 0]},
        {"time_warp_mode": "cubic"},
    ],
)
def test_masks_that_cannot_be_made_of_a_config(values: object) -> None:
    with pytest.raises(EkdError, match="^x.yaml: specaug: no masks can be made of these keys "):
        taskkeys.check_specaug({"specaug": values}, "x.yaml")


def test_masks_that_can() -> None:
    for config in (task_config("asr"), {}, {"specaug": None}, {"specaug": {"num_time_mask": 1}}):
        taskkeys.check_specaug(config, "x.yaml")


def test_what_the_runner_reads_without_a_default_must_be_there() -> None:
    for name in ("pr", "sid", "er", "asr"):
        config = task_config(name)
        taskkeys.check_runner(config, "x.yaml")
        for key in list(config["runner"]):
            less = {"runner": {other: value for other, value in config["runner"].items() if other != key}}
            with pytest.raises(EkdError, match=f"x.yaml: runner.{key}: is missing"):
                taskkeys.check_runner(less, "x.yaml")


@pytest.mark.parametrize(
    ("key", "wrong", "right"),
    [
        ("total_steps", (0, -1, 1.5, "100", True), (1,)),
        ("gradient_accumulate_steps", (0, None), (1,)),
        ("gradient_clipping", (0, -1.0, "1"), (1, 0.5)),
        ("log_step", (0, "1e3"), (1,)),
        ("eval_step", (0,), (1,)),
        ("save_step", (0,), (1,)),
        ("max_keep", (0,), (1,)),
        ("evaluate_ratio", (0, 1.5), (1, 0.1)),
        ("fp16", (1, "yes"), (True, False)),
        ("eval_dataloaders", ("dev", [1]), (["dev"], [])),
        ("train_dataloader", (None, ["train"]), ("train",)),
    ],
)
def test_what_the_runner_can_train_with(key: str, wrong: tuple, right: tuple) -> None:
    config = task_config("er")
    config["runner"]["save_step"] = 1  # that a single step leaves a checkpoint
    for value in right:
        config["runner"][key] = value
        taskkeys.check_runner(config, "x.yaml")
    for value in wrong:
        config["runner"][key] = value
        with pytest.raises(EkdError, match=rf"^x.yaml: runner\.{key}\b"):
            taskkeys.check_runner(config, "x.yaml")
