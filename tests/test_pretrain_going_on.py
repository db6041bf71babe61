"""A pretraining run that goes on: its schedule, and what ``-o`` may still change; and beginnings that cannot be."""

from __future__ import annotations

import re
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import trouble_lab
import yaml
from console import check_mistakes
from pretrain_lab import STUDENT, final_weights, make_expert, run, write_clips

from s3prl_ekd.bridge import optimizers, pretrain_configs
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.config import load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.student_checkpoint import newest_checkpoint
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_converted
from s3prl_ekd.torch_file import read_torch_file


def configure(folder: Path, lab: Path, drop: tuple[str, ...] = (), **sections: dict) -> Path:
    """The lab's runner.yaml with other sections; keys of ``drop`` are left out wherever they stand."""
    config = yaml.safe_load((lab / "runner.yaml").read_text()) | sections
    for section in (config["runner"], config["pretrain_expert"]["datarc"]):
        for key in drop:
            section.pop(key, None)
    file = folder / "config_runner.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def words(lab: Path, config: Path, expdir: str, **runner: object) -> list[str]:
    given = trouble_lab.arguments(lab, lab / "model.yaml", expdir, "cpu", **runner)
    given[given.index("-c") + 1] = str(config)
    return given


@pytest.mark.slow
def test_a_scheduler_goes_on_where_it_was(lab: Path, tmp_path: Path) -> None:
    """Killed at step 6 of 8, gone on from step 4: the same weights, the step at the learning rate that was due."""
    schedule = {"name": "linear_schedule_with_warmup", "num_warmup_steps": 2}
    config = configure(tmp_path, lab, optimizer={"name": "Adam", "lr": 1e-3}, scheduler=schedule)
    trouble_lab.run(tmp_path, *words(lab, config, "whole"))
    trouble_lab.run(tmp_path, *words(lab, config, "killed"), faults="6:kill", status=-9)
    trouble_lab.run(tmp_path, *words(lab, config, "killed"), "-a")
    whole, killed = (read_torch_file(newest_checkpoint(tmp_path / name)) for name in ("whole", "killed"))
    for part in ("encoder", "heads"):
        assert all(torch.equal(killed["EKD"][part][name], value) for name, value in whole["EKD"][part].items())
    for name in ("whole", "killed"):  # as logged: the rate of each step
        rates = [line["lr"] for line in trouble_lab.lines(tmp_path / name / "metrics.jsonl", "lr")]
        assert rates == pytest.approx([1e-3 * part for part in (0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)])
    # what is not the schedule's is refused, what is has an effect
    out, err = trouble_lab.run(tmp_path, "-u", "ekd", "-e", "whole", "-o", "config.optimizer.name='AdamW'", status=2)
    assert "-o config.optimizer.name: a resumed run keeps its optimizer; only lr, betas" in err.splitlines()[-1]
    change = "config.optimizer.lr=0.01,,config.runner.total_steps=10,,config.pretrain_expert.datarc.seed=3"
    _, err = trouble_lab.run(tmp_path, "-u", "ekd", "-e", "whole", "-o", change)
    after = read_torch_file(newest_checkpoint(tmp_path / "whole"))
    assert after["Scheduler"]["base_lrs"] == [0.01] and after["Config"]["optimizer"]["lr"] == 0.01
    assert "datarc.seed: was 0, now 3: this changes the batches" in err


@pytest.mark.slow
def test_a_seed_that_the_command_gives_is_that_of_batches_and_distortions(lab: Path, tmp_path: Path) -> None:
    """It is kept with the run, which goes on with it; a seed of the configuration or of -o counts more."""
    (lab / "noisy.yaml").write_text(f"base: {lab}/model.yaml\ndistortion: {{additive: {{}}}}\n")

    def train(name: str, *more: str, steps: int = 3, data: str = "", status: int = 0) -> tuple[dict, str]:
        given = trouble_lab.arguments(lab, lab / "noisy.yaml", name, "cpu", total_steps=steps, save_step=2)
        _, err = trouble_lab.run(tmp_path, *given[:-1], given[-1] + data, *more, status=status)
        return read_torch_file(newest_checkpoint(tmp_path / name)), err

    def seeds(state: dict) -> tuple[int, int]:
        return state["Config"]["pretrain_expert"]["datarc"]["seed"], state["Upstream_Config"]["distortion"]["seed"]

    assert seeds(train("none")[0]) == (0, 0)
    assert seeds(train("by_o", data=",,args.seed=6")[0]) == (6, 6)
    assert train("by_o", "-a", data=",,args.seed=6", steps=4)[0]["Args"].seed == 6
    state, err = train("by_o", "-a", data=",,args.seed=7", steps=5, status=2)
    assert state["Step"] == 4 and "-o args.seed=7: by_o/states-epoch-1.ckpt was trained with 6, and" in err
    state, err = train("named", "--seed", "5", data=",,config.pretrain_expert.datarc.seed=3")
    assert seeds(state) == (3, 5) and "--seed 5: batches and crops keep pretrain_expert.datarc.seed: 3" in err
    assert seeds(train("given", "--seed", "5")[0]) == (5, 5)
    files = [read_yaml(tmp_path / "given" / name) for name in ("config_runner.yaml", "config_model.yaml")]
    assert (files[0]["pretrain_expert"]["datarc"]["seed"], files[1]["distortion"]["seed"]) == (5, 5)
    assert read_yaml(tmp_path / "none/config_model.yaml")["distortion"].keys() == {"additive"}  # as the file

    state, err = train("given", "--seed", "5", "-a", steps=5)
    assert (state["Step"], *seeds(state)) == (5, 5, 5) and "ignored" not in err
    state, err = train("given", "--seed", "7", "-a", steps=6)
    assert (state["Step"], state["Args"].seed, *seeds(state)) == (6, 5, 5, 5)
    assert "ignored: --seed 7 (was 5)" in err and "differs" not in err


def test_another_rate_reaches_groups_and_schedule() -> None:
    schedule = type("Schedule", (), {"warmup": 0.1})()
    state = {"Optimizer": {"param_groups": [{"lr": 1.0, "schedule": schedule}]}, "Scheduler": {"base_lrs": [1.0]}}
    before = {"optimizer": {"lr": 1.0, "name": "x"}, "scheduler": {"name": "y"}}
    now = {"optimizer": {"lr": 0.5, "name": "x", "warmup_proportion": 0.3}, "scheduler": {"name": "z"}}
    optimizers.apply_changes(state, optimizers.changes(before, now))
    assert state["Optimizer"]["param_groups"][0]["lr"] == 0.5 and schedule.warmup == 0.3
    optimizers.apply_changes(state, {"warmup_proportion": 0.2})  # without the rate: the schedule's stays
    assert state["Scheduler"]["base_lrs"] == [0.5] and schedule.warmup == 0.2
    optimizers.apply_changes(state, {"warmup_proportion": -1})
    assert schedule.warmup == 0  # s3prl's schedules take -1 for no warm-up, as they are made only
    with pytest.raises(EkdError, match="betas: this run's optimizer has no such key"):
        optimizers.apply_changes(state, {"betas": [0.9, 0.9]})
    for one, other in ((before, now | {"scheduler": None}), ({"optimizer": {}}, now)):
        with pytest.raises(EkdError, match="^-o config.scheduler: a resumed run keeps what it was started with"):
            optimizers.changes(one, other)


@pytest.mark.slow
def test_the_first_steps_may_be_none_and_the_runners_keys_have_defaults(lab: Path, tmp_path: Path) -> None:
    """A gradient of NaN before any step was made, in a run whose configuration leaves out what has a default."""
    drop = ("train_batch_size", "n_epochs", "gradient_accumulate_steps", "num_workers")
    config = configure(tmp_path, lab, drop)
    out, _ = trouble_lab.run(tmp_path, *words(lab, config, "x", log_step=1), faults="1:nan")
    assert "grad norm is NaN at global step 1" in out
    steps = trouble_lab.lines(tmp_path / "steps.jsonl", "step")
    assert [line["changed"] for line in steps] == [False] + [True] * 7


@pytest.mark.slow
def test_beginnings_that_cannot_be_are_one_line(lab: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    base = f"-u ekd -p x -g {lab}/model.yaml"
    ours = f"{base} -c {configure(tmp_path, lab)}"
    few = f"{ours} -o config.runner.n_epochs=1,,config.runner.log_step=3,,config.runner.save_step=50"
    few += ",,config.runner.total_steps=100"
    mistakes = {
        f"{base} -c {empty}": "empty.yaml: expected a mapping of keys, found NoneType",
        f"{ours} -o config.runner.fp16=True": "runner.fp16: true needs a GPU, and this is --device cpu",
        f"{ours} -o config.runner.max_keep.x=5": "-o 'config.runner.max_keep.x=5': the configuration has no",
        f"{ours} -o config.optimizer.name='Adamm'": "optimizer.name: input should be 'AdamW_with_schedule',",
        f"{ours} -o config.scheduler.name='foo'": "scheduler.name: 'foo' is none of constant_decay_schedule",
        few: "runner.log_step: 3 must be below the 3 steps of n_epochs: 1",
    }
    check_mistakes("pretrain", mistakes, tmp_path)


def test_a_name_out_of_a_checkpoint_is_no_expression() -> None:
    def get_optimizer(target: object, total_steps: int, config: dict) -> None:
        raise AssertionError("was evaluated")

    build = optimizers.with_clear_errors(get_optimizer, "optimizer", lambda: "states-1.ckpt")
    with pytest.raises(EkdError, match="states-1.ckpt: optimizer.name: '_x[(][)] or exit[(][)]' is none of"):
        build([], 1, {"name": "_x() or exit()"})


@pytest.mark.parametrize(
    ("name", "said"),
    [("LBFGS", "LBFGS computes the loss several times a step"), ("SparseAdam", "SparseAdam takes sparse gradients")],
)
def test_an_optimizer_that_the_runner_cannot_step_is_known_before_the_first_step(name: str, said: str) -> None:
    import s3prl.optimizers

    build = optimizers.with_clear_errors(s3prl.optimizers.get_optimizer, "optimizer", lambda: "runner.yaml")
    config = {"name": "TorchOptim", "torch_optim_name": name, "lr": 0.1}
    with pytest.raises(EkdError, match=f"runner.yaml: optimizer: {said}"):
        build([torch.nn.Linear(1, 1)], 8, config)
    assert build([torch.nn.Linear(1, 1)], 8, config | {"torch_optim_name": "Adam"}).param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(("key", "value"), [("eps", "1e-6"), ("betas", [0.9, "1e-6"]), ("weight_decay", "1e-6")])
def test_a_number_of_an_optimizer_that_is_text_to_yaml_is_named(key: str, value: object) -> None:
    """s3prl's and torch's optimizers compare it with a number, and their TypeError names no key."""
    from s3prl import optimizers as s3prls

    build = optimizers.with_clear_errors(s3prls.get_optimizer, "optimizer", lambda: "runner.yaml")
    config = {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 0.1, key: value}
    with pytest.raises(EkdError, match=f"^runner.yaml: optimizer.{key}: '1e-6' is text to YAML; write 1.0e-6$"):
        build([torch.nn.Linear(1, 1)], 8, config)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"name": ["linear_schedule_with_warmup"]}, "is none of"),
        ({"name": "noam_decay_schedule_with_warmup", "num_warmup_steps": 0}, "zero|0.0 cannot be raised"),
        ({"name": "sqrt_decay_schedule_with_warmup", "num_warmup_steps": 0}, "division by zero"),
        ({"name": "polynomial_decay_schedule_with_warmup", "num_warmup_steps": 0, "lr_end": 0.5}, "must be be smaller"),
        # met after the last step, before its checkpoint is written
        ({"name": "polynomial_decay_schedule_with_warmup", "num_warmup_steps": 8}, "division by zero"),
    ],
)
def test_a_schedule_that_cannot_be_is_known_before_the_first_step(schedule: dict, said: str) -> None:
    from s3prl import schedulers

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    build = optimizers.with_clear_errors(schedulers.get_scheduler, "scheduler", lambda: "runner.yaml")
    with pytest.raises(EkdError, match=f"^runner.yaml: scheduler.*({said})"):
        build(optimizer, 8, schedule)
    build(optimizer, 8, {"name": "polynomial_decay_schedule_with_warmup", "num_warmup_steps": 2})


def test_a_schedule_goes_on_at_its_own_rate() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 * step)
    scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": 3})
    assert optimizer.param_groups[0]["lr"] == 0.0
    assert optimizers.go_on(scheduler, optimizer) is scheduler
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.6)


@pytest.mark.slow
def test_the_folder_holds_what_was_run(lab: Path, tmp_path: Path) -> None:
    """``base``, ``-o`` and relative paths resolved: both files alone make the same run again, also from elsewhere."""
    model = yaml.safe_load((lab / "model.yaml").read_text())
    (tmp_path / "cfg").mkdir()
    (tmp_path / "cfg/base.yaml").write_text(yaml.safe_dump(model))
    (tmp_path / "cfg/mine.yaml").write_text("base: base.yaml\nekd: {cosine_weight: 0.25}\n")
    changes = ",,".join(f"config.runner.{key}" for key in ("total_steps=3", "save_step=2", "log_step=1"))
    changes += ",,config.optimizer.lr=0.003"
    words = ["-u", "ekd", "-c", str(lab / "runner.yaml"), "-p", "one", "-g", "cfg/mine.yaml"]
    first = run(tmp_path, *words, "-o", changes)
    assert first.returncode == 0, first.stderr[-3000:]
    assert len(re.findall(r"(?m)^\[ekd\] step \d: loss \d+\.\d+, [\d,]+ s of audio a second$", first.stdout)) == 3
    kept = read_yaml(tmp_path / "one/config_runner.yaml")
    assert kept["runner"]["total_steps"] == 3 and kept["optimizer"]["lr"] == 0.003
    kept = read_yaml(tmp_path / "one/config_model.yaml")
    assert kept["ekd"]["cosine_weight"] == 0.25 and len(kept["ekd"]["teachers"]) == len(model["ekd"]["teachers"])
    (tmp_path / "elsewhere").mkdir()
    again = ["-u", "ekd", "-p", "two", "-c", "../one/config_runner.yaml", "-g", str(lab / "model.yaml")]
    again += ["-o", "args.upstream_config='../one/config_model.yaml'"]
    second = run(tmp_path / "elsewhere", *again)
    assert second.returncode == 0, second.stderr[-3000:]
    assert read_yaml(tmp_path / "elsewhere/two/config_model.yaml") == kept
    one, two = final_weights(tmp_path / "one"), final_weights(tmp_path / "elsewhere/two")
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    longer = run(tmp_path, "-u", "ekd", "-e", "one", "-o", "config.runner.total_steps=4")
    assert longer.returncode == 0, longer.stderr[-3000:]
    assert read_yaml(tmp_path / "one/config_runner.yaml")["runner"]["total_steps"] == 4
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "one").iterdir())
    done = run(tmp_path, *words, "-a")
    assert done.returncode == 0, done.stderr[-3000:]
    end = "finished at step 4; nothing to do (more steps: -o config.runner.total_steps=...)"
    assert done.stderr.splitlines()[-1].endswith(f"one/states-epoch-1.ckpt: {end}")
    assert "[ekd] student" not in done.stderr  # no teacher was loaded
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "one").iterdir()) == before


def test_a_run_goes_on_with_its_teachers_wherever_they_lie_now(lab: Path, tmp_path: Path) -> None:
    """Their weights must be the same; what the student started from is not needed any more."""
    from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert

    sources = {one["name"]: Path(one["source"]) for one in read_yaml(lab / "model.yaml")["ekd"]["teachers"]}
    old, new, start = tmp_path / "old", tmp_path / "new", tmp_path / "start"
    for place in (old, start):
        shutil.copytree(sources["robust_hubert"], place)
    teacher = {"name": "hubert", "source": str(old), "layers": [2]}
    expert = make_expert(lab, teachers=[teacher], initialise_from=str(start))
    state = expert.add_state_to_save({"Step": 3, "Args": Namespace(expdir=str(tmp_path))})
    kept = state["Upstream_Config"]
    given = load_model_config(lab / "changed.yaml", changes={"ekd": {"teachers": [teacher | {"source": str(new)}]}})
    assert pretrain_configs.gone_files(kept) == {}
    assert pretrain_configs.follow_files(kept, given) == kept  # its file is where it was
    shutil.rmtree(start)
    old.rename(new)
    assert pretrain_configs.gone_files(kept) == {"ekd.teachers[0].source": str(old)}
    moved = pretrain_configs.follow_files(kept, given)
    assert pretrain_configs.gone_files(moved) == {}

    def go_on() -> None:
        datarc = read_yaml(lab / "runner.yaml")["pretrain_expert"]["datarc"]
        UpstreamPretrainExpert(datarc, moved, device="cpu").load_model(state)

    go_on()
    shutil.rmtree(new)
    shutil.copytree(sources["wavlm"], new)
    with pytest.raises(EkdError, match=rf"teachers\[0\].source: {new}: not the weights of hubert that the run"):
        go_on()


def test_a_run_goes_on_with_its_noise_and_its_cache_wherever_they_lie_now(lab: Path, tmp_path: Path) -> None:
    """On another machine, or where scratch space has another name in each job; the run is the one of one place."""
    folder, config = tmp_path / "old", configure(tmp_path, lab)

    def model() -> str:
        rooms, noise = [str(folder / "rooms")], str(folder / "noise")
        distortion = {
            "additive": {"noise": [noise, str(tmp_path / "stays")], "weights": {noise: 2}},
            "non_additive": {"reverb": rooms},
        }
        values = read_yaml(lab / "model.yaml") | {"distortion": distortion}
        values["ekd"]["cache_targets"] = str(folder / "targets")
        (tmp_path / "model.yaml").write_text(yaml.safe_dump(values))
        return str(tmp_path / "model.yaml")

    for place in (folder / "noise", folder / "rooms", tmp_path / "stays"):
        place.mkdir(parents=True)
        write_clips(place, shortest=2_000, count=2)
    given = words(lab, config, "whole", total_steps=4, save_step=2)
    given[given.index("-g") + 1] = model()
    trouble_lab.run(tmp_path, *given)
    given[given.index("whole")] = "run"
    trouble_lab.run(tmp_path, *given, faults="3:kill", status=-9)
    gone, folder = folder, folder.rename(tmp_path / "new")
    _, err = trouble_lab.run(tmp_path, *given, "-a", status=2)
    key = f"distortion.additive.noise[0]: no such file or folder: {gone / 'noise'}"
    assert err.splitlines()[-1].endswith(f"{key}; if it has moved, give -g a file with the new place")
    model()
    _, err = trouble_lab.run(tmp_path, *given, "-a")
    assert "ignored: -" not in err and not gone.exists()
    whole, weights = final_weights(tmp_path / "whole"), final_weights(tmp_path / "run")
    assert all(torch.equal(value, weights[name]) for name, value in whole.items())
    kept = read_yaml(tmp_path / "run/config_model.yaml")
    expected = load_model_config(tmp_path / "model.yaml").model_dump(mode="json", exclude_unset=True)
    assert kept == expected | {"ekd": kept["ekd"]} and kept["ekd"]["cache_targets"] == str(folder / "targets")


@pytest.mark.slow
def test_the_folder_names_the_place_where_a_teacher_lies_now(lab: Path, tmp_path: Path) -> None:
    """Also where it is an upstream of s3prl's that reads a file; other weights change nothing in the folder."""
    encoder = random_encoder(TINY.with_(padding_rule="fairseq", layers=2), seed=0)
    file = write_converted(encoder, tmp_path / "teacher.pt")

    def model(place: Path) -> Path:
        teacher = {"name": "theirs", "source": f"s3prl:hubert_local:{place}", "layers": [2]}
        values = {"base": "config_model.yaml", "ekd": {"teachers": [teacher], "initialise_from": None}}
        (tmp_path / "model.yaml").write_text(yaml.safe_dump(values | {"student": STUDENT}))
        return tmp_path / "model.yaml"

    def source() -> str:
        return read_yaml(tmp_path / "run/config_model.yaml")["ekd"]["teachers"][0]["source"]

    given = words(lab, configure(tmp_path, lab), "run", total_steps=6, save_step=4)
    given[given.index("-g") + 1] = str(model(file))
    trouble_lab.run(tmp_path, *given, faults="5:kill", status=-9)
    moved = file.rename(tmp_path / "moved.pt")
    _, err = trouble_lab.run(tmp_path, *given, "-a", status=2)
    gone = f"ekd.teachers[0].source: no such file or folder: s3prl:hubert_local:{file}"
    assert err.splitlines()[-1].endswith(f"{gone}; if it has moved, give -g a file with the new place")
    model(write_converted(random_encoder(encoder.shape, seed=1), tmp_path / "other.pt"))
    _, err = trouble_lab.run(tmp_path, *given, "-a", status=2)
    assert "other.pt: not the weights of theirs that the run was started with" in err.splitlines()[-1]
    assert source().endswith(f":{file}")
    model(moved)
    trouble_lab.run(tmp_path, *given, "-a")
    assert source() == f"s3prl:hubert_local:{moved}"
    kept = read_torch_file(newest_checkpoint(tmp_path / "run"))["Upstream_Config"]
    assert kept["ekd"]["teachers"][0]["source"] == source()
