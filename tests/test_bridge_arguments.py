"""The runners' command line: what was given, the rank, the device, and overrides that s3prl would misread."""

from __future__ import annotations

import argparse
import math
import os
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from s3prl_ekd.bridge import arguments
from s3prl_ekd.compat.modules import ModuleProxy
from s3prl_ekd.errors import EkdError

SCRIPT = """
import argparse
import torch_of_another_name

def get_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", "--name", choices=names.split())
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("--seed", default=1337, type=int)
    args = parser.parse_args()
    open("made", "w")
    return args

def get_none():
    pass
"""


def test_a_script_parses_without_its_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells what was given from defaults, and acts on nothing."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", ["x", "-n", "a", "--flag"])
    args, explicit = arguments.parse_ahead(script, "get_args", {"names": "a b"})
    assert vars(args) == {"name": "a", "device": "cuda", "flag": True, "seed": 1337}
    assert explicit == {"name", "flag"} and not Path("made").exists()
    with pytest.raises(NameError, match="names"):
        arguments.parse_ahead(script, "get_args", {})
    with pytest.raises(EkdError, match=r"script.py: get_none\(\) parses no arguments"):
        arguments.parse_ahead(script, "get_none", {})


def test_what_was_parsed_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--unknown"])
    args = argparse.Namespace(name="a")
    parser = arguments.answering_argparse(args).ArgumentParser()
    parser.add_argument("--name", required=True)
    assert parser.parse_args() is args


@pytest.mark.parametrize(
    "argv,env,expected",
    [
        (["-m", "train", "--local-rank=1"], None, (["-m", "train"], 1)),
        (["--local_rank", "0", "-a"], None, (["-a"], 0)),
        (["-a"], "3", (["-a"], 3)),
        (["-a"], None, (["-a"], None)),
        (["-o", "a=-1", "--local_rank=2", "x", "-p", "-", "y"], None, (["-o", "a=-1", "x", "-p", "-", "y"], 2)),
    ],
)
def test_local_rank(monkeypatch: pytest.MonkeyPatch, argv: list, env: str | None, expected: tuple) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if env is not None:
        monkeypatch.setenv("LOCAL_RANK", env)
    assert arguments.take_local_rank(argv) == expected


def test_a_local_rank_that_is_no_number() -> None:
    with pytest.raises(EkdError, match="--local_rank x: expected the number of a GPU"):
        arguments.take_local_rank(["--local_rank", "x"])


def test_cpu_hides_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    arguments.hide_gpu("cuda")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    arguments.hide_gpu("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("config.a", "expected KEY=VALUE"),
        ("config.a=b=c", "expected KEY=VALUE"),
        ("nothing.a=1", "the key must start with config., of_that. or args."),
        ("config=1", "the key must start with config., of_that. or args."),
        ("ekd=1", "the key must start with config., of_that. or args."),
        ("args.seeed=1", "there is no argument 'seeed'; did you mean seed?"),
        ("args.seed.x=1", "there is no argument 'seed.x'"),
        ("args.mine.x=1", "there is no argument 'mine.x'"),
        ("args.expdir=/x", "has no effect; name the folder with -n or -p"),
        ("args.config='x.yaml'", "has no effect, as it is read before -o; give -c instead"),
        ("args.mode='evaluate'", "has no effect, as it is read before -o; give -m instead"),
        ("args.upstream='tera'", "comes too late for much of the run; give -u instead"),
        ("args.init_ckpt='x.ckpt'", "comes too late for much of the run; give -e instead"),
        ("args.auto_resume=True", "has no effect, as it is read before -o; give -a instead"),
        ("ekd.x=1", "write of_that.ekd.x=1"),
        ("config.ekd.x = [1, 2]", "write of_that.ekd.x=[1, 2]"),
        ("model.ekd.x=1", "write of_that.ekd.x=1"),
        ("of_that.runner.x=1", "write config.runner.x=1"),
        ("runner.x=1", "write config.runner.x=1"),
    ],
)
def test_overrides_that_s3prl_drops_or_crashes_on(text: str, expected: str) -> None:
    args = Namespace(seed=1, expdir=None)
    with pytest.raises(EkdError) as caught:
        arguments.check_override(f"config.ok=1,,{text}", args, {"runner": "config", "ekd": "of_that"})
    assert str(caught.value).startswith(f"-o {text!r}: {expected}")
    arguments.check_override("config.a.b=1,,args.c='x',,args.seed=2,,config.ekd.x=1", args)
    arguments.check_override("config.runner.b=1,,of_that.ekd.c=2,,of_that.new=3", args, {"ekd": "of_that"})
    arguments.check_override(
        "args.upstream='fbank',,args.init_ckpt=x", Namespace(downstream="ctc")
    )  # are read after it
    with pytest.raises(EkdError, match="the key must start with config. or args.$"):
        arguments.check_override("of_that.ekd.c=2", args)


def test_an_empty_argument_is_a_mistake() -> None:
    args = Namespace(expname="", seed=1, config="")
    arguments.check_empty(args, {"seed"})
    with pytest.raises(EkdError, match="^--expname: is empty$"):
        arguments.check_empty(args, {"seed", "expname"})


def test_a_home_that_the_shell_leaves_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    args = Namespace(expdir="~/exp/", past_exp=None, init_ckpt="a/~b", config="~/x.yaml")
    arguments.expand_home(args)
    assert args == Namespace(expdir="/home/me/exp/", past_exp=None, init_ckpt="a/~b", config="~/x.yaml")
    arguments.expand_home(pretraining := Namespace(expdir=None))
    assert pretraining == Namespace(expdir=None)


GIVEN = [["-e", "a/b"], ["-ea/b"], ["-e=a/b"], ["--past_exp", "a/b"], ["--past=a/b"], ["--p", "a/b"]]


@pytest.mark.parametrize("given", GIVEN)
def test_an_options_value_is_replaced_as_it_was_written(given: list[str]) -> None:
    argv = ["-u", "a/b", *given, "-o", "x=1"]
    assert arguments.with_value(argv, "-e", "--past_exp", "c") == [
        *("-u", "a/b", *(word.replace("a/b", "c") for word in given), "-o", "x=1")
    ]


YAML_ONLY = ["[false]", "true", "null", "[dev, test]", "[1e3, dev]", "[/a/b]", "[a b]", "~", "[.inf]", "010"]


@pytest.mark.parametrize("value", YAML_ONLY)
def test_an_override_that_only_yaml_understands_would_become_a_string(value: str) -> None:
    with pytest.raises(EkdError) as caught:
        arguments.check_override(f"config.a.b=1,,config.c={value}", Namespace())
    assert str(caught.value).startswith(f"-o 'config.c={value}': s3prl reads values as Python and would take this")


AS_MEANT = ["[False]", "dev", "dev-clean", "1e-3", "2*10", "[2*10]", "/a/b.pt", "'true'", "{'a': 1}", "", "None"]
AS_MEANT += ["[int(1e3), 2]", "float('inf')", "[i*2 for i in range(3)]", "2001-13-45", "0b_", "a: b: c"]


@pytest.mark.parametrize("value", AS_MEANT)
def test_an_override_that_s3prl_reads_as_it_is_meant(value: str) -> None:
    arguments.check_override(f"config.a.b={value}", Namespace())


def test_a_proxy_changes_one_name_for_its_holder_alone() -> None:
    """What the hook is made of."""
    proxy = ModuleProxy(math, pi=3)
    assert proxy.pi == 3 and proxy.e == math.e and math.pi > 3.1
    with pytest.raises(AttributeError):
        _ = proxy.nothing
