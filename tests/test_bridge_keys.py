"""Downstream mistakes: misspelt and missing config keys, a layer that isn't there; messages; workers at a signal."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest
import yaml

from s3prl_ekd.bridge import downstream_launch, interrupts, taskkeys
from s3prl_ekd.bridge.modules import ours
from s3prl_ekd.errors import EkdError


def task_config(name: str) -> dict:
    return yaml.safe_load((ours("downstream_configs") / f"{name}.yaml").read_text())


@pytest.mark.parametrize(
    "name,path,slip,meant",
    [
        ("pr", "runner", "total_stpes", "total_steps"),
        ("pr", "downstream_expert.corpus", "lexcon", "lexicon"),
        ("asr", "downstream_expert.datarc", "libri_rot", "libri_root"),
        ("er", "downstream_expert.datarc", "tst_fold", "test_fold"),
        ("sid", "", "optimiser", "optimizer"),
        ("sid", "runner", "evaluate_ration", "evaluate_ratio"),  # a key of the runner that no config of ours holds
    ],
)
def test_a_misspelt_key_is_named_with_the_known_one(name: str, path: str, slip: str, meant: str) -> None:
    config = task_config(name)
    section = config
    for key in filter(None, path.split(".")):
        section = section[key]
    section[slip] = section.get(meant, 1)
    where = re.escape(f"x.yaml: {path}.{slip}: ".replace(": .", ": "))
    with pytest.raises(EkdError, match=f"{where}unknown key; did you mean '{meant}'"):
        taskkeys.check_spelling(config, f"{name}.yaml", "x.yaml")


def test_keys_of_ones_own_pass() -> None:
    for name in ("pr", "sid", "er", "asr"):
        config = task_config(name)
        taskkeys.check_spelling(config, f"{name}.yaml", "x.yaml")
        config["runner"]["fp16"], config["scheduler"], config["my_section"] = True, {"name": "x"}, {"anything": 1}
        data = config["downstream_expert"].get("datarc") or config["downstream_expert"]["corpus"]
        data["test-clean2"] = ["test-clean2"]  # a split
        taskkeys.check_spelling(config, f"{name}.yaml", "x.yaml")


def test_what_the_runner_reads_without_a_default_must_be_there() -> None:
    for name in ("pr", "sid", "er", "asr"):
        config = task_config(name)
        taskkeys.check_runner(config, "x.yaml")
        for key in list(config["runner"]):
            less = {"runner": {other: value for other, value in config["runner"].items() if other != key}}
            with pytest.raises(EkdError, match=f"x.yaml: runner.{key}: is missing"):
                taskkeys.check_runner(less, "x.yaml")


def test_a_layer_beyond_the_upstreams_is_one_line() -> None:
    class Select:
        feature_selection = "hidden_states"

        def __init__(self, layer: int | None) -> None:
            self.layer_selection = layer

        def _select_feature(self, features: dict) -> object:
            return features["hidden_states"] if self.layer_selection is None else "one"

    build = downstream_launch._featurizer(Select)
    states = {"hidden_states": [0, 1, 2]}
    for layer in (0, 2, -3):
        assert build(layer)._select_feature(states) == "one"
    assert build(None)._select_feature(states) == [0, 1, 2]
    assert build(5)._select_feature({"hidden_states": [0]}) == "one"  # s3prl takes the only one
    for layer in (3, 9, -4):
        with pytest.raises(EkdError, match=f"-l {layer}: the upstream's hidden_states are numbered 0 to 2"):
            build(layer)._select_feature(states)


def test_after_a_signal_dying_workers_are_no_error() -> None:
    run = interrupts.Run([])
    died = RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
    assert not run._by_signal(died) and run._by_signal(interrupts.Interrupted())
    run.signal = signal.SIGTERM
    assert run._by_signal(died) and not run._by_signal(RuntimeError("another"))


def test_the_commands_show_our_messages_and_only_ours() -> None:
    script = (
        "import logging; from s3prl_ekd.bridge.launch import _start; _start(); _start()\n"
        "logging.basicConfig(level=logging.WARNING)  # as modules of s3prl do\n"
        "for name in ('s3prl_ekd.pretrain.ekd', 'other'): logging.getLogger(name).info('from %s', name)"
    )
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, timeout=100)
    assert done.returncode == 0 and done.stderr == "from s3prl_ekd.pretrain.ekd\n"
