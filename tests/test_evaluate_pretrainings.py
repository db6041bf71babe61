"""Rows ``NAME@SUFFIX`` of a table: the mean over several pretrainings of one recipe, in every form of the table."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from evaluate_stand_in import evaluate, set_dev, up
from score_records import score_of_task, score_record

from s3prl_ekd.cli import main
from s3prl_ekd.console import Console
from s3prl_ekd.evaluate.pretrainings import means, recipe, with_means
from s3prl_ekd.evaluate.results import merge_seeds
from s3prl_ekd.evaluate.scores_file import read_models
from s3prl_ekd.evaluate.table import score_markdown, score_table
from s3prl_ekd.evaluate.tasks import TASKS
from s3prl_ekd.report.scores import scores


def of_seeds(*values: float) -> dict:
    parts = {str(seed): score_of_task("pr", value, seed=seed) for seed, value in enumerate(values)}
    return merge_seeds(TASKS["pr"], parts)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("ekd@1", "ekd"), ("my ekd@seed 2", "my ekd"), ("a@b@3", "a@b"), ("ekd", None), ("@1", None), ("ekd@", None),
        ("me/student@0a1b2c", None),  # a commit of the Hugging Face Hub
        ("ekd@1 (b)", None), ("ekd (new)@1", "ekd (new)"),  # the first: of two rows ekd@1 that of a folder
    ],
)  # fmt: skip
def test_what_recipe_a_label_names(label, name):
    assert recipe(label) == name


def test_a_pretraining_counts_once_by_its_mean_over_seeds():
    draw = np.random.default_rng(0)
    values = [draw.uniform(0, 100, size) for size in (3, 1, 5)]
    tasks = [of_seeds(*one) if len(one) > 1 else score_of_task("pr", float(one[0])) for one in values]
    records = [score_record(f"ekd@{number}", {"pr": task}) for number, task in enumerate(tasks)]
    [mean] = means([*records, score_record("other")])
    each = np.array([one.mean() for one in values])
    pr = mean["tasks"]["pr"]
    assert pr["per"] == pr["rescored"]["per"] == pytest.approx(each.mean())
    assert pr["standard_error"] == {"per": pytest.approx(each.std(ddof=1) / np.sqrt(3))}
    assert (mean["label"], mean["models"]) == ("ekd (mean of 3)", ["ekd@0", "ekd@1", "ekd@2"])


def test_rows_of_another_kind_are_not_mixed():
    def row(label, per, **changes):
        return score_record(label, {"pr": score_of_task("pr", per)}) | changes

    records = [
        row("ekd@1", 10.0), row("ekd@2", 20.0), row("ekd@3", 90.0, preset="superb"), row("ekd@4", 90.0, data="other"),
        row("ekd@1 layer 2", 30.0, layer=2), row("ekd@2 layer 2", 50.0, layer=2), row("ekd@1", 1.0, feature="x"),
    ]  # fmt: skip
    found = {mean["label"]: (mean["models"], mean["tasks"]["pr"]["per"]) for mean in means(records)}
    assert found == {
        "ekd (mean of 2)": (["ekd@1", "ekd@2"], 15.0),
        "ekd, layer 2 (mean of 2)": (["ekd@1 layer 2", "ekd@2 layer 2"], 40.0),
    }


def test_a_task_that_was_evaluated_in_other_ways_has_no_mean():
    """As the sentence below the table says of those rows: they cannot be compared."""

    def row(number, **changes):
        return score_record(
            f"ekd@{number}", {"pr": score_of_task("pr", 10.0), "sid": score_of_task("sid", 50.0, **changes)}
        )

    steps = {"config.runner.total_steps": "4"}
    for one, other in (({"overrides": {}}, {"overrides": steps}), ({"data_sha256": "a"}, {"data_sha256": "b"})):
        [mean] = means([row(1, **one), row(2, **other)])
        assert list(mean["tasks"]) == ["pr"]
        assert list(means([row(1, **one), row(2, **one)])[0]["tasks"]) == ["pr", "sid"]
    assert means([score_record("ekd@1"), score_record("ekd@2", {"sid": score_of_task("sid")})]) != []
    alone = [score_record(f"ekd@{one}", {"pr": score_of_task("pr", data_sha256=one)}) for one in "ab"]
    assert means(alone) == [] and with_means(alone) == alone


def test_cers_have_a_mean_too():
    asr = [score_of_task("asr", 30.0, rescored={"wer": 30.0, "cer": cer, "agrees": True}) for cer in (10.0, 20.0)]
    [mean] = means([score_record(f"ekd@{number}", {"asr": one}) for number, one in enumerate(asr)])
    assert mean["tasks"]["asr"]["rescored"]["cer"] == 15.0
    assert mean["tasks"]["asr"]["standard_error"] == {"wer": 0.0, "cer": pytest.approx(5.0)}


def test_costs_are_said_where_they_are_the_same():
    for other, cost in (({"params": 1, "macs": 2}, {"params": 1, "macs": 2}), ({"params": 1, "macs": 3}, None)):
        rows = [score_record("ekd@1", cost={"params": 1, "macs": 2}), score_record("ekd@2", cost=other)]
        assert means(rows)[0]["cost"] == cost


def test_one_of_a_name_has_no_mean():
    rows = [score_record("ekd@1"), score_record("ekd"), score_record("other@1"), score_record("x/ekd@2")]
    assert means(rows) == [] and with_means(rows) == rows
    assert "mean of" not in score_markdown(rows)


def test_every_form_of_the_table_has_the_mean_below_its_rows(capsys, monkeypatch):
    """A task that one of three lacks is a mean of two, and says so; no mean is marked as the best."""
    monkeypatch.setenv("COLUMNS", "200")
    rows = [
        score_record("a@1", {"pr": score_of_task("pr", 10.0), "sid": score_of_task("sid", 60.0)}),
        score_record("b@x", {"pr": score_of_task("pr", 90.0)}),
        score_record("a@2", {"pr": score_of_task("pr", 20.0)}),
        score_record("a@3", {"pr": score_of_task("pr", 30.0), "sid": score_of_task("sid", 62.0)}),
        score_record("b@y", {"pr": score_of_task("pr", 90.0), "sid": score_of_task("sid", 10.0)}),
    ]
    found = re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \|$", score_markdown(rows), re.MULTILINE)[1:]
    assert [row[0] for row in found] == ["a@1", "b@x", "a@2", "a@3", "a (mean of 3)", "b@y", "b (mean of 2)"]
    assert found[4] == ("a (mean of 3)", "20.00 ± 5.77", "61.00 ± 1.00 (n = 2)")
    assert found[6] == ("b (mean of 2)", "90.00 ± 0.00", "10.00 (n = 1)")
    assert found[0][1:] == ("**10.00**", "60.00") and found[3][2] == "**62.00**"
    Console(no_color=True).print_table(score_table(rows))
    printed = capsys.readouterr().out
    assert "a (mean of 3)" in printed and "± 5.77" in printed and "± 1.00 (n = 2)" in printed
    assert "NAME (mean of N): the mean of the rows NAME@..." in " ".join(printed.split())
    page = scores(rows)
    assert re.search(r"a \(mean of 3\)<small>a@1, a@2, a@3</small>.*20\.00<small>± 5\.77</small>", page)
    assert "10.00<small>(n = 1)</small>" in page


def test_models_of_later_calls_join_the_mean(data, tmp_path, stand_in, capfd):
    """And of a row that is gone the mean is no more."""
    out = tmp_path / "out"
    set_dev(tmp_path)
    assert evaluate(data, tmp_path, "--seeds", "1,2", upstream=up("ekd@1=fbank")) == 0
    assert "means" not in json.loads((out / "scores.json").read_text())
    assert evaluate(data, tmp_path, "--seeds", "1,2", upstream=up("ekd@2=mfcc", "other=mel"), tasks="sid,pr") == 0
    [mean] = json.loads((out / "scores.json").read_text())["means"]
    assert mean["models"] == ["ekd@1", "ekd@2"]
    assert {name: task["pretrainings"] for name, task in mean["tasks"].items()} == {"pr": 1, "sid": 2}
    assert "ekd (mean of 2)" in " ".join(capfd.readouterr().out.split())
    assert "| ekd (mean of 2) |" in (out / "scores.md").read_text()
    assert [record["label"] for _, record in read_models(out)] == ["ekd@1", "ekd@2", "other"]

    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    assert "ekd (mean of 2)" in (tmp_path / "page.html").read_text()
    assert main(["compare", str(out), "--tasks", "sid"]) == 0
    (out / "ekd-1" / "scores.json").unlink()
    assert evaluate(data, tmp_path, "--seeds", "1,2", upstream=up("other=mel")) == 0
    assert "means" not in json.loads((out / "scores.json").read_text())
