"""Downstream mistakes: misspelt and missing config keys, a layer that isn't there; messages; workers at a signal."""

from __future__ import annotations

import copy
import importlib
import re
import subprocess
import sys
import urllib.error
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import bridge_corpora
import numpy as np
import pytest
import soundfile
import torch
from bridge_corpora import task_config
from dotted import changed
from export_student import write_student

from s3prl_ekd.bridge import checkpoints, downstream_arguments, downstream_runner, taskdata, taskkeys
from s3prl_ekd.bridge.evaluation_memory import EvaluationMemory
from s3prl_ekd.bridge.upstream_weights import UpstreamWeights
from s3prl_ekd.errors import EkdError
from s3prl_ekd.task_names import DOWNSTREAM, WITH_CONFIG


@pytest.mark.parametrize(
    "name,path,slip,meant",
    [
        ("pr", "runner", "total_stpes", "total_steps"),
        ("pr", "downstream_expert.corpus", "lexcon", "lexicon"),
        ("asr", "downstream_expert.datarc", "libri_rot", "libri_root"),
        ("er", "downstream_expert.datarc", "tst_fold", "test_fold"),
        ("sid", "", "optimiser", "optimizer"),
        ("sid", "runner", "evaluate_ration", "evaluate_ratio"),  # a key of the runner that no config of ours holds
        ("er", "runner", "train_dataloder", "train_dataloader"),
        ("er", "", "schedular", "scheduler"),
    ],
)
def test_a_misspelt_key_is_named_with_the_known_one(name: str, path: str, slip: str, meant: str) -> None:
    key = f"{path}.{slip}".lstrip(".")
    config = changed(task_config(name), {key: 1})
    with pytest.raises(EkdError, match=re.escape(f"x.yaml: {key}: unknown key; did you mean {meant}")):
        taskkeys.check_spelling(config, task_config(name), "x.yaml")


def test_keys_of_ones_own_pass() -> None:
    for name in ("pr", "sid", "er", "asr"):
        config = task_config(name)
        taskkeys.check_spelling(config, task_config(name), "x.yaml")
        config["runner"]["fp16"], config["scheduler"], config["my_section"] = True, {"name": "x"}, {"anything": 1}
        data = config["downstream_expert"].get("datarc") or config["downstream_expert"]["corpus"]
        data["test-clean2"] = ["test-clean2"]  # a split
        config["runner"]["max_keys"] = 1  # like max_keep, but not so like
        config[7] = [config.pop("specaug", None)]
        taskkeys.check_spelling(config, task_config(name), "x.yaml")


@pytest.mark.parametrize(
    ("task", "key", "value", "message"),
    [
        ("pr", "optimizer.lr", "1e-2", "'1e-2' is text to YAML; write 1.0e-2"),
        ("pr", "optimizer.lr", "abc", "expected a number, found 'abc'"),
        ("pr", "downstream_expert.corpus.batch_size", "8", "expected a whole number, found '8'"),
        ("sid", "downstream_expert.datarc.max_timestep", 64_000.0, "expected a whole number, found 64000.0"),
        ("sid", "downstream_expert.datarc.max_timestep", 0, "expected 1 or more, found 0"),  # every clip would be empty
        ("asv", "downstream_expert.datarc.max_timestep", -1, "expected 1 or more, found -1"),
        ("er", "downstream_expert.datarc.valid_ratio", 0, "expected more than 0 and less than 1, found 0"),
        ("er", "downstream_expert.datarc.pre_load", "yes", "expected true or false, found 'yes'"),
        ("er", "downstream_expert.datarc.train_batch_size", 0, "expected 1 or more, found 0"),
        ("asr", "downstream_expert.datarc.num_workers", -1, "expected 0 or more, found -1"),
        ("sid", "downstream_expert.modelrc.projector_dim", 0, "expected 1 or more, found 0"),
        ("asr", "downstream_expert.modelrc.RNNs.dim", [128, "x"], "expected a list, found [128, 'x']"),
        ("pr", "downstream_expert.model.select", "FramLevel", "'FramLevel' is no model of s3prl's for this task"),
        ("sid", "downstream_expert.modelrc.select", "print(1)", "'print(1)' is no model of s3prl's for this task"),
        ("er", "optimizer.lr", {"a": 1}, "expected a number, found {'a': 1}"),
        ("sid", "downstream_expert.modelrc", 3, "expected a section, found 3"),
        ("er", "downstream_expert.modelrc", None, "expected a section, found None"),
        ("asr", "downstream_expert.datarc.decoder_args", "x", "expected a section, found 'x'"),
        ("asr", "downstream_expert.modelrc.select", "os", "'os' is no model of s3prl's for this task"),
        ("pr", "downstream_expert.metric", ["per", "pre"], "'pre': expected names of s3prl's metrics, such as per"),
        ("pr", "downstream_expert.metric", [], "[]: expected names of s3prl's metrics, such as per"),
    ],
)
def test_a_value_of_another_kind_is_named(task: str, key: str, value: object, message: str) -> None:
    config = changed(task_config(task), {key: value})
    with pytest.raises(EkdError, match=re.escape(f"x.yaml: {key}: {message}")):
        taskkeys.check_kinds(config, task_config(task), WITH_CONFIG[task], "x.yaml")


def test_values_of_the_usual_kinds_pass(hub: ModuleType) -> None:
    for name, task in DOWNSTREAM.items():
        config = task_config(name)
        taskkeys.check_kinds(config, task_config(name), task, "x.yaml")
        config["optimizer"]["lr"] = 1  # a whole number is a number
        config["runner"]["cache_states"] = "folder"
        if name == "asr":
            config["downstream_expert"]["datarc"]["decoder_args"]["lm_weight"] = 1.5
        taskkeys.check_kinds(config, task_config(name), task, "x.yaml")


def test_a_split_to_test_on_is_checked_before_anything_is_loaded() -> None:
    for name, task in DOWNSTREAM.items():
        args = Namespace(downstream=task, mode="evaluate", evaluate_split="tset")
        with pytest.raises(EkdError, match=rf"-t tset: {task} knows the splits train, "):
            taskdata.complete(args, task_config(name), "x.yaml", Path("."))


def test_a_continued_run_is_the_one_that_the_command_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "run/states-1.ckpt", tmp_path / "states-2.ckpt"
    first.parent.mkdir()
    for file in (first, second):
        file.touch()
    saved = {"upstream": "ekd_student", "downstream": "ctc", "upstream_ckpt": str(first), "upstream_trainable": False,
             "upstream_layer_selection": 1, "seed": 1337}  # fmt: skip
    monkeypatch.setattr(checkpoints, "read", lambda path, mmap: {"Args": Namespace(**saved)})

    def check(**given: object) -> None:
        args = Namespace(**{**saved, "mode": "train", "config": "c.yaml", **given})
        downstream_arguments.check_same(args, set(given), Path("states-8.ckpt"))

    check()
    check(upstream="ekd_student", downstream="ctc", upstream_ckpt=str(first))
    check(upstream_ckpt=str(first.parent))  # its folder
    check(upstream_ckpt=str(tmp_path / "moved.ckpt"))
    for given, message in (
        ({"upstream": "fbank"}, "-u fbank: states-8.ckpt was trained with -u ekd_student; name another experiment"),
        ({"downstream": "emotion"}, "-d emotion: states-8.ckpt was trained with -d ctc"),
        ({"upstream_ckpt": str(second)}, f"-k {second}: states-8.ckpt was trained with -k {first}"),
        ({"upstream_ckpt": "hf:me/model"}, f"-k hf:me/model: states-8.ckpt was trained with -k {first}"),
        ({"upstream_ckpt": "hubert_base"}, f"-k hubert_base: states-8.ckpt was trained with -k {first}"),
        ({"upstream_layer_selection": 0}, "-l 0: states-8.ckpt was trained with -l 1"),
        ({"upstream_trainable": True}, "-f: states-8.ckpt was trained without it"),
        ({"downstream_variant": "fold2"}, "-v fold2: states-8.ckpt was trained without it"),
        ({"seed": 7}, "--seed 7: states-8.ckpt was trained with --seed 1337"),
    ):
        with pytest.raises(EkdError, match=re.escape(message)):
            check(**given)


def test_a_head_stays_with_the_student_that_it_was_trained_on(tmp_path: Path) -> None:
    """A folder means its newest checkpoint of now: pretraining may go on in it before the head is tested."""
    file = write_student(tmp_path / "run/states-10.ckpt")
    common = {"hub": "torch", "upstream_model_config": None}
    for name, given, kept in (
        ("ekd_student", file.parent, file),
        ("ekd_student_local", file.parent, file),
        ("ekd_student", file, file),
        ("mine_local", file.parent, file.parent),  # what another upstream makes of a folder is its business
    ):
        args = Namespace(upstream=name, upstream_ckpt=str(given), from_hf_hub=name == "mine_local", **common)
        if name == "mine_local":
            file.rename(tmp_path / "other.ckpt")
        downstream_arguments.check_upstream(args)
        assert args.upstream_ckpt == str(kept)


def test_a_download_that_fails_is_one_line() -> None:
    class Original:
        args, error = Namespace(upstream="hubert_base"), OSError("of the disk")

        def _get_upstream(self) -> None:
            raise self.error

    runner = downstream_runner.runner_class(
        Original, UpstreamWeights(torch.save), EvaluationMemory(torch.save), lambda: None
    )()
    with pytest.raises(OSError, match="of the disk"):
        runner._get_upstream()
    Original.error = urllib.error.URLError("no route\nto host")
    with pytest.raises(EkdError, match="-u hubert_base: its checkpoint could not be downloaded .*no route"):
        runner._get_upstream()


def test_a_student_that_another_upstream_is_to_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    student, other = write_student(tmp_path / "states-1.ckpt"), tmp_path / "other.pt"
    torch.save({"model_weight": {}}, other)

    def check(upstream: str, file: Path) -> None:
        common = {"hub": "huggingface", "upstream_model_config": None}
        downstream_arguments.check_upstream(Namespace(upstream=upstream, upstream_ckpt=str(file), **common))

    check("ekd_student", student)
    check("hubert_local", other)
    assert not caplog.records
    with pytest.raises(EkdError, match="an EKD student, which -u hubert_local does not read; use -u ekd_student"):
        check("hubert_local", student)
    check("hubert_base", other)
    assert "-u hubert_base: downloads its own checkpoint, -k is not read" in caplog.text


def test_sid_may_take_whole_clips() -> None:
    config = changed(task_config("sid"), {"downstream_expert.datarc.max_timestep": None})  # s3prl's word for it
    taskkeys.check_kinds(config, task_config("sid"), "voxceleb1", "x.yaml")
    taskkeys.check_expert(config, "voxceleb1", "x.yaml")


def test_what_an_expert_reads_without_a_default_must_be_there(hub: ModuleType, tmp_path: Path) -> None:
    """s3prl's own classes say what that is: built without each key of ours, in turn, and asked for both loaders."""
    corpora = bridge_corpora.all_tasks(tmp_path)
    for name, task in DOWNSTREAM.items():
        module = importlib.import_module(f"s3prl.downstream.{task}.expert")

        def build(config: dict, task: str = task, module: ModuleType = module) -> None:
            args = Namespace(downstream=task, mode="train", evaluate_split="test", local_rank=None)
            args.expdir = str(tmp_path)
            taskdata.complete(args, config, source="x.yaml", s3prl=tmp_path)
            taskkeys.check_runner(config, "x.yaml", taskdata.splits(task, config))
            given = {"upstream_dim": 8, "upstream_rate": 160, "expdir": args.expdir}
            model = module.DownstreamExpert(downstream_expert=config["downstream_expert"], **given)
            for split in ("train", config["runner"]["eval_dataloaders"][0]):
                before = copy.deepcopy(config)
                model.get_dataloader(split)
                assert config == before  # s3prl's ctc takes num_workers out: every later loader would have twelve

        build(copy.deepcopy(corpora[name]))
        fails = set()
        for section, values in corpora[name]["downstream_expert"].items():
            for key in [None] if not isinstance(values, dict) else list(values):
                path = section if key is None else f"{section}.{key}"
                config = copy.deepcopy(corpora[name])
                (config["downstream_expert"] if key is None else config["downstream_expert"][section]).pop(
                    key or section
                )
                try:
                    build(copy.deepcopy(config))
                except EkdError:
                    continue  # found before
                except (KeyError, TypeError):
                    fails.add(path)
                    with pytest.raises(
                        EkdError, match=f"x.yaml: downstream_expert.{path}: is missing; give it with -o"
                    ):
                        taskkeys.check_expert(config, task, "x.yaml")
                else:
                    taskkeys.check_expert(config, task, "x.yaml")
        assert fails >= set(taskkeys.EXPERT[task])


def test_a_layer_beyond_the_upstreams_is_one_line() -> None:
    class Select:
        feature_selection = "hidden_states"

        def __init__(self, layer: int | None, states: object = ()) -> None:
            self.layer_selection = layer
            if states:
                self._select_feature({"hidden_states": states})  # as s3prl's, of what it hears of the upstream

        def _select_feature(self, features: dict) -> object:
            return features["hidden_states"] if self.layer_selection is None else "one"

    build = downstream_runner.featurizer_class(Select)
    states = {"hidden_states": [0, 1, 2]}
    for layer in (0, 2, -3):
        assert build(layer)._select_feature(states) == "one"
    assert build(None)._select_feature(states) == [0, 1, 2]
    assert build(5)._select_feature({"hidden_states": [0]}) == "one"  # of a cache, the one that was chosen
    build(0, [7])
    for given in ([7], "tensor"):
        with pytest.raises(EkdError, match="-l 5: the upstream's hidden_states is one state; leave -l out"):
            build(5, given)  # s3prl would take it without a word
    for layer in (3, 9, -4):
        with pytest.raises(EkdError, match=f"-l {layer}: the upstream's hidden_states are numbered 0 to 2"):
            build(layer)._select_feature(states)


def test_states_that_the_upstream_has_not_are_one_line() -> None:
    """s3prl would train on ``hidden_states``; a head that was trained so goes on."""
    from s3prl.upstream.interfaces import Featurizer

    class Upstream(torch.nn.Module):
        def forward(self, wavs: list[torch.Tensor]) -> dict:
            states = [torch.zeros(1, 50, 4)] * 2
            return {
                "hidden_states": states,
                "paper": states[-1],
                "_hidden_states_info": (),
                "hidden_state_0": states[0],
            }

    def build(selection: str, begins: bool) -> str:
        featurizer = downstream_runner.featurizer_class(Featurizer, begins)
        return featurizer(Upstream(), feature_selection=selection, upstream_device="cpu").feature_selection

    assert build("paper", True) == "paper" and build("hidden_states", True) == "hidden_states"
    assert build("papr", False) == "hidden_states"
    with pytest.raises(EkdError, match=r"^-s papr: the upstream has none of that name; it has hidden_states, paper$"):
        build("papr", True)


def test_the_commands_show_our_messages_and_only_ours() -> None:
    script = (
        "import logging; from s3prl_ekd.bridge.launch import _show_messages as show; show(20); show(20)\n"
        "logging.basicConfig(level=logging.WARNING)  # as modules of s3prl do\n"
        "for name in ('s3prl_ekd.pretrain.ekd', 'other'): logging.getLogger(name).info('from %s', name)"
    )
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, timeout=100)
    assert done.returncode == 0 and done.stderr == "from s3prl_ekd.pretrain.ekd\n"


def test_a_clip_that_s3prl_would_transcribe_wrongly_is_refused(tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    args = Namespace(evaluate_split=str(clip), downstream="asr")
    with pytest.raises(EkdError, match="clip.wav: no such audio file"):
        downstream_arguments.check_clip(args)
    for rate, channels in ((8000, 1), (16_000, 2)):
        soundfile.write(clip, np.zeros((8000, channels)), rate)
        with pytest.raises(EkdError, match=f"clip.wav: {rate} Hz, {channels} channels; expected 16 kHz mono"):
            downstream_arguments.check_clip(args)
    soundfile.write(clip, np.zeros(8000), 16_000)
    downstream_arguments.check_clip(args)
