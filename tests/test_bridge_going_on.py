"""A run that goes on: what the launchers say of configurations that it does not read, and when it is finished."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from s3prl_ekd.bridge import checkpoints, downstream_launch, kept_config, pretrain_launch
from s3prl_ekd.bridge.given_model import GivenModel
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.bridge.script_launch import Finished
from s3prl_ekd.config import DataConfig, load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.variants import find_model_config


def test_what_a_run_that_goes_on_does_not_read_is_said_where_it_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="s3prl_ekd")
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    given = {
        "runner": {"total_steps": 8, "log_step": 2},
        "data": {"sets": ["a", "b"], "dict": "char.dict", "root": "there"},
    }
    kept = {"runner": {"total_steps": 8, "log_step": 2, "filled": 1}, "data": {"sets": ["a", "b"]}}
    kept["data"] |= {"dict": "/package/resources/char.dict", "root": str(tmp_path / "there")}
    launch = downstream_launch.DownstreamLaunch(Run([]))
    launch.args = Namespace(config="mine.yaml", override=None)
    state = {"Args": Namespace(downstream="emotion", config="old.yaml"), "Config": kept}
    launch._read_runner = lambda path: state  # type: ignore[method-assign, assignment]
    monkeypatch.setattr(checkpoints, "read", lambda path, mmap: state)

    def said(changes: dict[str, Any], override: str | None = None) -> str:
        caplog.clear()
        launch.args.override = override
        Path("mine.yaml").write_text(yaml.safe_dump({key: given[key] | changes.get(key, {}) for key in given}))
        launch._note_kept(Path("x/states-4.ckpt"))
        stored = "x/states-4.ckpt: the configuration stored in it is used (-o config. can change that of -c); "
        words = caplog.text.partition(stored)[2]
        return words.strip()

    changes = {"runner": {"total_steps": 9, "eval_step": 5}, "data": {"sets": ["a", "c"], "root": "elsewhere"}}
    assert said(changes) == ""  # no -c was given
    launch.explicit = {"config"}
    assert said({}) == ""  # the same command with -a
    assert said(changes) == (
        "ignored: -c mine.yaml (differs in data.root, data.sets[1], runner.eval_step, runner.total_steps)"
    )
    assert said(changes, "config.runner.total_steps=20,,config.data=3") == (
        "ignored: -c mine.yaml (differs in runner.eval_step)"
    )
    many = said({"runner": {f"key{number}": 0 for number in range(9)}})
    assert many.endswith("key0, runner.key1, runner.key2, runner.key3, runner.key4, runner.key5 and 3 more)")
    Path("mine.yaml").unlink()
    launch._note_kept(Path("x/states-4.ckpt"))
    assert caplog.text.endswith("ignored: -c mine.yaml\n")


def test_where_a_configuration_differs_from_the_kept_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def said(given: object, kept: object) -> str:
        found = kept_config.difference("-c x", lambda: ({"a": given}, {"a": kept, "filled_in": 1}))
        return "".join(found).removeprefix("-c x (differs in ").removesuffix(")")

    for given, kept, key in (
        ({"b": 1}, None, "a"),
        (None, {"b": 1}, "a"),
        ({"b": {"c": 1}}, {"b": {}}, "a.b.c"),
        ([1, 2], [1], "a"),
        ([1], [1, 2], "a"),
        ("x", ["x"], "a"),
        (["x"], "x", "a"),
        ([{"b": 1}, {"b": 2}], [{"b": 1}, {"b": 3}], "a[1].b"),
        ("", "/data/", "a"),
        ("a/b", "/data/xa/b", "a"),
    ):
        assert said(given, kept) == key, (given, kept)
    for same in ("b/c", "./b/c", "x/../b/c", str(tmp_path / "b/c")):
        assert said(same, f"{tmp_path}/b/c") == "", same
    assert said("~/c", f"{tmp_path}/home/c") == "" == said([{"b": 1}], [{"b": 1, "c": 2}])


def test_the_model_that_pretraining_goes_on_with_is_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="s3prl_ekd")
    launch = pretrain_launch.PretrainLaunch(Run([]))
    launch.args = Namespace(config="c.yaml", override=None, upstream=None)
    launch.model = GivenModel("average")
    launch.explicit = {"upstream_config"}
    kept = load_model_config(find_model_config("average")).model_dump(mode="json")
    state = {"Args": Namespace(upstream="ekd"), "Config": {}, "Upstream_Config": kept}
    launch._read_runner = lambda path: state  # type: ignore[method-assign, assignment]
    launch._note_kept(Path("x/states-4.ckpt"))
    assert not caplog.records
    launch.model = GivenModel("concat")
    launch._note_kept(Path("x/states-4.ckpt"))
    assert "ignored: -g concat (differs in ekd.mode)\n" in caplog.text


@pytest.mark.parametrize("launcher", [pretrain_launch.PretrainLaunch, downstream_launch.DownstreamLaunch])
def test_a_finished_run_needs_no_device(launcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = launcher(Run([]))
    args = {"past_exp": "x/states-8.ckpt", "upstream": "tera", "downstream": "ctc", "mode": "train"}
    launch.args = Namespace(**args, device="cuda:99", expdir="x")
    config = {"runner": {"total_steps": 8, "n_epochs": -1}, "optimizer": {}, "downstream_expert": {}}
    launch.before, launch._check_config = config, lambda config: None
    launch.step = 8
    with pytest.raises(Finished, match="finished at step [89]; nothing to do"):
        launch._checked(launch.args, config)
    launch.step = 6
    with pytest.raises(EkdError, match="--device cuda:99"):
        launch._checked(launch.args, config)


def pretrained(name: str, step: int, **before: Any) -> Any:
    """Whether a pretraining run goes on from ``name``, as its configuration is, or as ``-o`` changes it."""
    rules = {"n_epochs": -1, "total_steps": 8, "gradient_accumulate_steps": 1}

    def check(
        task: str = "ekd",
        data: dict | None = None,
        was: dict | None = None,
        held_out: Sequence[str] = (),
        **changes: Any,
    ) -> str:
        launch = pretrain_launch.PretrainLaunch(Run([]))
        launch.args, launch.step = Namespace(past_exp=name, upstream=task), step
        plain = DataConfig(libri_root="/audio", file_path="/csv", sets=["a"], valid_sets=list(held_out)).model_dump()
        plain |= was or {}
        launch.before, new = (
            {"runner": one, "pretrain_expert": {"datarc": plain | changed}}
            for one, changed in (({**rules, **before}, {}), ({**rules, **before, **changes}, data or {}))
        )
        try:
            launch._check_unfinished(new)
        except Finished as finished:
            return str(finished)
        return ""

    return check


def test_a_pretraining_run_is_finished_where_no_step_is_left() -> None:
    end = "finished at step 8; nothing to do (more steps: -o config.runner.total_steps=...)"
    done = pretrained("x/states-epoch-2.ckpt", 8)
    assert done() == f"x/states-epoch-2.ckpt: {end}"
    assert done(total_steps=9) == "" and done(total_steps=5) == done()
    assert pretrained("x/states-6.ckpt", 6)() == ""
    assert pretrained("x/states-8.ckpt", 7)("tera") == f"x/states-8.ckpt: {end}"  # s3prl's own count is one behind
    assert pretrained("x/states-7.ckpt", 6)("tera") == ""


def test_a_pretraining_run_that_owes_a_validation_loss_is_not_finished(tmp_path: Path) -> None:
    done = pretrained(str(tmp_path / "states-8.ckpt"), 8)
    assert done() and done(held_out=["dev"]) == ""
    (tmp_path / "validation.jsonl").write_text('{"step": 4}\n')
    assert done(held_out=["dev"]) == ""
    (tmp_path / "validation.jsonl").write_text('{"step": 4}\n{"step": 8}\n')
    assert done(held_out=["dev"]) == done()


def test_a_pretraining_run_of_epochs_is_finished_with_the_last(tmp_path: Path) -> None:
    done = pretrained("states-epoch-3.ckpt", 30, n_epochs=3)
    assert done().endswith("finished at step 30; nothing to do (more steps: -o config.runner.n_epochs=...)")
    for changes in ({"n_epochs": 4}, {"gradient_accumulate_steps": 2}, {"n_epochs": -1, "total_steps": 31}):
        assert done(**changes) == "", changes
    assert pretrained("states-20.ckpt", 20, n_epochs=3)() == ""


def test_of_the_data_only_what_changes_the_number_of_batches_makes_other_epochs(tmp_path: Path) -> None:
    (tmp_path / "validation.jsonl").write_text('{"step": 30}\n')
    done, other = pretrained(str(tmp_path / "states-epoch-3.ckpt"), 30, n_epochs=3), 7
    changes = {"libri_root": "/moved", "file_path": "/other", "sets": ["b"], "valid_sets": ["c"], "batch_seconds": 99.0}
    for was, counted in (
        ({}, {"train_batch_size", "batch_seconds", "max_timestep", "file_path", "sets"}),
        ({"batch_seconds": 80.0}, {"batch_seconds", "max_timestep", "file_path", "sets", "seed"}),  # seed: which fit
    ):
        found = {key for key in DataConfig.model_fields if not done(was=was, data={key: changes.get(key, other)})}
        assert found == counted
    assert not done("tera", was={"theirs": 1}, data={"theirs": 2})  # what s3prl's task makes of it is not known
