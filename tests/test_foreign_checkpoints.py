"""Checkpoints of other people's: what they hold is read, and nothing in them runs."""

from __future__ import annotations

import os
import pickle
import subprocess  # noqa: F401  # a name that is looked up
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from console import forked

from s3prl_ekd.compat import guarded_eval
from s3prl_ekd.compat.guarded_eval import look_up
from s3prl_ekd.errors import EkdError


def touching(mark: Path) -> str:
    """An expression that leaves a file behind."""
    return f"__import__('pathlib').Path({str(mark)!r}).touch()"


@pytest.mark.slow
def test_what_a_pretraining_checkpoint_was_told_by_o_is_not_evaluated(tmp_path: Path) -> None:
    """s3prl lets all arguments of a checkpoint win, ``-o`` too, and evaluates its values."""
    mark = tmp_path / "ran"
    args = Namespace(upstream="ekd", override=f"config.a={touching(mark)}", device="cpu", multi_gpu=False, seed=1)
    state = {"Optimizer": {}, "Step": 1, "Args": args, "Config": {"runner": {}}}
    torch.save(state, tmp_path / "states-1.ckpt")
    done = forked("run_pretrain.py", "-e", "states-1.ckpt", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 2 and "states-1.ckpt: runner.total_steps: required key is missing" in done.stderr
    assert not mark.exists()
    args.upstream = "no.such"
    torch.save(state | {"Config": {"runner": {}, "optimizer": {}, "pretrain_expert": {}}}, tmp_path / "states-1.ckpt")
    done = forked("run_pretrain.py", "-e", "states-1.ckpt", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_the_configuration_of_an_upstreams_file_is_not_evaluated(hub: ModuleType, tmp_path: Path) -> None:
    """s3prl's HuBERT evaluates conv_feature_layers; a downstream checkpoint may name such a file, or its address."""
    mark, file = tmp_path / "ran", tmp_path / "hubert.pt"
    model = {"label_rate": 50, "conv_feature_layers": f"[{touching(mark)}]"}
    state = {"task_cfg": {"label_rate": 50}, "model_cfg": model, "model_weight": {}, "dictionaries_symbols": []}
    torch.save(state, file)
    with pytest.raises(EkdError, match="expected a name of s3prl.upstream.hubert.hubert_model; s3prl would run it"):
        hub.hubert_local(str(file))
    assert not mark.exists()


@pytest.mark.parametrize("upstream", ["distiller_local", "tera_local", "mockingjay_local"])
def test_an_upstreams_file_is_not_unpickled(hub: ModuleType, tmp_path: Path, upstream: str) -> None:
    """Some of s3prl's upstreams ask torch for ``weights_only=False``."""

    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"Config": {}, "Distiller": Evil()}, tmp_path / "theirs.ckpt")
    with pytest.raises(EkdError, match=r"theirs.ckpt: refused, .* code from the file \(it holds posix.mkdir\)"):
        getattr(hub, upstream)(ckpt=str(tmp_path / "theirs.ckpt"))
    assert not (tmp_path / "ran").exists()


def test_the_upstreams_that_would_unpickle_are_known(hub: ModuleType) -> None:
    root = Path(str(hub.__file__)).parent
    asking = [file for file in root.glob("upstream/**/*.py") if "weights_only=False" in file.read_text()]
    names = {".".join(file.relative_to(root).with_suffix("").parts) for file in asking}
    assert names == set(guarded_eval.UNPICKLING)


def test_lists_that_s3prl_pickles_hold_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of its datasets keep their lists of files in the folder that they are started in."""
    module = ModuleType("s3prl.downstream.its_dataset")
    module.pickle = pickle  # type: ignore[attr-defined]
    monkeypatch.setitem(guarded_eval.sys.modules, module.__name__, module)
    guarded_eval.guard_s3prl()

    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    for content in ({"a": ["b.wav", 1]}, Evil()):
        with open(tmp_path / "list.p", "wb") as file:
            module.pickle.dump(content, file)
        with open(tmp_path / "list.p", "rb") as file:
            if isinstance(content, dict):
                assert module.pickle.load(file) == content
                continue
            with pytest.raises(EkdError, match=r"list.p: refused, .* code from the file \(it holds posix.mkdir\)"):
                module.pickle.load(file)
    assert not (tmp_path / "ran").exists()


class _Model:
    rate = 4


def test_names_and_numbers_are_looked_up() -> None:
    local = [1, 2]
    assert look_up("_Model") is _Model and look_up(" local ") is local
    assert look_up("_Model.rate") == 4 and look_up("-_Model.rate") == -4 and look_up("-1.5") == -1.5
    assert look_up("local[-1]") == 2 and look_up("torch.nn.Linear") is torch.nn.Linear
    assert look_up("[(512, 10, 5)] + [(512, 3, 2)] * 2") == [(512, 10, 5), (512, 3, 2), (512, 3, 2)]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("print(1)", "would run it as code"),
        ("_Model()", "would run it as code"),
        ("[print(1)]", "would run it as code"),
        ("{}.keys", "would run it as code"),
        ("torch.hub.load", "expected a model or function of test_foreign_checkpoints, not of other code"),
        ("subprocess.run", "expected a model or function of test_foreign_checkpoints, not of other code"),
        ("subprocess.Popen", "expected a model or function of test_foreign_checkpoints, not of other code"),
        ("[].append", "expected a model or function of test_foreign_checkpoints, not of other code"),
        ("_Model.rate[0]", "would run it as code"),
        ("_Model.__subclasses__", "would run it as code"),
        ("_Model or print", "would run it as code"),
        ("lambda: 1", "would run it as code"),
        ("two words", "would run it as code"),
        ("print", "has no such name"),  # what Python brings along is no name of the module
        ("_Model.heat", "has no such name"),
        ("_Modle", "has no such name"),
    ],
)
def test_nothing_else_is(expression: str, message: str) -> None:
    with pytest.raises(EkdError, match=f"{__name__}.*{message}" if "name" in message else message):
        look_up(expression)
