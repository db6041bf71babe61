"""Learning-rate grids, seeds, several models and devices: what is planned, what is picked, and what is run for it."""

from __future__ import annotations

import random
from concurrent.futures import wait
from pathlib import Path
from statistics import fmean, stdev

import pytest
from evaluate_stand_in import evaluate, install_stand_in, make_data, set_dev

from s3prl_ekd.cli import main
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.grid import searches
from s3prl_ekd.evaluate.models import Upstream
from s3prl_ekd.evaluate.plan import make_plan
from s3prl_ekd.evaluate.presets import preset, preset_names
from s3prl_ekd.evaluate.rates import check_rates, choose_rates
from s3prl_ekd.evaluate.results import standard_error
from s3prl_ekd.evaluate.scores_file import read_models, read_scores
from s3prl_ekd.evaluate.tasks import TASKS, parse_tasks
from s3prl_ekd.export.public import export_public

FBANK = Upstream("fbank", "fbank")


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "DATA")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    install_stand_in(tmp_path, monkeypatch)


def plan(data, tmp_path, tasks="pr,sid,er,asr", **more):
    return make_plan(parse_tasks(tasks), data, tmp_path / "out", FBANK, more.pop("overrides", {}), **more)


def calls(folder: Path, name: str = "calls.txt") -> list[str]:
    return sorted((folder / "runs" / name).read_text().split())


# ------------------------------------------------------------------------------------------------------------ planning


def test_one_run_a_rate_fold_and_seed_each_in_its_own_folder(data, tmp_path):
    rates, seeds = {"pr": [0.1, 0.01], "er": [1e-3, 1e-4, 1e-5]}, [3, 1]
    runs = plan(data, tmp_path, rates=rates, seeds=seeds)
    counts = {name: sum(run.task.name == name for run in runs) for name in TASKS}
    assert counts == {"pr": 2 * 2, "sid": 2, "er": 3 * 2 * 2, "asr": 2}
    assert len({run.key for run in runs}) == len({run.expdir for run in runs}) == len(runs)
    for run in runs:
        words = run.train_command(["x"])
        assert words[words.index("--seed") + 1] == str(run.seed)
        lr = run.effective_config().get("optimizer", {}).get("lr")
        assert lr == run.rate  # the stand-in's configuration names no rate
        assert run.rate in rates.get(run.task.name, [None])
    groups = searches(runs)
    assert len(groups) == 4 * 2
    assert all(len({(run.task.name, run.seed) for run in group.runs}) == 1 for group in groups)


def test_the_single_form_names_its_folders_as_ever(data, tmp_path):
    assert [run.expdir.name for run in plan(data, tmp_path)] == ["pr", "sid", "er-fold1", "er-fold2", "asr"]


@pytest.mark.parametrize("name", preset_names())
def test_grids_of_presets_are_rates_of_known_tasks(name):
    grid = preset(name)["grid"]
    assert set(grid) <= set(TASKS)
    for task, rates in grid.items():
        assert check_rates(rates, f"{name}.{task}") == rates
    assert bool(grid) == (name in ("superb_grid", "hidden"))


def test_the_hidden_sets_settings(tmp_path):
    """design.md section 3: rates and steps, PR at 32 utterances a step, features normalised."""
    from importlib import resources

    folder = tmp_path / "real"
    make_data(folder)
    for name in TASKS:
        text = (resources.files("s3prl_ekd.downstream_configs") / f"{name}.yaml").read_text()
        (folder / f"{name}.yaml").write_text(text)
    chosen = preset("hidden")
    assert chosen["normalize"]
    runs = plan(folder, tmp_path, overrides=chosen["tasks"], rates=chosen["grid"], folds=["fold1"])
    steps = {run.task.name: run.effective_config()["runner"]["total_steps"] for run in runs}
    assert steps == {"pr": 1000, "sid": 5000, "er": 2500, "asr": 10_000}
    rates = {name: {run.rate for run in runs if run.task.name == name} for name in TASKS}
    assert rates["pr"] == {1e-1, 1e-2, 1e-3}
    assert rates["sid"] == {1.0, 1e-1, 1e-2, 1e-3}
    assert rates["er"] == {1e-2, 1e-3, 1e-4, 1e-5}
    assert rates["asr"] == {1e-3, 1e-4}
    pr = next(run for run in runs if run.task.name == "pr").effective_config()
    assert pr["downstream_expert"]["corpus"]["batch_size"] * pr["runner"]["gradient_accumulate_steps"] == 32


def test_who_sets_the_rate():
    none = {task: {} for task in TASKS}
    by_preset = {"pr": [0.1, 0.01], "sid": [1.0]}
    assert choose_rates(by_preset, [], none) == by_preset
    assert choose_rates(by_preset, ["pr:1e-3"], none) == {"pr": [1e-3], "sid": [1.0]}
    assert choose_rates({}, ["0.5,0.1", "asr:1e-4"], none) == {
        "pr": [0.5, 0.1], "sid": [0.5, 0.1], "er": [0.5, 0.1], "asr": [1e-4]
    }  # fmt: skip
    by_hand = none | {"pr": {"config.optimizer.lr": "0.3"}}
    assert choose_rates(by_preset, [], by_hand) == {"sid": [1.0]}
    with pytest.raises(EkdError, match="--lr and --override both set the learning rate of pr"):
        choose_rates({}, ["pr:0.1"], by_hand)


# ------------------------------------------------------------------------------------------------------------- picking


@pytest.mark.parametrize("seed", range(20))
def test_the_picked_rate_is_the_best_on_dev(data, tmp_path, seed):
    source = random.Random(seed)
    task = source.choice(list(TASKS.values()))
    rates = source.sample([1.0, 0.1, 0.01, 1e-3, 1e-4], k=source.randint(2, 5))
    runs = plan(data, tmp_path, task.name, rates={task.name: rates})
    dev = {run.key: {"dev": source.choice([None, source.randint(0, 8), source.uniform(0, 100)])} for run in runs}
    sure = source.choice(runs).rate
    dev |= {run.key: {"dev": source.uniform(0, 100)} for run in runs if run.rate == sure}  # one rate has a score
    picked = searches(runs)[0].picked(dev)

    def mean(rate):
        return [dev[run.key]["dev"] for run in runs if run.rate == rate]

    scored = [(fmean(mean(rate)), rates.index(rate), rate) for rate in rates if None not in mean(rate)]
    sign = 1 if task.lower_is_better else -1
    assert picked == min((sign * score, place, rate) for score, place, rate in scored)[2]  # of equals the first


def test_a_rate_that_diverged_in_one_fold_is_not_picked_for_the_others(data, tmp_path):
    runs = plan(data, tmp_path, "er", rates={"er": [0.1, 0.01]})
    [search] = searches(runs)
    scores = {run.key: {"dev": {0.1: 90.0, 0.01: 60.0}[run.rate]} for run in runs}
    assert search.picked(scores) == 0.1
    scores[search.at(0.1)[0].key]["dev"] = None
    assert search.dev(0.1, scores) is None and search.picked(scores) == 0.01


def test_no_dev_score_at_all(data, tmp_path):
    [search] = searches(plan(data, tmp_path, "asr", rates={"asr": [0.1, 0.01]}))
    with pytest.raises(EkdError, match="asr: no learning rate of 0.1, 0.01 gave a dev-clean wer; see train.log in"):
        search.picked({run.key: {"dev": None} for run in search.runs})
    [alone] = searches(plan(data, tmp_path, "asr"))
    assert alone.picked({run.key: {"dev": None} for run in alone.runs}) is None  # nothing to choose: it is tested


def test_standard_error_over_seeds():
    values = [3.0, 4.0, 8.0]
    assert standard_error(values) == pytest.approx(stdev(values) / 3**0.5)


# ------------------------------------------------------------------------------------------------------------- running


def test_only_what_is_picked_is_tested(data, tmp_path, stand_in):
    """SID's seeds pick differently; ER's folds disagree and get one rate by their mean; a NaN is never picked."""
    set_dev(
        tmp_path,
        (["voxceleb1", "0.1", "1", None, None], 0.9), (["voxceleb1", "0.01", "2", None, None], 0.8),
        (["emotion", "0.1", None, None, "er-fold1-lr0.1-seed1"], 0.9),
        (["emotion", "0.1", None, None, "er-fold2-lr0.1-seed1"], 0.1),
        (["emotion", "0.01", "1", None, None], 0.6),
        (["ctc", "0.1", None, None, None], float("nan")),
    )  # fmt: skip
    assert evaluate(data, tmp_path, "--lr", "0.1,0.01", "--seeds", "1,2", "--jobs", "3", tasks="pr,sid,er") == 0
    out = tmp_path / "out"
    assert len(calls(out)) == 2 * 2 * (1 + 1 + 2)
    assert {name for name in calls(out, "tests.txt") if "seed1" in name or "sid" in name} == {
        "sid-lr0.1-seed1", "sid-lr0.01-seed2", "er-fold1-lr0.01-seed1", "er-fold2-lr0.01-seed1", "pr-lr0.01-seed1"
    }  # fmt: skip
    record = read_scores(out)
    sid = record["tasks"]["sid"]
    assert (sid["acc"], sid["standard_error"], sid["lr"]) == (50.0, {"acc": 0.0}, None)
    assert {seed: part["lr"] for seed, part in sid["seeds"].items()} == {"1": 0.1, "2": 0.01}
    assert sid["seeds"]["1"]["grid"] == [
        {"lr": 0.1, "dev": 90.0, "picked": True},
        {"lr": 0.01, "dev": 50.0, "picked": False},
    ]
    er = record["tasks"]["er"]["seeds"]["1"]
    assert er["grid"][0] == {"lr": 0.1, "dev": 50.0, "picked": False, "folds": {"fold1": 90.0, "fold2": 10.0}}
    assert set(er["folds"]) == {"fold1", "fold2"}
    assert record["tasks"]["pr"]["seeds"]["1"]["grid"][0]["dev"] is None
    text = (out / "scores.md").read_text()
    assert "| fbank | 0.0 | 0.5 | **" not in text  # a single row has no best
    assert "50.00 ± 0.00" in text
    assert "| fbank | 1 | **90.00** | 50.00 | 50.00 |" in text


def test_trainings_that_end_together_are_tested_once(data, tmp_path, stand_in, monkeypatch):
    """Both rates of a search are done in one look: its pick is tested by one thread, not by two in one folder."""
    from s3prl_ekd.evaluate import schedule

    monkeypatch.setattr(schedule, "wait", lambda futures, return_when: wait(futures))
    assert evaluate(data, tmp_path, "--lr", "0.01,0.1", "--jobs", "2") == 0
    assert calls(tmp_path / "out", "tests.txt") == ["sid-lr0.01"]


def test_a_longer_grid_and_more_seeds_run_only_what_is_new(data, tmp_path, stand_in, capfd):
    assert evaluate(data, tmp_path, "--override", "sid:config.optimizer.lr=0.1", "--seed", "1") == 0
    assert calls(tmp_path / "out") == ["sid"]
    assert evaluate(data, tmp_path, "--lr", "sid:0.1,0.01", "--seeds", "1") == 0
    assert calls(tmp_path / "out") == ["sid", "sid-lr0.01"]  # the plain run is the grid's 0.1 already
    set_dev(tmp_path, (["voxceleb1", "0.001", None, None, None], 0.99))
    assert evaluate(data, tmp_path, "--lr", "sid:0.1,0.01,0.001", "--seeds", "1,2") == 0
    new = ["sid-lr0.001-seed1", "sid-lr0.001-seed2", "sid-lr0.01-seed2", "sid-lr0.1-seed2"]
    assert calls(tmp_path / "out") == sorted(["sid", "sid-lr0.01", *new])
    assert calls(tmp_path / "out", "tests.txt") == ["sid", "sid-lr0.001-seed1", "sid-lr0.001-seed2"]
    before = read_scores(tmp_path / "out")["tasks"]
    capfd.readouterr()
    assert evaluate(data, tmp_path, "--lr", "sid:0.1,0.01,0.001", "--seeds", "1,2") == 0
    printed = capfd.readouterr().out
    assert printed.count("done before, kept") == 3 and printed.count("trained before, kept") == 3
    assert read_scores(tmp_path / "out")["tasks"] == before
    assert len(calls(tmp_path / "out")) == 6


def test_a_run_that_failed_is_the_only_one_done_again(data, tmp_path, stand_in):
    words = ("--lr", "sid:0.1,0.01")
    (tmp_path / "out" / "runs").mkdir(parents=True)
    (tmp_path / "out" / "runs" / "broken").touch()
    assert evaluate(data, tmp_path, *words) == 2
    assert calls(tmp_path / "out") == ["sid-lr0.1"]
    (tmp_path / "out" / "runs" / "broken").unlink()
    assert evaluate(data, tmp_path, *words) == 0
    assert calls(tmp_path / "out") == ["sid-lr0.01", "sid-lr0.1", "sid-lr0.1"]


def test_several_models_side_by_side(data, tmp_path, stand_in):
    config = tmp_path / "config_model.yaml"
    config.write_text("base: config_model.yaml\nstudent: {width: 96, heads: 4, ffn_width: 64, pos_conv_groups: 8}\n")
    models = ("--untrained", f"my student={config}", "--upstream", "fbank", "--upstream", "mfcc")
    set_dev(tmp_path, (["voxceleb1", "0.1", None, "my-student", None], 0.7))
    words = ("--lr", "0.01,0.1", "--jobs", "2")
    assert evaluate(data, tmp_path, *words, upstream=models, tasks="sid,er") == 0
    out = tmp_path / "out"
    found = read_models(out)
    assert [record["label"] for _, record in found] == ["my student", "fbank", "mfcc"]
    assert [folder for folder, _ in found] == [out / name for name in ("my-student", "fbank", "mfcc")]
    for folder, record in found:
        assert read_scores(folder)["tasks"] == record["tasks"]
    assert [record["tasks"]["sid"]["lr"] for _, record in found] == [0.1, 0.01, 0.01]
    costs = [record["cost"] for _, record in found]
    assert costs[0]["params"] > 0 and costs[1] == {"params": 0, "macs": 479126160} and costs[2] is None
    with pytest.raises(EkdError, match="holds several models; expected one of .*my-student, .*fbank, .*mfcc"):
        read_scores(out)
    text = (out / "scores.md").read_text()
    assert text.count("| my student |") == 3  # the table, and two tasks' grids
    assert evaluate(data, tmp_path, *words, upstream=models, tasks="sid,er") == 0
    assert len(calls(out / "fbank")) == 2 + 2 * 2

    # One of them alone, in its own folder, is the same run.
    alone = ("--upstream", "fbank")
    assert main(["evaluate", *alone, "--data", str(data), "--out", str(out / "fbank"), "--device", "cpu", "--tasks",
                 "sid", "--lr", "0.01"]) == 0  # fmt: skip
    assert len(calls(out / "fbank")) == 2 + 2 * 2


def test_the_other_commands_read_grids_seeds_and_models(data, tmp_path, stand_in, capfd):
    models = ("--upstream", "fbank", "--upstream", "mel=fbank")
    assert evaluate(data, tmp_path, "--lr", "0.1,0.01", "--seeds", "1,2", upstream=models) == 0
    out = tmp_path / "out"
    page = tmp_path / "report.html"
    capfd.readouterr()
    assert main(["report", str(out), "--out", str(page)]) == 0
    printed = capfd.readouterr().out
    assert "± 0.00" in printed and "SID: dev acc ↑ by learning rate" in printed
    text = page.read_text()
    assert "± 0.00" in text and "Learning rates" in text and "Score and cost" in text
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"learning-rates.png", "macs.png", "layer-weights.png"}

    with pytest.raises(EkdError, match="holds several models"):
        export_public(out, tmp_path / "predict.zip")
    with pytest.raises(EkdError, match="sid was tested at the seeds 1, 2, and the site takes one.*--seed"):
        export_public(out / "mel", tmp_path / "predict.zip")
    with pytest.raises(EkdError, match="--seed 3: sid was not tested at it"):
        export_public(out / "mel", tmp_path / "predict.zip", seed=3)
    assert export_public(out / "mel", tmp_path / "predict.zip", seed=2)[1] == {"sid": 0.5}


# ------------------------------------------------------------------------------------------------------ the real runner


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_grid_with_the_real_runner(tmp_path):
    """Two rates, two seeds, two models on SID; nothing is run twice; report and public export read what came out."""
    import subprocess

    import yaml
    from bridge_corpora import BIN, voxceleb

    from s3prl_ekd.compat.modules import ours

    corpus, folder = voxceleb(tmp_path / "vox"), tmp_path / "data"
    folder.mkdir()
    config = yaml.safe_load((ours("downstream_configs") / "sid.yaml").read_text())
    config["downstream_expert"]["datarc"] |= {"file_path": str(corpus["root"]), "meta_data": str(corpus["table"])}
    (folder / "sid.yaml").write_text(yaml.safe_dump(config))
    steps = "config.runner.total_steps=2,,config.runner.eval_step=2,,config.runner.save_step=2"
    words = [BIN / "s3prl-ekd", "evaluate", "--upstream", "fbank", "--upstream", "again=fbank", "--tasks", "sid"]
    words += ["--preset", "tiny", "--lr", "0.1,0.0001", "--seeds", "1,2", "--data", folder, "--out", tmp_path / "out"]
    words += ["--device", "cpu", "--override", steps]
    subprocess.run(words, check=True)
    found = [record for _, record in read_models(tmp_path / "out")]
    for record in found:
        for seed, part in record["tasks"]["sid"]["seeds"].items():
            assert part["rescored"]["agrees"] and part["n_utterances"] == 2
            assert [one["lr"] for one in part["grid"]] == [0.1, 0.0001]
            assert max(one["dev"] for one in part["grid"]) == next(one["dev"] for one in part["grid"] if one["picked"])
            assert f"--seed {seed} " in part["commands"][0] and f"lr={part['lr']}" in part["commands"][0]
        tested = list((tmp_path / "out" / record["folder"]).glob("runs/*/evaluate.log"))
        assert len(tested) == 2  # a seed
    scores = [[record["tasks"]["sid"][key] for key in ("acc", "standard_error", "dev")] for record in found]
    assert scores[0] == scores[1]  # the same upstream under two names, at the same seeds
    again = subprocess.run(words, check=True, capture_output=True, text=True)
    assert again.stdout.count("kept") == 8
    assert [record["tasks"] for _, record in read_models(tmp_path / "out")] == [record["tasks"] for record in found]
    subprocess.run([BIN / "s3prl-ekd", "report", tmp_path / "out", "--out", tmp_path / "report.html"], check=True)
    assert (tmp_path / "report" / "learning-rates.png").is_file()
    assert export_public(tmp_path / "out" / "fbank", tmp_path / "predict.zip", seed=1)[0].is_file()
