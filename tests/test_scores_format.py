"""What is no record of scores.json: one line that names file and key, whatever reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from score_records import score_of_task, score_record

from s3prl_ekd.cli import main
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.scores_file import read_models, read_scores, write_scores

GONE = object()


def record() -> dict[str, Any]:
    """All that may stand in one: several seeds, a grid, folds."""
    grid = [{"lr": 0.1, "dev": 50.0, "picked": True}, {"lr": 0.01, "dev": None, "picked": False}]
    pr = score_of_task("pr", grid=grid, overrides={"config.runner.total_steps": "300"})
    tasks = {
        "pr": {**score_of_task("pr"), "standard_error": {"per": 0.0}, "seeds": {"1": pr, "2": {**pr}}},
        "er": score_of_task("er", folds={fold: score_of_task("er") for fold in ("fold1", "fold2")}, chance=40.0),
    }
    return score_record("mine", tasks, cost={"params": 1, "macs": 2})


@pytest.mark.parametrize(
    "key,value,told",
    [
        ("upstream", GONE, "upstream: required key is missing"),
        ("seed", GONE, "seed: required key is missing"),
        ("tasks.pr.n_utterances", GONE, "tasks.pr.n_utterances: required key is missing"),
        ("tasks.pr.seeds.2.lr", GONE, "tasks.pr.seeds.2.lr: required key is missing"),
        ("tasks.pr.seeds.2.lr", None, None),  # of a configuration that names none
        ("tasks.er.folds.fold2.steps", None, "tasks.er.folds.fold2.steps: input should be a valid integer, found None"),
        ("versions", "2.11", "versions: input should be a valid dictionary, found '2.11'"),
        ("cost.macs", GONE, "cost.macs: required key is missing"),
        ("tasks", [], "tasks: input should be a valid dictionary, found []"),
        ("tasks.pr", 50.0, "tasks.pr: input should be a valid dictionary, found 50.0"),
        ("tasks.pr.per", GONE, "tasks.pr.per: expected a number"),
        ("tasks.pr.seeds", {"one": {}}, "tasks.pr.seeds.one.rescored: required key is missing"),
        ("tasks.pr.seeds.1.layer_weights", [0.5, 0.5], None),
        (
            "tasks.er.folds.fold2.layer_weights",
            [0.5, "x"],
            "tasks.er.folds.fold2.layer_weights[1]: input should be a valid number, found 'x'",
        ),
        ("tasks.pr.seeds", {}, "tasks.pr.seeds: expected whole numbers, found none"),
        ("tasks.pr.seeds.2.per", "low", "tasks.pr.seeds.2.per: input should be a valid number, found 'low'"),
        ("tasks.pr.seeds.2.per", None, "tasks.pr.seeds.2.per: expected a number"),
        ("tasks.pr.seeds.1.grid", [], "tasks.pr.seeds.1: grid: expected one or more"),
        ("tasks.pr.seeds.1.grid.0.picked", False, "tasks.pr.seeds.1: grid: expected a rate that was picked"),
        ("tasks.pr.seeds.1.grid.1.lr", GONE, "tasks.pr.seeds.1.grid[1].lr: required key is missing"),
        ("tasks.er.folds", None, "tasks.er.folds: input should be a valid dictionary, found None"),
        ("tasks.er.folds", {}, "tasks.er: folds: expected one or more"),
        ("tasks.er.folds", GONE, None),  # then it is a single run
        ("tasks.er.folds.fold2.acc", GONE, "tasks.er.folds.fold2.acc: expected a number"),
        ("tasks.er.folds.fold2.folder", 3, "tasks.er.folds.fold2.folder: input should be a valid string, found 3"),
    ],
)
def test_a_record_of_another_kind_is_refused_by_its_key(
    key: str, value: Any, told: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = record()
    *parents, last = key.split(".")
    where: Any = values
    for part in parents:
        where = where[int(part) if isinstance(where, list) else part]
    if value is GONE:
        del where[last]
    else:
        where[last] = value
    file = write_scores(values, tmp_path)
    if told is None:
        assert read_scores(file)
        return
    for words in (["report", str(tmp_path), "--out", str(tmp_path / "report.html")], ["compare", str(tmp_path)]):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith(f"error: {file}: not a scores.json of s3prl-ekd evaluate: {told}")
    table = write_scores({"models": [record(), values]}, tmp_path / "table")
    with pytest.raises(EkdError) as error:
        read_models(table)
    assert f"{table}: not a scores.json of s3prl-ekd evaluate: models[1].{told}" in str(error.value)


@pytest.mark.parametrize("text", ["", "3", "[]", '{"label": "x"}', '{"models": [3]}', '{"models": [{}]}'])
def test_what_is_no_record_at_all(text: str, tmp_path: Path) -> None:
    with pytest.raises(EkdError, match=r"scores.json: not there; s3prl-ekd evaluate writes it"):  # it is at work still
        read_models(tmp_path)
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(EkdError, match="scores.json: not a scores.json of s3prl-ekd evaluate: "):
        read_models(tmp_path)


def test_a_record_may_hold_more(tmp_path: Path) -> None:
    values = {**record(), "note": "of a later version"}
    values["tasks"]["asv"] = {**score_of_task("sid"), "eer": 5.0}
    file = write_scores(values, tmp_path)
    assert json.loads(file.read_text()) == values
    assert read_scores(file)["note"] == "of a later version"
