"""What both launchers have in common: one run of a script of s3prl's, with stand-ins in its namespace."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from s3prl_ekd.bridge import checkpoints, pretrain_launch
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.bridge.ranks import PeerError
from s3prl_ekd.bridge.script_launch import ScriptLaunch
from s3prl_ekd.errors import EkdError

SCRIPT = """
import argparse, os, torch

def override(text, args, config):
    config["changed"] = text

def get_args():
    parser = argparse.ArgumentParser()
    for name in ("past_exp", "expdir", "expname", "override", "config"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--auto_resume", action="store_true")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    config = {}
    if args.past_exp:
        saved = torch.load(args.past_exp)
        config = saved["Config"]
        vars(args).update(vars(saved["Args"]))
    if args.override:
        override(args.override, args, config)
    return args, config

def main():
    args, config = get_args()
    Runner(args, config).train()
"""
RUNNER = """
import os, torch

def get_optimizer(*args): pass
def get_scheduler(*args): pass

class Runner:
    def __init__(self, args, config):
        self.args, self.config = args, config

    def train(self):
        os.makedirs(self.args.expdir, exist_ok=True)
        torch.save({"Args": self.args, "Config": self.config, "Step": 1}, f"{self.args.expdir}/states-1.ckpt")
"""


def module(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(text, made.__dict__)
    return made


class Launch(ScriptLaunch):
    """The common part on a script of ten lines."""

    get_arguments, results, checkpoint_keys, runner_name = "get_args", "result/some", ("Args", "Config"), "the runner"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(Run([]))
        self.monkeypatch = monkeypatch
        self.seen: dict[str, Any] = {}

    def _load(self) -> tuple[ModuleType, ModuleType]:
        return module("a_script", SCRIPT, self.monkeypatch), module("its_runner", RUNNER, self.monkeypatch)

    def _runner_class(self, original: type) -> type:
        return original

    def _parsed(self, args: Namespace) -> None:
        self.seen["checkpoint"] = self._find_checkpoint(args)

    def _correct_saved(self, saved: Namespace) -> None:
        saved.device, saved.override = self.args.device, self.args.override

    def _checked(self, args: Namespace, config: dict, *rest: Any) -> tuple:
        self.seen |= {"args": args, "config": config}
        if "bad" in str(args.override):
            raise yaml.YAMLError("in x.yaml,\n  line 3")
        return args, config, *rest


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py"])

    def run(*words: str) -> Launch:
        one = Launch(monkeypatch)
        one.run(list(words))
        return one

    return run


def test_a_new_run_and_one_that_goes_on(launch: Any, tmp_path: Path) -> None:
    first = launch("--expname", "x", "--config", "c.yaml")
    assert first.explicit == {"expname", "config"} and first.source == "c.yaml"
    assert first.seen["checkpoint"] is None and first.before is None
    saved = Path("result/some/x/states-1.ckpt")
    assert checkpoints.read(saved)["Args"].expdir == "result/some/x"

    (tmp_path / "result/some/x").rename(tmp_path / "moved")
    again = launch("--expdir", "moved", "--auto_resume", "--override", "config.a=1", "--device", "cpu:0")
    assert again.seen["checkpoint"] == Path("moved/states-1.ckpt") and again.source == "moved/states-1.ckpt"
    assert again.before == {} and again.seen["config"] == {"changed": "config.a=1"}  # -o is not in what was before
    assert again.seen["args"].expdir == "moved" and again.seen["args"].device == "cpu:0"
    with pytest.raises(EkdError, match="-n: result/some/y is not the folder of moved/states-1.ckpt"):
        launch("--past_exp", "moved", "--expname", "y")


def test_mistakes_in_what_the_script_reads_are_one_line(launch: Any, tmp_path: Path) -> None:
    with pytest.raises(EkdError, match="^a config file is not valid YAML: in x.yaml, line 3$"):
        launch("--expname", "x", "--override", "config.a='bad'")
    with pytest.raises(EkdError, match="-o 'a=1': the key must start with config. or args."):
        launch("--expname", "x", "--override", "a=1")
    torch.save({"Args": Namespace()}, tmp_path / "other.ckpt")
    with pytest.raises(EkdError, match="other.ckpt: not a checkpoint of the runner: it has no 'Config'"):
        launch("--past_exp", "other.ckpt")


def test_a_pretraining_mistake_names_the_file_and_another_ranks_stays_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = pretrain_launch.PretrainLaunch(Run([]))
    launch.args = SimpleNamespace(past_exp=None, config="mine.yaml")
    for error, expected in (
        (EkdError("config_runner.yaml: runner.x: wrong"), "mine.yaml: runner.x: wrong"),
        (PeerError("config_runner.yaml is theirs"), "config_runner.yaml is theirs"),
    ):

        def fail(self: Any, error: EkdError = error) -> None:
            raise error

        monkeypatch.setattr(ScriptLaunch, "main", fail)
        with pytest.raises(type(error)) as caught:
            launch.main()
        assert str(caught.value) == expected and type(caught.value) is type(error)
