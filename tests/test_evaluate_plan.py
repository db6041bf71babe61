"""The plan's native commands, read back by s3prl's own rules, and the mistakes that stop before anything runs."""

from __future__ import annotations

import argparse
import json
import shlex

import pytest
import yaml

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.dry_run import commands_text
from s3prl_ekd.evaluate.models import Upstream, choose
from s3prl_ekd.evaluate.plan import downstream_program, make_plan, numbered_checkpoints
from s3prl_ekd.evaluate.presets import apply_overrides, literal, parse_overrides, preset, preset_names
from s3prl_ekd.evaluate.tasks import TASKS, parse_tasks

FBANK = Upstream("fbank", "fbank")


@pytest.fixture
def data(tmp_path):
    """A prepared folder as far as a plan reads it: the recipe YAML files and the folds."""
    from importlib import resources

    folder = tmp_path / "DATA"
    (folder / "er").mkdir(parents=True)
    (folder / "er" / "folds.json").write_text(json.dumps(["fold1", "fold2", "fold3"]))
    for name in TASKS:
        text = (resources.files("s3prl_ekd.downstream_configs") / f"{name}.yaml").read_text()
        (folder / f"{name}.yaml").write_text(text)
    return folder


def plan(data, tmp_path, tasks="pr,sid,er,asr", overrides=None, **more):
    return make_plan(parse_tasks(tasks), data, tmp_path / "out", FBANK, overrides or {}, **more)


def native(words):
    """The command as s3prl's own argument parser and its override syntax read it."""
    parser = argparse.ArgumentParser()
    for short, long in (("-m", "--mode"), ("-t", "--split"), ("-o", "--override"), ("-e", "--past"), ("-c", "--config"),
                        ("-d", "--downstream"), ("-u", "--upstream"), ("-k", "--ckpt"), ("-g", "--model"),
                        ("-p", "--expdir")):  # fmt: skip
        parser.add_argument(short, long)
    parser.add_argument("-a", action="store_true")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device")
    parser.add_argument("--upstream_feature_normalize", action="store_true")
    args = parser.parse_args(words[len(downstream_program()) :])
    pairs = [item.split("=") for item in args.override.split(",,")] if args.override else []
    assert all(len(pair) == 2 for pair in pairs), "s3prl splits each item at every ="
    return args, dict(pairs)


def test_one_run_a_task_and_a_fold(data, tmp_path):
    runs = plan(data, tmp_path)
    assert [run.key for run in runs] == ["pr", "sid", "er-fold1", "er-fold2", "er-fold3", "asr"]
    assert len({run.expdir for run in runs}) == 6
    assert [run.key for run in plan(data, tmp_path, "er", folds=["fold2"])] == ["er-fold2"]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_trains_and_chooses_on_dev(data, tmp_path, name):
    for run in plan(data, tmp_path, overrides=preset(name).tasks):
        runner = run.effective_config()["runner"]
        assert runner["total_steps"] % runner["eval_step"] == 0, "the last step is evaluated"
        assert runner["total_steps"] % runner["save_step"] == 0, "the last step is saved"
        assert run.task.dev_split in runner["eval_dataloaders"]


def test_commands_are_what_s3prl_expects(data, tmp_path):
    overrides = preset("tiny").tasks
    for run in plan(data, tmp_path, overrides=overrides, seeds=[7], normalize=True):
        args, pairs = native(run.train_command())
        assert (args.mode, args.a, args.seed, args.device) == ("train", True, 7, "cpu")
        assert (args.downstream, args.upstream) == (run.task.downstream, "fbank")
        assert (args.config, args.expdir) == (str(run.config), str(run.expdir))
        assert args.upstream_feature_normalize
        assert pairs == run.overrides
        test, again = native(run.evaluate_command(run.expdir / "dev-best.ckpt"))
        assert (test.mode, test.split, test.past) == (
            "evaluate",
            run.task.test_split,
            str(run.expdir / "dev-best.ckpt"),
        )
        assert again == {run.task.workers_key: "0"}
    er = [run for run in plan(data, tmp_path) if run.task.name == "er"]
    assert [native(run.train_command())[1] for run in er] == [
        {"config.downstream_expert.datarc.test_fold": f"'fold{k}'"} for k in (1, 2, 3)
    ]


def test_recipe_is_untouched_by_default(data, tmp_path):
    for run in plan(data, tmp_path, "pr,sid,asr", overrides=preset("superb").tasks):
        assert run.effective_config() == yaml.safe_load(run.config.read_text())
        assert "-o" not in run.train_command()


def test_cached_states_are_part_of_a_run_and_their_place_is_not(data, tmp_path):
    plain, here, there = (
        plan(data, tmp_path, tasks="pr", cache=where)[0] for where in (None, tmp_path / "a", tmp_path / "b")
    )
    assert f"config.runner.cache_states={tmp_path / 'a'}" in here.train_command()[-1]
    assert f"config.runner.cache_states={tmp_path / 'b'}" in there.evaluate_command(tmp_path / "x.ckpt")[-1]
    assert "cache_states" not in " ".join(plain.train_command() + plain.evaluate_command(tmp_path / "x.ckpt"))
    assert here.settings() == there.settings() != plain.settings()


def test_dry_run_is_ready_to_paste(data, tmp_path):
    text = commands_text(plan(data, tmp_path, overrides=preset("small").tasks))
    lines = [shlex.split(line) for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == 12
    assert all(native(words[words.index("-m") - 1 :])[0].mode in ("train", "evaluate") for words in lines)


def test_checkpoints_are_ordered_by_their_number(tmp_path):
    for step in ("3", "20", "100", "x"):
        (tmp_path / f"states-{step}.ckpt").touch()
    assert [path.stem for path in numbered_checkpoints(tmp_path)] == ["states-3", "states-20", "states-100"]


def test_upstream_arguments(tmp_path):
    model = tmp_path / "config_model.yaml"
    model.touch()
    assert choose({"untrained": str(model)}, "base").arguments() == ["-u", "ekd_student", "-g", str(model)]
    assert choose({"upstream": "fbank"}).arguments() == ["-u", "fbank"]
    other = choose({"ckpt": str(model), "upstream": "wav2vec2_local"}, "mine")
    assert (other.arguments(), other.label) == (["-u", "wav2vec2_local", "-k", str(model)], "mine")


def test_overrides_by_task():
    parsed = parse_overrides(["pr:config.optimizer.lr=1e-2", "config.runner.total_steps=10,,config.runner.eval_step=5"])
    assert parsed["pr"] == {
        "config.optimizer.lr": "1e-2", "config.runner.total_steps": "10", "config.runner.eval_step": "5"
    }  # fmt: skip
    assert parsed["asr"] == {"config.runner.total_steps": "10", "config.runner.eval_step": "5"}
    assert parse_overrides(["PR:config.a=1"])["pr"] == {"config.a": "1"}  # as --lr and --tasks take it
    assert parse_overrides(["config.a='x:y'"])["pr"] == {"config.a": "'x:y'"}
    config = {"optimizer": {"lr": 1.0, "name": "x"}, "runner": {}}
    changed = apply_overrides(
        config, {"config.optimizer.lr": "1e-2", "config.optimizer.name": "Adam", "args.seed": "1"}
    )
    assert changed == {"optimizer": {"lr": 0.01, "name": "Adam"}, "runner": {}}
    assert config["optimizer"]["lr"] == 1.0


DECODER = "config.downstream_expert.datarc.decoder_args"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda d, t: parse_tasks("pr,kws"), "unknown task kws; expected some of pr,sid,er,asr"),
        (lambda d, t: plan(t / "nowhere", t), "pr.yaml: not found; prepare the pr data first: s3prl-ekd prepare"),
        (lambda d, t: plan(d, t, folds=["fold9"]), "no fold 'fold9'"),
        (lambda d, t: plan(d, t, overrides={"pr": {"config.runner.total_steps": "10"}}), "eval_step: 1000 > total"),
        (lambda d, t: plan(d, t, overrides={"asr": {"config.runner.eval_dataloaders": "['dev']"}}),
         "runner.eval_dataloaders: ['dev']: without dev-clean no checkpoint would be chosen on dev"),
        (lambda d, t: plan(d, t, overrides={"pr": {"config.runner.eval_step": "0"}}),
         "pr.yaml: runner.total_steps, runner.eval_step: expected whole numbers above 0"),
        (lambda d, t: plan(d, t, overrides={"asr": {f"{DECODER}.decoder_type": "kenlm"}}),
         "decoder_args.decoder_type: kenlm: the table's WER is without a language model"),
        (lambda d, t: plan(d, t, overrides={"sid": {"config.optimizer.lr": "10**-3"}}),
         "sid.yaml: optimizer.lr: '10**-3': expected a number"),
        (lambda d, t: plan(d, t, overrides={"sid": {"config.runner.cache_states": "/tmp/states"}}),
         "sid.yaml: runner.cache_states: give --cache-states instead"),
        (lambda d, t: plan(d, t, overrides={"er": {"config.downstream_expert.datarc.test_fold": "'fold2'"}}),
         "--override config.downstream_expert.datarc.test_fold='fold2': give --folds instead"),
        (lambda d, t: preset("huge"), "no preset 'huge'; expected one of superb, superb_grid, hidden, small, tiny"),
        (lambda d, t: parse_overrides(["kws:config.a=1"]), "unknown task 'kws'"),
        (lambda d, t: parse_overrides(["asr:config.a=[false]"]), "config.a=[false]': s3prl reads values as Python"),
        (lambda d, t: parse_overrides(["pr:lr"]), "expected TASK:config.some.key=value"),
        (lambda d, t: literal("config.a", "a=b"), "cannot carry"),
        (lambda d, t: choose({"ckpt": str(t / "no.ckpt")}), "no.ckpt: not found; expected a"),
        (lambda d, t: choose({"ckpt": str(d)}), "no states-*.ckpt in this folder"),
        (lambda d, t: choose({}), "nothing to evaluate"),
    ],
)  # fmt: skip
def test_mistakes_are_one_clear_line(data, tmp_path, act, message):
    with pytest.raises(EkdError) as caught:
        act(data, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["runner", "optimizer", "downstream_expert"])
@pytest.mark.parametrize(("text", "shown"), [("", "None"), (" 3", "3"), (" [lr]", "['lr']")])
def test_what_is_no_section_is_one_clear_line(data, tmp_path, name, text, shown):
    file = data / "sid.yaml"
    sections = {**yaml.safe_load(file.read_text()), name: yaml.safe_load(text)}
    file.write_text(yaml.safe_dump(sections))
    with pytest.raises(EkdError) as caught:
        plan(data, tmp_path, "sid")
    assert str(caught.value) == f"{file}: {name}: expected a section of keys, found {shown}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a list of folds, as"),
        ("3", "expected a list of folds, as"),
        ('{"a": 1}', "expected a list of folds, as"),
        ('["fold1", 2]', "expected a list of folds, as"),
        ('["fold1", "fold1"]', "fold1 is listed twice"),
        ('["../fold1"]', "'../fold1': expected a fold's name of letters and digits, as fold1"),  # runs would lie there
        ('["a,,config.b=print()"]', "'a,,config.b=print()': expected a fold's name"),  # s3prl evaluates values of -o
        ("[1", "cannot be read as a list of folds"),
    ],
)
def test_folds_that_are_no_list_of_folds_stop_the_plan(data, tmp_path, text, message):
    file = data / "er" / "folds.json"
    file.write_text(text)
    with pytest.raises(EkdError) as caught:
        plan(data, tmp_path, "er")
    assert str(caught.value).startswith(f"{file}: {message}") and "\n" not in str(caught.value)
