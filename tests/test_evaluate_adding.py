"""What several calls on one ``--out`` add up to: rows, seeds, rates and folds; with a stand-in for the native runner.

What is refused because it would replace a rate or a table is in test_evaluate_refusals.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from evaluate_stand_in import calls, evaluate, files, set_dev, up
from export_student import write_student

from s3prl_ekd.cli import main
from s3prl_ekd.evaluate.marker import read_marker, write_marker
from s3prl_ekd.evaluate.scores_file import read_models, read_scores
from s3prl_ekd.evaluate.table import footnote


@pytest.fixture(autouse=True)
def runner(stand_in):
    """All calls are of the stand-in."""


def rows(out: Path) -> dict[str, list[str]]:
    return {record["label"]: list(record["tasks"]) for _, record in read_models(out)}


# ---------------------------------------------------------------------------------------------------------------- rows


def test_rows_of_earlier_calls_stay_in_the_table(data, tmp_path, capfd):
    out = tmp_path / "out"
    assert evaluate(data, tmp_path, upstream=up("a=fbank", "b=mfcc")) == 0
    before = files(out / "a") | files(out / "b")
    capfd.readouterr()
    assert evaluate(data, tmp_path, upstream=up("c=spectrogram")) == 0
    printed = capfd.readouterr().out
    assert rows(out) == {"a": ["sid"], "b": ["sid"], "c": ["sid"]}
    assert files(out / "a") | files(out / "b") == before
    for label in "abc":
        assert f"\n {label} " in printed and f"\n| {label} |" in (out / "scores.md").read_text()

    assert evaluate(data, tmp_path, upstream=up("b=mfcc"), tasks="pr") == 0  # one of them again
    assert rows(out) == {"a": ["sid"], "b": ["pr", "sid"], "c": ["sid"]}
    assert evaluate(data, tmp_path, upstream=up("mfcc", "fbank"), tasks="pr,sid") == 0  # known under their labels
    assert rows(out) == {"a": ["pr", "sid"], "b": ["pr", "sid"], "c": ["sid"]}
    assert calls(out / "a") == calls(out / "b") == ["pr", "sid"]

    # what a row's own folder has is what the table says
    alone = ["--data", str(data), "--out", str(out / "c"), "--device", "cpu", "--tasks", "pr"]
    assert main(["evaluate", "--upstream", "spectrogram", *alone]) == 0
    assert evaluate(data, tmp_path, upstream=up("a=fbank")) == 0
    assert rows(out)["c"] == ["pr", "sid"]


def test_a_table_may_begin_with_one_labelled_model(data, tmp_path):
    assert evaluate(data, tmp_path, upstream=up("a=fbank")) == 0
    assert (tmp_path / "out" / "a" / "scores.json").is_file() and rows(tmp_path / "out") == {"a": ["sid"]}
    assert evaluate(data, tmp_path, "--label", "b", upstream=up("mfcc")) == 0
    assert rows(tmp_path / "out") == {"a": ["sid"], "b": ["sid"]}


def test_a_row_goes_when_its_folder_does(data, tmp_path, caplog):
    out = tmp_path / "out"
    assert evaluate(data, tmp_path, upstream=up("a=fbank", "b=mfcc")) == 0
    shutil.rmtree(out / "b")
    assert evaluate(data, tmp_path, upstream=up("a=fbank")) == 0
    assert rows(out) == {"a": ["sid"]}
    assert f"b is left out: {out / 'b' / 'scores.json'} is gone" in caplog.text


def test_a_row_that_fails_leaves_the_table_as_it_was(data, tmp_path):
    out = tmp_path / "out"
    assert evaluate(data, tmp_path, upstream=up("a=fbank")) == 0
    before = (out / "scores.json").read_bytes()
    (out / "b" / "runs").mkdir(parents=True)
    (out / "b" / "runs" / "broken").touch()
    assert evaluate(data, tmp_path, upstream=up("b=mfcc")) == 2
    assert (out / "scores.json").read_bytes() == before


def test_another_model_under_a_rows_label_is_refused(data, tmp_path, capfd):
    out = tmp_path / "out"
    assert evaluate(data, tmp_path, upstream=up("a=fbank", "b=mfcc")) == 0
    before = files(out)
    capfd.readouterr()
    assert evaluate(data, tmp_path, upstream=up("b=spectrogram", "c=fbank")) == 2
    told = " ".join(capfd.readouterr().err.split())
    assert f"--out {out / 'b'}: holds the scores of another model as b (mfcc, now spectrogram); give this one a" in told
    assert files(out) == before
    assert evaluate(data, tmp_path, "--overwrite", upstream=up("b=spectrogram")) == 0
    assert {one["label"]: one["upstream"] for _, one in read_models(out)} == {"a": "fbank", "b": "spectrogram"}


@pytest.mark.parametrize("table", [True, False], ids=["table", "one model"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--preset", "tiny"), "--preset superb (a), now tiny"),
        (("--upstream-feature-normalize",), "--upstream-feature-normalize off (a), now on"),
        (("--cache-states", "STATES"), "--cache-states off (a), now on"),
        (("--override", "sid:config.runner.total_steps=4"), "sid:config.runner.total_steps not set, now 4 (a)"),
        (("--data", "OTHER"), "DATA (a), now "),
    ],
    ids=lambda one: one[0] if isinstance(one, tuple) else "",
)
def test_other_settings_are_refused_before_anything_runs(data, tmp_path, monkeypatch, capfd, table, words, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data, "OTHER")
    label = ("--upstream", "a=fbank") if table else ("--upstream", "fbank", "--label", "a")
    assert evaluate(data, tmp_path, upstream=label) == 0
    before = files(tmp_path / "out")
    more = ("--upstream", "b=mfcc") if table else ("--upstream", "fbank", "--seeds", "5")
    capfd.readouterr()
    assert evaluate(data, tmp_path, *words, upstream=more) == 2
    told = " ".join(capfd.readouterr().err.split())
    assert message in told and "scores side by side need the same: choose another --out, or --overwrite" in told
    assert files(tmp_path / "out") == before
    assert evaluate(data, tmp_path, *words, "--overwrite", upstream=more) == 0
    assert len(read_models(tmp_path / "out")) == (2 if table else 1)
    if table:  # a mixed table takes rows of either kind, and says what they are
        assert evaluate(data, tmp_path, upstream=up("c=spectrogram")) == 0
        assert evaluate(data, tmp_path, *words, upstream=up("d=mel")) == 0
        assert "(a, c);" in (tmp_path / "out" / "scores.md").read_text()


def test_data_that_have_changed_under_the_rows_are_refused(data, tmp_path, capfd):
    assert evaluate(data, tmp_path, upstream=up("a=fbank")) == 0
    (data / "split.txt").write_text((data / "split.txt").read_text() + "2 id10001/b/1.wav\n")
    capfd.readouterr()
    assert evaluate(data, tmp_path, upstream=up("b=mfcc")) == 2
    told = " ".join(capfd.readouterr().err.split())
    assert f"a, sid was tested there before {data / 'split.txt'} changed" in told


def test_a_checkpoint_that_has_changed_is_refused(data, tmp_path, capfd):
    """Trained on under its name, so that other seeds would be those of another model."""
    student = write_student(tmp_path / "states-1.ckpt")
    for row in (("--ckpt", str(student)), ("--ckpt", f"b={student}")):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert evaluate(data, tmp_path, upstream=row) == 0
        write_student(student, seed=len(row[1]))
        capfd.readouterr()
        assert evaluate(data, tmp_path, "--seeds", "5", upstream=row) == 2
        assert f"whose {student} has changed since; choose another --out" in capfd.readouterr().err


def test_a_row_under_a_second_label_is_said(data, tmp_path, caplog):
    assert evaluate(data, tmp_path, upstream=up("a=fbank")) == 0
    assert evaluate(data, tmp_path, upstream=up("b=fbank")) == 0
    assert "b: the same model as the row a; evaluated again" in caplog.text
    assert caplog.text.count("evaluated again") == 1


# ----------------------------------------------------------------------------------------------------- seeds and labels


def test_seeds_of_several_calls_are_one_mean(data, tmp_path):
    out = tmp_path / "out"
    assert evaluate(data, tmp_path, "--seed", "1", tasks="pr,sid") == 0
    assert evaluate(data, tmp_path, "--seed", "2") == 0
    assert calls(out) == ["pr", "sid", "sid-seed2"]
    assert evaluate(data, tmp_path, "--seeds", "3,4") == 0
    assert evaluate(data, tmp_path, "--seed", "2") == 0  # known: nothing changes
    record = read_scores(out)
    assert list(record["tasks"]["sid"]["seeds"]) == ["1", "2", "3", "4"] == [str(seed) for seed in record["seeds"]]
    assert record["tasks"]["pr"]["seed"] == record["seed"] == 1 and "seeds" not in record["tasks"]["pr"]
    assert record["tasks"]["sid"]["standard_error"] == {"acc": 0.0}
    assert calls(out) == ["pr", "sid", "sid-seed2", "sid-seed3", "sid-seed4"]
    text = (out / "scores.md").read_text()
    assert "standard error of the mean over 4 seeds" in text and "50.00 ± 0.00" in text


def test_seeds_are_not_averaged_over_other_training(data, tmp_path, capfd):
    """Neither where that has its runs still, nor where they were cleared away."""
    assert evaluate(data, tmp_path, "--seed", "1", "--override", "config.runner.total_steps=4") == 0
    words = ("--seed", "2", "--override", "config.runner.total_steps=6,,config.runner.log_step=1")
    for _ in range(2):
        assert evaluate(data, tmp_path, *words) == 2
        assert "sid:config.runner.total_steps 4, now 6 (fbank)" in " ".join(capfd.readouterr().err.split())
        shutil.rmtree(tmp_path / "out" / "runs", ignore_errors=True)
    assert evaluate(data, tmp_path, "--seed", "2", "--override", "config.runner.total_steps=4") == 0
    assert read_scores(tmp_path / "out")["seeds"] == [1, 2]
    assert evaluate(data, tmp_path, *words, "--overwrite") == 0
    assert read_scores(tmp_path / "out")["seeds"] == [2]


def test_a_grid_stays_when_its_pick_is_called_alone_or_with_others(data, tmp_path):
    set_dev(tmp_path, (["voxceleb1", "0.1", None, None, None], 0.9))
    assert evaluate(data, tmp_path, "--lr", "0.1,0.01") == 0
    before = read_scores(tmp_path / "out")["tasks"]["sid"]
    assert evaluate(data, tmp_path, "--lr", "0.1") == 0
    assert read_scores(tmp_path / "out")["tasks"]["sid"]["grid"] == before["grid"][::-1]
    assert evaluate(data, tmp_path, "--lr", "0.1,0.5") == 0
    sid = read_scores(tmp_path / "out")["tasks"]["sid"]
    assert [(one["lr"], one["picked"]) for one in sid["grid"]] == [(0.01, False), (0.1, True), (0.5, False)]
    assert calls(tmp_path / "out", "tests.txt") == ["sid-lr0.1"]


def test_the_time_of_every_rate_counts_whichever_call_tried_it(data, tmp_path):
    set_dev(tmp_path, (["voxceleb1", "0.1", None, None, None], 0.9))
    for rates in ("0.1,0.01", "0.1,0.5"):
        assert evaluate(data, tmp_path, "--lr", rates) == 0
        for rate in rates.split(","):
            folder = tmp_path / "out" / "runs" / f"sid-lr{rate}"
            marker = read_marker(folder)
            marker.seconds = 100.0
            if marker.result:
                marker.result["seconds"] = 100.0
            write_marker(folder, marker)
        assert evaluate(data, tmp_path, "--lr", rates) == 0
    assert read_scores(tmp_path / "out")["tasks"]["sid"]["seconds"] == 300.0


def test_a_tested_rate_is_not_replaced_when_its_runs_are_gone(data, tmp_path, capfd):
    assert evaluate(data, tmp_path, "--lr", "0.1") == 0
    shutil.rmtree(tmp_path / "out" / "runs")
    capfd.readouterr()
    assert evaluate(data, tmp_path, "--lr", "0.01") == 2
    assert "sid was tested there at learning rate 0.1, now 0.01" in " ".join(capfd.readouterr().err.split())


def test_folds_are_added_for_all_seeds_alone(data, tmp_path, capfd):
    def call(*words: str) -> int:
        return evaluate(data, tmp_path, *words, tasks="er")

    assert call("--folds", "fold1", "--seeds", "1,2") == 0
    capfd.readouterr()
    for words in (("--folds", "fold2", "--seeds", "1,2"), ("--seeds", "1"), ("--seeds", "3")):
        assert call(*words) == 2
        told = " ".join(capfd.readouterr().err.split())
        assert "er was tested there on fold1 with seed 1, now on" in told or "with seed 2, now on" in told
        assert "give all (--folds fold1,fold2 --seeds 1,2" in told
    assert call("--seeds", "1,2") == 0
    er = read_scores(tmp_path / "out")["tasks"]["er"]
    assert [list(part["folds"]) for part in er["seeds"].values()] == [["fold1", "fold2"]] * 2
    assert call("--folds", "fold1", "--seeds", "1,2") == 2  # and none is taken away
    assert len(calls(tmp_path / "out")) == 4


def test_a_single_models_label_is_a_name_only(data, tmp_path):
    for words, label in (((), "fbank"), (("--label", "mine"), "mine"), ((), "mine")):
        assert evaluate(data, tmp_path, *words) == 0
        assert read_scores(tmp_path / "out")["label"] == label
    assert evaluate(data, tmp_path, upstream=up("theirs=fbank"), tasks="pr") == 0
    record = read_scores(tmp_path / "out")
    assert (record["label"], list(record["tasks"])) == ("theirs", ["pr", "sid"])
    assert calls(tmp_path / "out") == ["pr", "sid"]


def test_another_model_in_one_models_folder_is_refused(data, tmp_path, capfd):
    assert evaluate(data, tmp_path) == 0
    capfd.readouterr()
    for model in (up("mfcc"), up("b=mfcc")):
        assert evaluate(data, tmp_path, "--seeds", "5", upstream=model) == 2
        assert "holds the scores of another model as fbank (fbank, now mfcc)" in capfd.readouterr().err
    assert evaluate(data, tmp_path, "--overwrite", upstream=up("mfcc")) == 0
    assert read_scores(tmp_path / "out")["label"] == "mfcc"


# ------------------------------------------------------------------------------------------------------ below the table


def test_what_rows_do_not_share_is_said_below_them():
    def row(label, preset="small", overrides=None, versions=None, seeds=(1,), tried=(0.1,)):
        part = {"acc": 50.0, "rescored": {"agrees": True}, "lr": 0.1, "overrides": overrides or {"steps": "4"}}
        part |= {"versions": versions or {"s3prl": "0.4.18"}, "grid": [{"lr": rate} for rate in tried]}
        task = part | ({"seeds": {str(seed): part for seed in seeds}} if len(seeds) > 1 else {"seed": seeds[0]})
        return {"label": label, "preset": preset, "tasks": {"sid": task}}

    assert footnote([row("a"), row("b")]) == "Test scores in %."
    for other, sentence in (
        ({"preset": "tiny"}, "Presets: small (a); tiny (b): comparable only if these train alike."),
        ({"overrides": {"steps": "6"}}, "SID, steps: 4 (a); 6 (b): NOT comparable."),
        ({"seeds": (1, 2)}, "Seeds: 1 (a); 1, 2 (b): not the same for all rows."),
        ({"tried": (0.1, 0.01)}, "SID, learning rates tried: 0.1 (a); 0.1, 0.01 (b): not the same for all rows."),
        ({"versions": {"s3prl": "0.4.19"}}, "Made with s3prl 0.4.18 (a); s3prl 0.4.19 (b): comparable only if these"),
    ):
        assert sentence in footnote([row("a"), row("b", **other)])


def test_of_a_large_table_a_sentence_names_the_first_rows():
    def row(number, **more):
        pr = {"per": 50.0, "rescored": {"agrees": False}, "seed": 1}
        return {"label": f"m{number}", "tasks": {"pr": pr}} | more

    few = footnote([row(number, normalize=number == 3) for number in range(70)])
    assert "Upstream features: not normalised (all others); layer-normalised (m3): NOT comparable." in few
    assert few.endswith("m4, pr; m5, pr; and 64 more: the prediction files do not give the runner's number.")
    many = footnote([row(number, normalize=number < 30, data=f"/{number}") for number in range(70)])
    assert "normalised (m0, m1, m2, m3, m4, m5 and 24 more); not normalised (m30, m31, m32, m33, m34, m35" in many
    scattered = footnote(
        [row(number, data=f"/{max(number, 9)}" if number > 2 else f"/{number}") for number in range(70)]
    )
    assert "(m3, m4, m5, m6, m7, m8 and 1 more)" in scattered and "all others" not in scattered
    assert "Data of /0 (m0); /1 (m1); /2 (m2); /3 (m3); /4 (m4); /5 (m5); and 64 more: comparable" in many
