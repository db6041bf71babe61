"""Learning-rate grids, seeds, several models: what is planned, and what is picked."""

from __future__ import annotations

import random
from statistics import fmean, stdev

import pytest
from evaluate_stand_in import make_data

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.differences import seeds_text
from s3prl_ekd.evaluate.grid import finished_runs, searches
from s3prl_ekd.evaluate.models import Upstream
from s3prl_ekd.evaluate.plan import make_plan
from s3prl_ekd.evaluate.presets import preset, preset_names
from s3prl_ekd.evaluate.rates import check_rates, choose_rates
from s3prl_ekd.evaluate.results import merge_folds, merge_grids, merge_seeds, standard_error
from s3prl_ekd.evaluate.tasks import TASKS, parse_tasks
from s3prl_ekd.task_names import PAPER_TASKS

FBANK = Upstream("fbank", "fbank")


def plan(data, tmp_path, tasks="pr,sid,er,asr", **more):
    return make_plan(parse_tasks(tasks), data, tmp_path / "out", FBANK, more.pop("overrides", {}), **more)


# ------------------------------------------------------------------------------------------------------------ planning


def test_one_run_a_rate_fold_and_seed_each_in_its_own_folder(data, tmp_path):
    rates, seeds = {"pr": [0.1, 0.01], "er": [1e-3, 1e-4, 1e-5]}, [3, 1]
    runs = plan(data, tmp_path, rates=rates, seeds=seeds)
    counts = {name: sum(run.task.name == name for run in runs) for name in PAPER_TASKS}
    assert counts == {"pr": 2 * 2, "sid": 2, "er": 3 * 2 * 2, "asr": 2}
    assert len({run.key for run in runs}) == len({run.expdir for run in runs}) == len(runs)
    for run in runs:
        words = run.train_command()
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
    grid = preset(name).grid
    assert set(grid) <= set(TASKS)
    for task, rates in grid.items():
        assert check_rates(rates, f"{name}.{task}") == rates
    assert bool(grid) == (name in ("superb_grid", "hidden"))


def test_the_hidden_sets_settings(tmp_path):
    """design.md section 3: rates and steps, PR at 32 utterances a step, features normalised."""
    from importlib import resources

    folder = tmp_path / "real"
    make_data(folder)
    for name in PAPER_TASKS:
        text = (resources.files("s3prl_ekd.downstream_configs") / f"{name}.yaml").read_text()
        (folder / f"{name}.yaml").write_text(text)
    chosen = preset("hidden")
    assert chosen.normalize
    runs = plan(folder, tmp_path, overrides=chosen.tasks, rates=chosen.grid, folds=["fold1"])
    steps = {run.task.name: run.effective_config()["runner"]["total_steps"] for run in runs}
    assert steps == {"pr": 1000, "sid": 5000, "er": 2500, "asr": 10_000}
    rates = {name: {run.rate for run in runs if run.task.name == name} for name in PAPER_TASKS}
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
        **dict.fromkeys(TASKS, [0.5, 0.1]), "asr": [1e-4]
    }  # fmt: skip
    by_hand = none | {"pr": {"config.optimizer.lr": "0.3"}}
    assert choose_rates(by_preset, [], by_hand) == {"sid": [1.0]}
    with pytest.raises(EkdError, match="--lr and --override both set the learning rate of pr"):
        choose_rates({}, ["pr:0.1"], by_hand)


# ------------------------------------------------------------------------------------------------------------- picking


@pytest.mark.parametrize("seed", range(20))
def test_the_picked_rate_is_the_best_on_dev(data, tmp_path, seed):
    source = random.Random(seed)
    task = TASKS[source.choice(PAPER_TASKS)]
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
    tested = {run.key: {"dev": None, "wer": 50.0} for run in (*search.runs, *alone.runs)}
    assert finished_runs(alone.runs, tested) == list(alone.runs) and finished_runs(search.runs, tested) == []
    tested |= {search.runs[0].key: {"dev": 60.0, "wer": 50.0}}
    assert finished_runs(search.runs, tested) == list(search.runs)
    assert finished_runs(search.runs, {search.runs[0].key: tested[search.runs[0].key]}) == []  # a rate to be tried


def test_standard_error_over_seeds():
    values = [3.0, 4.0, 8.0]
    assert standard_error(values) == pytest.approx(stdev(values) / 3**0.5)


def test_seeds_are_listed_by_their_numbers():
    several = {"seeds": {seed: {} for seed in ("10", "1", "2")}}
    assert seeds_text({"tasks": {"pr": several, "sid": several}}) == "1, 2, 10"
    assert seeds_text({"tasks": {"pr": several, "sid": {"seed": 3}}}) == "pr 1, 2, 10 / sid 3"
    assert seeds_text({"tasks": {"pr": {}}}) is None  # a record that does not know its seed


def test_seeds_are_merged_into_means_of_the_runners_and_of_our_scores():
    def part(wer, cer, dev, lr, agrees):
        ours = {"wer": wer + 1, "cer": cer, "agrees": agrees}
        return {"wer": wer, "rescored": ours, "dev": dev, "lr": lr, "seconds": 1.5, "steps": 8, "n_utterances": 5} | {
            "commands": [f"seed of {wer}"]
        }

    parts = {"1": part(20.0, 4.0, 30.0, 0.1, True), "2": part(40.0, 10.0, None, 0.01, False)}
    merged = merge_seeds(TASKS["asr"], parts)
    assert (merged["wer"], merged["dev"], merged["lr"], merged["seconds"], merged["seeds"]) == (30, 30, None, 3, parts)
    assert merged["rescored"] == {"wer": 31.0, "cer": 7.0, "agrees": False}
    assert merged["standard_error"] == {"wer": pytest.approx(10.0), "cer": pytest.approx(3.0)}
    assert (merged["steps"], merged["n_utterances"]) == (8, 5)
    assert merged["commands"] == ["seed of 20.0", "seed of 40.0"]
    assert merge_seeds(TASKS["asr"], {"1": parts["1"], "2": parts["1"]})["lr"] == 0.1


def test_folds_are_merged_into_one_record():
    def part(score, dev):
        rescored = {"acc": score + 0.5, "majority": 2 * score, "agrees": score < 50}
        given = {"seconds": 1.06, "steps": 9, "lr": 0.1, "n_utterances": 3, "commands": [f"train {score}"]}
        return {"acc": score, "rescored": rescored, "dev": dev, **given}

    parts = {"fold1": part(20.0, 60.0), "fold2": part(40.0, 70.0), "fold3": part(30.0, None)}
    merged = merge_folds(TASKS["er"], parts)
    assert merged == {
        "acc": 30.0, "rescored": {"acc": 30.5, "majority": 60.0, "agrees": True}, "dev": 65.0, "seconds": 3.2,
        "steps": 9, "lr": 0.1, "n_utterances": 9, "folds": parts,
        "commands": ["train 20.0", "train 40.0", "train 30.0"],
    }  # fmt: skip
    parts["fold4"] = part(70.0, None)
    assert not merge_folds(TASKS["er"], parts)["rescored"]["agrees"]
    assert merge_folds(TASKS["er"], {"fold1": part(20.0, None)})["dev"] is None


def test_rates_of_an_earlier_call_stay_in_the_grid():
    def tried(seconds, picked, **devs):
        entries = [{"lr": lr, "dev": dev, "picked": lr == picked} for lr, dev in devs.items()]
        return {"lr": picked, "dev": devs[picked], "seconds": seconds} | ({"grid": entries} if len(devs) > 1 else {})

    for seconds in (5.0, 50.0):
        merged = merge_grids(tried(20.0, "a", a=30.0, b=40.0), tried(seconds, "c", a=30.0, c=20.0))
        assert merged == tried(max(seconds, 20.0), "c", b=40.0, a=30.0, c=20.0)
    alone, wider = tried(1.0, "a", a=30.0), tried(5.0, "a", a=30.0, b=40.0)
    assert merge_grids(alone, wider) == wider
    assert merge_grids(wider, tried(5.0, "c", b=40.0, c=20.0)) is None  # the earlier pick was not compared
    assert merge_grids(alone, tried(5.0, "a", a=31.0, b=40.0)) is None  # not the same runs
