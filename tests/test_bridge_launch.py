"""What both launchers have in common: one run of a script of s3prl's, with stand-ins in its namespace."""

from __future__ import annotations

import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from console import environment

from s3prl_ekd.bridge import checkpoints, event_files, pretrain_launch
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
    parser.add_argument("--seed", default=1337, type=int)
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
import os, threading, torch

def get_optimizer(*args): pass
def get_scheduler(*args): pass

writers = []

class SummaryWriter:
    def __init__(self, folder, flush_secs):
        self.closed = False
        writers.append(self)

    def close(self):
        if os.environ.get("STUCK"):
            threading.Event().wait()
        self.closed = True

class Runner:
    def __init__(self, args, config):
        self.args, self.config = args, config

    def train(self):
        os.makedirs(self.args.expdir, exist_ok=True)
        SummaryWriter(self.args.expdir)
        if "fault" in str(self.args.override):
            raise RuntimeError("a fault")
        torch.save({"Args": self.args, "Config": self.config, "Step": 1}, f"{self.args.expdir}/states-1.ckpt")
"""


def module(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(text, made.__dict__)
    return made


class Launch(ScriptLaunch):
    """The common part on a script of ten lines."""

    script, get_arguments, results = "script.py", "get_args", "result/some"
    checkpoint_keys, runner_name = ("Args", "Config"), "the runner"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(Run([]))
        self.monkeypatch, self.s3prl = monkeypatch, Path.cwd()
        self.seen: dict[str, Any] = {}

    def _parser_needs(self) -> dict[str, Any]:
        return {}

    def _load(self) -> tuple[ModuleType, ModuleType]:
        self.seen["loads"] = self.seen.get("loads", 0) + 1
        return module("a_script", SCRIPT, self.monkeypatch), module("its_runner", RUNNER, self.monkeypatch)

    def _runner_class(self, original: type) -> type:
        return original

    def _find_checkpoint(self, args: Namespace) -> Path | None:
        self.seen["checkpoint"] = super()._find_checkpoint(args)
        return self.seen["checkpoint"]

    def _check_first(self, args: Namespace) -> None:
        pass

    _check_new = _check_first

    def _correct_saved(self, saved: Namespace) -> None:
        saved.device, saved.override = self.args.device, self.args.override

    def _find_config(self, args: Namespace) -> str:
        return args.config

    def _check_unfinished(self, config: dict) -> None:
        pass

    def _checked(self, args: Namespace, config: dict, *rest: Any) -> tuple:
        self.seen |= {"args": args, "config": config}
        if "bad" in str(args.override):
            raise yaml.YAMLError("in x.yaml,\n  line 3")
        return args, config, *rest


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py"])
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(*words: str) -> Launch:
        one = Launch(monkeypatch)
        one.current.argv = list(words)
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
    assert again.step == 1
    assert again.before == {} and again.seen["config"] == {"changed": "config.a=1"}  # -o is not in what was before
    assert again.seen["args"].expdir == "moved" and again.seen["args"].device == "cpu:0"
    with pytest.raises(EkdError, match="-n: result/some/y is not the folder of moved/states-1.ckpt"):
        launch("--past_exp", "moved", "--expname", "y")


def test_a_run_that_goes_on_from_a_file_is_continued_from_its_folder(launch: Any) -> None:
    """From the file it would begin anew, or be refused: by then there are later checkpoints."""
    launch("--expname", "x")
    words = ["--past_exp", "result/some/x/states-1.ckpt", "--device", "cpu:0"]
    assert launch(*words).current.argv == ["--past_exp", "result/some/x", "--device", "cpu:0", "-a"]
    assert launch("--expname", "x", "--auto").current.argv == ["--expname", "x", "--auto"]
    torch.save({"Args": Namespace(), "Config": {}, "Step": 2}, "result/some/x/states-2.ckpt")
    with pytest.raises(
        EkdError, match="states-1.ckpt: is of step 1, but its folder also holds states-2.ckpt of step 2,"
    ):
        launch(*words)


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


def test_a_parser_that_needs_more_of_its_script_gets_it(
    launch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a checkout whose owner has changed it."""
    assert launch("--expname", "x").seen["loads"] == 1
    changed = SCRIPT.replace("    parser = ", "    DEVICES\n    parser = ")
    (tmp_path / "script.py").write_text(changed)
    monkeypatch.setattr(sys.modules[__name__], "SCRIPT", f"DEVICES = ['cpu']{changed}")
    assert launch("--expname", "y").seen["loads"] == 2


def test_an_error_leaves_no_tensorboard_file_open(launch: Any) -> None:
    """Closed as Python 3.12 ends, it would print a traceback below the error."""
    with pytest.raises(RuntimeError, match="a fault"):
        launch("--expname", "x", "--override", "config.fault=1")
    assert [writer.closed for writer in sys.modules["its_runner"].writers] == [True]


def test_a_signal_that_hit_tensorboard_does_not_keep_the_run(
    launch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while it held its queue, tensorboardX waits for ever for a thread that never hears of the end."""
    monkeypatch.setenv("STUCK", "1")
    monkeypatch.setattr(event_files, "_CLOSING", 0.1)
    one = Launch(monkeypatch)
    one.current.signals.number = signal.SIGTERM
    with pytest.raises(RuntimeError, match="a fault"):
        one.run(["--expname", "x", "--override", "config.fault=1"])
    assert [writer.closed for writer in sys.modules["its_runner"].writers] == [False]


def test_a_training_keeps_others_out_of_its_folder_a_test_does_not(launch: Any, tmp_path: Path) -> None:
    """A checkpoint of a training may be tested while that goes on."""
    one = launch("--expname", "x")
    for mode, rank, locks in (("train", 0, True), ("train", 1, False), ("evaluate", 0, False), ("inference", 0, False)):
        one.lock, one.args, one.world.rank = None, Namespace(mode=mode), rank
        one._lock(tmp_path / "result/some/x")
        assert (one.lock is not None) == locks, mode
        if one.lock is not None:
            one.lock.close()


LIGHT = """
import sys
from s3prl_ekd.bridge import launch
name, *lines = sys.argv[1:]
for line in lines:
    sys.argv = [f"run_{name}.py", *line.split(), "--device", "cpu"]
    assert getattr(launch, f"run_{name}")() == 2, line
    heavy = {"torch", "transformers", "s3prl", "pandas", "scipy", "librosa"} & set(sys.modules)
    assert not heavy, (line, heavy)
"""


@pytest.mark.parametrize(
    ("name", "mistakes"),
    [
        (
            "pretrain",
            {
                "-u ekd -n x -c none.yaml": "-c none.yaml: no such config file",
                "-u ekd -n x -g nono": "-g nono: no such config file (variants by name: average",
                "-u ekd -n used": "used: holds states-7.ckpt of an earlier run",
                "-u ekd": "-n NAME is missing",
                "-n x": "-u TASK is missing",
                "-u tera -n x -e none.ckpt": "-e none.ckpt: no such checkpoint",
                "-u ekd -n x -o runner=1": "-o 'runner=1': the key must start with config.",
                "-u ekd -n x -o config.ekd.x=1": "-o 'config.ekd.x=1': write upstream_config.ekd.x=1",
                "-u tera -n x -o upstream_config.a.x=1": "-o 'upstream_config.a.x=1': the key must start with config. ",
                "-u ekd -n x -o upstream_config.ekd.teachers[0].layers=[4]": "-o reaches no element of a list; give",
                "-u ekd --expname=": "--expname: is empty",
            },
        ),
        (
            "downstream",
            {
                "-m train -u fbnk -d ctc -n x": "-u fbnk: s3prl's hub has no such upstream; did you mean fbank",
                "-m train -u fbank -d emotoin -n x": "-d emotoin: s3prl has no such downstream task",
                "-m train -u fbank -d ctc -n x -c none.yaml": "-c none.yaml: no such config file",
                "-m train -u fbank -d ctc -n x -c twice.yaml": "twice.yaml: line 2 is not valid YAML (the key 'runner'",
                "-m train -u ekd_student -k none.ckpt -d ctc -n x": "-k none.ckpt: no such checkpoint",
                "-m train -u ekd_student -k text.ckpt -g nono -d ctc -n x": "-g nono: no such config file",
                "-m train -u fbank -d ctc": "-n NAME is missing",
                "-m train -d ctc -n x": "-u UPSTREAM is missing",
                "-m train -u ekd_teacher -d ctc -n x": "-u ekd_teacher: give a teacher with -k",
                "-m inference -u fbank -d asr -n x": "-m inference -d asr: no trained model; give its checkpoint",
                "-m evaluate -e none.ckpt": "-e none.ckpt: no such checkpoint or experiment folder",
            },
        ),
    ],
)
def test_mistakes_in_arguments_are_said_before_the_heavy_imports(
    tmp_path: Path, name: str, mistakes: dict[str, str]
) -> None:
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "twice.yaml").write_text("runner: {}\nrunner: {}\n")
    used = tmp_path / f"result/{name}/used"
    used.mkdir(parents=True)
    (used / "states-7.ckpt").touch()
    words = [sys.executable, "-c", LIGHT, name, *mistakes]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), text=True, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stderr.splitlines()
    assert len(said) == len(mistakes)
    for line, (words, expected) in zip(said, mistakes.items(), strict=True):
        assert line.startswith("error: ") and expected in line, (words, line)


def test_of_several_ranks_the_first_makes_the_folder(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it takes it back, a rank that is behind would make it again."""
    made = []

    class Made(Launch):
        def _make_folder(self) -> None:
            super()._make_folder()
            made.append(Path(self.args.expdir).exists())

        def _checked(self, args: Namespace, config: dict, *rest: Any) -> tuple:
            raise EkdError("refused")

    monkeypatch.setattr(
        sys.modules[__name__],
        "SCRIPT",
        SCRIPT.replace(
            "args = parser.parse_args()", "args = parser.parse_args()\n    os.makedirs(args.expdir, exist_ok=True)"
        ),
    )
    for rank in (0, 1):
        one = Made(monkeypatch)
        one.world.rank = rank
        with pytest.raises(EkdError, match="refused"):
            one.run(["--expname", "x"])
        assert made[-1] == (rank == 0) and not Path("result").exists()
