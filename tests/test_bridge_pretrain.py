"""run_pretrain.py without a run: what s3prl's own tasks need of a configuration, and what a checkpoint brings back."""

from __future__ import annotations

import copy
import re
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from bridge_corpora import librispeech, tera
from dotted import changed

from s3prl_ekd.bridge import checkpoints, pretrain_configs, pretrain_launch
from s3prl_ekd.bridge.given_model import GivenModel
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.config import load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.variants import find_model_config


def test_what_s3prls_own_tasks_take_for_granted(tmp_path: Path) -> None:
    file, _ = tera(tmp_path, librispeech(tmp_path))

    values = yaml.safe_load(file.read_text())
    for changes in ({}, {"runner.n_epochs": 1}, {"pretrain_expert.datarc": None}):
        pretrain_configs.check_theirs(changed(values, changes), "x.yaml")
    for key, value, message in (
        ("optimizer", None, "x.yaml: the section 'optimizer' is missing"),
        ("pretrain_expert", [1], "x.yaml: the section 'pretrain_expert' is missing"),
        ("runner.max_keep", None, "x.yaml: runner.max_keep: expected a whole number, found None"),
        ("runner.total_steps", "1e5", "x.yaml: runner.total_steps: expected a whole number, found '1e5'"),
        ("runner.save_step", 3, "x.yaml: runner.save_step: 3 must be below total_steps 3"),
        ("runner.log_step", 4, "x.yaml: runner.log_step: 4 must be below total_steps 3"),
        ("pretrain_expert.datarc.libri_root", "none", "x.yaml: pretrain_expert.datarc.libri_root: none: no such fold"),
        ("pretrain_expert.datarc.sets", ["train-clean-100", "a"], "len_for_bucket/a.csv: no such table of lengths"),
    ):
        with pytest.raises(EkdError, match=re.escape(message)):
            pretrain_configs.check_theirs(changed(values, {key: value}), "x.yaml")
    with pytest.raises(EkdError, match=r"x.yaml: the section 'runner' is missing"):
        pretrain_configs.check_theirs(["runner"], "x.yaml")


def test_epochs_that_are_too_few_steps() -> None:
    def check(epochs: int, batches: int = 10, **rules: int) -> None:
        rules = {"n_epochs": epochs, "gradient_accumulate_steps": 1, "log_step": 5, "save_step": 9, **rules}
        pretrain_configs.check_epochs({"runner": rules, "optimizer": {"name": "TorchOptim"}}, batches, "x.yaml")

    check(1)
    check(-1, 1)  # total_steps count
    check(2, gradient_accumulate_steps=2)
    for words in ({"log_step": 10, "save_step": 1}, {"save_step": 10}):
        with pytest.raises(EkdError, match=r"_step: 10 must be below the 10 steps of n_epochs: 1$"):
            check(1, **words)
    with pytest.raises(EkdError, match=r"save_step: 9 must be below the 5 steps of n_epochs: 1$"):
        check(1, gradient_accumulate_steps=2, log_step=1)


def test_a_schedule_for_another_number_of_steps_than_the_epochs_are_is_said(caplog: pytest.LogCaptureFixture) -> None:
    rules = {"n_epochs": 2, "gradient_accumulate_steps": 1, "log_step": 5, "save_step": 9, "total_steps": 200_000}
    scheduled, plain = {"name": "AdamW_with_schedule"}, {"name": "TorchOptim"}
    for quiet in (
        {"runner": rules, "optimizer": plain},
        {"runner": rules | {"total_steps": 20}, "optimizer": scheduled},
        {"runner": rules | {"n_epochs": -1}, "optimizer": scheduled},
    ):
        pretrain_configs.check_epochs(quiet, 10, "x.yaml")
        assert caplog.text == ""
    for warned in ({"optimizer": scheduled}, {"optimizer": plain, "scheduler": {"name": "any"}}):
        caplog.clear()
        pretrain_configs.check_epochs({"runner": rules} | warned, 10, "x.yaml")
        expected = "schedule is for runner.total_steps: 200000, not for the 20 steps of n_epochs: 2; to match them, add"
        assert expected in caplog.text and "total_steps=20" in caplog.text


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pretrain_launch.PretrainLaunch:
    monkeypatch.chdir(tmp_path)
    one = pretrain_launch.PretrainLaunch(Run([]))
    one.args = Namespace(upstream=None, past_exp=None, config="c.yaml")
    return one


def test_a_checkpoint_of_another_task_is_not_gone_on_with(launch: pretrain_launch.PretrainLaunch) -> None:
    """s3prl would train the checkpoint's task, whatever -u says."""
    torch.save({"Optimizer": {}, "Step": 1, "Config": {}, "Args": Namespace(upstream="tera")}, "a.ckpt")
    for upstream in (None, "tera"):
        launch.args.upstream = upstream
        assert launch._read_runner("a.ckpt")["Step"] == 1
    launch.args.upstream = "ekd"
    with pytest.raises(EkdError, match="a.ckpt: a checkpoint of -u tera, not of -u ekd$"):
        launch._read_runner("a.ckpt")


def test_a_teacher_that_has_moved_is_where_g_says(launch: pretrain_launch.PretrainLaunch, tmp_path: Path) -> None:
    """And of the schedule, the number of steps is the run's, not the checkpoint's."""
    new = tmp_path / "new.pt"
    new.touch()
    old = f"{tmp_path}/old.pt"
    given = load_model_config(find_model_config("hubert")).model_dump(mode="json")
    (teacher,) = given["ekd"]["teachers"]
    schedules = Schedule(100.0), Schedule(-1.0)
    groups = [{"schedule": one} for one in schedules] + [{}]
    kept = copy.deepcopy(given)
    kept["ekd"]["teachers"] = [teacher | {"source": old}]
    teacher["source"] = str(new)
    Path("g.yaml").write_text(yaml.safe_dump(given))
    launch.config = {"runner": {"total_steps": 7}}
    state = {"Optimizer": {"param_groups": groups}, "Upstream_Config": kept}

    def load(task: str, model: str | None) -> str:
        launch.args.upstream, launch.model = task, GivenModel(model)
        state["Args"] = Namespace(upstream=task)
        found = launch._load_state("x.ckpt")["Upstream_Config"]
        return found["ekd"]["teachers"][0]["source"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "read", lambda path: copy.copy(state))
        assert load("tera", None) == old  # what another task keeps there is its business
        for model in (None, "hubert"):
            gone = rf"x.ckpt: ekd.teachers\[0\].source: no such file or folder: {old}; if it has moved, .* new place$"
            with pytest.raises(EkdError, match=gone):
                load("ekd", model)
        assert load("ekd", "g.yaml") == str(new)
    assert [schedule.t_total for schedule in schedules] == [7.0, -1.0]


@dataclass
class Schedule:
    """An optimizer's, of so many steps; -1: none in particular."""

    t_total: float


def test_another_tasks_model_that_is_not_read_is_said(launch: pretrain_launch.PretrainLaunch) -> None:
    Path("g.yaml").write_text("transformer: {layers: 3}\naudio: {feat: mel}\n")
    launch.args = Namespace(config="c.yaml", override=None)
    launch.model = GivenModel("g.yaml")
    launch.explicit = {"upstream_config"}
    for kept, said in (
        ({"transformer": {"layers": 3}, "audio": {"feat": "mel"}}, []),
        ({"transformer": {"layers": 12}, "audio": {"feat": "mel"}}, ["-g g.yaml (differs in transformer.layers)"]),
        ("old/model.yaml", ["-g g.yaml (differs in transformer, audio)"]),  # of s3prl's own, a path
    ):
        state = {"Args": Namespace(upstream="tera"), "Config": {}, "Upstream_Config": kept}
        assert launch._differences(state) == said


def test_the_model_of_another_task_is_not_changed(launch: pretrain_launch.PretrainLaunch) -> None:
    """Without -u, the checkpoint alone says whose run it is."""
    launch.model = GivenModel.of(None, "upstream_config.transformer.layers=3")
    launch._read_runner = lambda path: {"Args": Namespace(upstream="tera")}  # type: ignore[method-assign]
    with pytest.raises(EkdError, match=r"^-o upstream_config\.: is for -u ekd; t.ckpt is of -u tera$"):
        launch._note_kept(Path("t.ckpt"))


def test_another_seed_by_o_is_refused_where_a_run_goes_on(launch: pretrain_launch.PretrainLaunch) -> None:
    """It would be kept as the run's, whose batches and weights are of the one before."""
    launch._read_runner = lambda path: {"Args": Namespace(upstream="ekd", seed=5)}  # type: ignore[method-assign]
    for overridden in ({}, {"seed": 5}, {"device": "cpu", "mine": 3}):
        launch.overridden = overridden
        launch._note_kept(Path("x.ckpt"))
    launch.overridden = {"seed": 7}
    saved = Namespace(upstream="tera", seed=5)
    launch._check_kept({"Args": saved}, Path("t.ckpt"))  # of s3prl's own: what it draws from now on is the new seed's
    with pytest.raises(EkdError, match="^-o args.seed=7: x.ckpt was trained with 5, and a run that goes on keeps its"):
        launch._note_kept(Path("x.ckpt"))


def test_the_model_file_by_o_is_that_of_g(launch: pretrain_launch.PretrainLaunch) -> None:
    launch.args, launch.overridden = Namespace(config="c.yaml", override=None), {"upstream_config": "concat"}
    launch._check_first(Namespace(expname="x", expdir=None, upstream_config="average", override=None))
    kept = load_model_config("average").model_dump(mode="json")
    state = {"Args": Namespace(upstream="ekd"), "Config": {}, "Upstream_Config": kept}
    assert launch._differences(state) == ["-g concat (differs in ekd.mode)"]


def test_of_the_command_only_what_was_given_wins_over_the_checkpoint(launch: pretrain_launch.PretrainLaunch) -> None:
    """A run of a GPU goes on where the command says, and where it says nothing, on the checkpoint's device."""
    launch.args = Namespace(device="cpu", override="config.a=1", multi_gpu=True, seed=5)
    saved = Namespace(device="cuda", override="config.a=2", multi_gpu=False, seed=1)
    launch._correct_saved(saved)
    # -o of before is in the configuration, and s3prl evaluates its values
    assert saved == Namespace(device="cuda", override="config.a=1", multi_gpu=False, seed=1)
    launch.explicit = {"device", "override", "multi_gpu", "seed"}
    launch._correct_saved(saved)
    assert saved == Namespace(device="cpu", override="config.a=1", multi_gpu=True, seed=1)


def test_the_files_of_a_run_are_copied_by_one_rank_and_never_onto_themselves(
    launch: pretrain_launch.PretrainLaunch, tmp_path: Path
) -> None:
    launch.args.upstream = "tera"
    Path("x").mkdir()
    Path("mine.yaml").write_text("a: 1\n")
    launch._copyfile("mine.yaml", "x/config_model.yaml")
    launch._copyfile("x/config_model.yaml", str(tmp_path / "x/config_model.yaml"))
    assert Path("x/config_model.yaml").read_text() == "a: 1\n"
    launch.world.rank = 1
    launch._copyfile("mine.yaml", "x/config_runner.yaml")
    assert not Path("x/config_runner.yaml").exists()


def test_a_gradient_that_is_no_number_is_no_step(launch: pretrain_launch.PretrainLaunch) -> None:
    """An infinite one neither, which clipping makes NaN of; under fp16 it is how the loss scale is found."""
    nan, infinite = float("nan"), float("inf")
    launch.config = {"runner": {"fp16": False}}
    assert launch._no_step(nan) and launch._no_step(infinite) and not launch._no_step(1.0)
    launch.config = {"runner": {"fp16": True}}
    assert launch._no_step(nan) and not launch._no_step(infinite) and not launch._no_step(1.0)


def test_ranks_are_for_our_task_and_multi_gpu_for_the_others(launch: pretrain_launch.PretrainLaunch) -> None:
    def check(task: str, ranks: int, multi_gpu: bool) -> None:
        launch.world.size = ranks
        launch.args = Namespace(upstream=task)
        launch._check_processes(Namespace(upstream=task, multi_gpu=multi_gpu))

    check("ekd", 2, False)
    check("tera", 1, True)
    with pytest.raises(EkdError, match="--multi_gpu would cut waveforms along time; use torchrun"):
        check("ekd", 1, True)
    with pytest.raises(EkdError, match="-u tera: this task of s3prl trains in one process; start it without torchrun"):
        check("tera", 2, False)


def test_batches_that_will_be_others_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    def said(**changes: object) -> list[str]:
        caplog.clear()
        plain = {"train_batch_size": 8, "batch_seconds": None, "max_timestep": 1, "sets": ["a"], "seed": 0}
        one, other = ({"pretrain_expert": {"datarc": found}} for found in (plain, plain | changes))
        pretrain_configs.warn_of_other_batches(one, other)
        return [record.getMessage().partition(":")[0] for record in caplog.records]

    assert said() == [] == said(num_workers=9)
    changes = {"train_batch_size": 9, "batch_seconds": 8.0, "max_timestep": 2, "sets": ["b"], "seed": 1}
    assert said(**changes) == [f"datarc.{key}" for key in changes]
