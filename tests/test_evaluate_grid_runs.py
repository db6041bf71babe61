"""Learning-rate grids, seeds and several models: what is run for them, and what the other commands make of it."""

from __future__ import annotations

from concurrent.futures import wait

import pytest
from evaluate_stand_in import calls, evaluate, set_dev

from s3prl_ekd.cli import main
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import schedule
from s3prl_ekd.evaluate.scores_file import read_models, read_scores
from s3prl_ekd.export.public import export_public

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
    er = record["tasks"]["er"]["seeds"]["1"]
    for part in (sid["seeds"]["1"], er):
        assert sum(one.pop("seconds") for one in part["grid"]) == pytest.approx(part["seconds"], abs=0.2)
    assert sid["seeds"]["1"]["grid"] == [
        {"lr": 0.1, "dev": 90.0, "picked": True},
        {"lr": 0.01, "dev": 50.0, "picked": False},
    ]
    assert er["grid"][0] == {"lr": 0.1, "dev": 50.0, "picked": False, "folds": {"fold1": 90.0, "fold2": 10.0}}
    assert set(er["folds"]) == {"fold1", "fold2"}
    assert record["tasks"]["pr"]["seeds"]["1"]["grid"][0]["dev"] is None
    text = (out / "scores.md").read_text()
    assert "| fbank | 0.0 | 0.5 | **" not in text  # a single row has no best
    assert "50.00 ± 0.00" in text
    assert "| fbank | 1 | **90.00** | 50.00 | 50.00 |" in text


def test_trainings_that_end_together_are_tested_once(data, tmp_path, stand_in, monkeypatch):
    """Both rates of a search are done in one look: its pick is tested by one thread, not by two in one folder."""
    from s3prl_ekd.evaluate import side_by_side

    monkeypatch.setattr(side_by_side, "wait", lambda futures, timeout, return_when: wait(futures))
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


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_all_else_is_done_past_a_run_that_fails(data, tmp_path, stand_in, monkeypatch, capsys, jobs):
    """With --keep-going; nothing is picked while a rate is missing, and the call ends in the error."""
    do_train = schedule.do_train

    def train(run, *rest):
        if run.key in ("sid-lr0.1", "er-fold1"):
            raise EkdError("boom")
        return do_train(run, *rest)

    monkeypatch.setattr(schedule, "do_train", train)
    words, tasks, out = ("--lr", "sid:0.1,0.01", "--jobs", jobs), "pr,sid,er,asr", tmp_path / "out"
    assert evaluate(data, tmp_path, *words, "--keep-going", tasks=tasks) == 2
    said = capsys.readouterr()
    assert "error: sid-lr0.1: boom (also failed: er-fold1)" in said.err and said.out.count("failed: boom") == 2
    assert calls(out) == ["asr", "er-fold2", "pr", "sid-lr0.01"]
    assert calls(out, "tests.txt") == ["asr", "er-fold2", "pr"]
    assert list(read_scores(out)["tasks"]) == ["pr", "asr"]
    monkeypatch.setattr(schedule, "do_train", do_train)
    assert evaluate(data, tmp_path, *words, tasks=tasks) == 0
    assert calls(out) == ["asr", "er-fold1", "er-fold2", "pr", "sid-lr0.01", "sid-lr0.1"]
    assert list(read_scores(out)["tasks"]) == ["pr", "sid", "er", "asr"]


def test_a_grid_without_a_dev_score_does_not_stop_the_others(data, tmp_path, stand_in, capsys):
    set_dev(tmp_path, (["voxceleb1", None, None, None, None], float("nan")))
    words = ("--lr", "sid:0.1,0.01", "--keep-going")
    assert evaluate(data, tmp_path, *words, tasks="sid,asr") == 2
    assert "error: sid-lr0." in capsys.readouterr().err
    assert list(read_scores(tmp_path / "out")["tasks"]) == ["asr"]


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
    with pytest.raises(EkdError, match="holds a table of models; expected one of .*my-student, .*fbank, .*mfcc"):
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

    with pytest.raises(EkdError, match="holds a table of models"):
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

    from bridge_corpora import sid_folder
    from console import BIN

    folder = sid_folder(tmp_path)
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
