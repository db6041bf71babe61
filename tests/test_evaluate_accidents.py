"""What happens by accident over a week of calls on one ``--out``: kills, races, names, things cleared away or changed.

Nothing measured is lost unasked, no rate is picked on test, and no unlike numbers are averaged. With a stand-in for the
native runner.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from evaluate_stand_in import calls, evaluate, set_dev, up
from export_student import write_student

from s3prl_ekd.cli import main
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import command, records, schedule
from s3prl_ekd.evaluate.scores_file import read_models, read_scores, write_scores


class Killed(BaseException):
    """Ends the command where it is raised, as SIGKILL does: nothing of the command catches it."""


@pytest.fixture(autouse=True)
def runner(stand_in):
    """All calls are of the stand-in."""


def rows(out: Path) -> dict[str, tuple[str, list[str]]]:
    """Folder -> label and tasks."""
    return {folder.name: (record["label"], list(record["tasks"])) for folder, record in read_models(out)}


def refused(capfd: pytest.CaptureFixture[str], status: int) -> str:
    """The one line of a refusal."""
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert status == 2
    return line


# ------------------------------------------------------------------------------------------------ kills and two at once


def test_a_row_is_in_the_table_though_its_call_was_killed_before_that_was_written(data, tmp_path, monkeypatch):
    def write(record: dict[str, Any], out: Path) -> Path:
        if "models" in record:
            raise Killed
        return write_scores(record, out)

    out = tmp_path / "out"
    monkeypatch.setattr(records, "write_scores", write)
    with pytest.raises(Killed):
        evaluate(data, tmp_path, upstream=up("a=fbank"))
    monkeypatch.setattr(records, "write_scores", write_scores)
    (out / "plots").mkdir()
    (out / "plots" / "scores.json").write_text("[]")  # somebody else's
    assert evaluate(data, tmp_path, upstream=up("b=mfcc")) == 0
    assert rows(out) == {"a": ("a", ["sid"]), "b": ("b", ["sid"])}


@pytest.mark.parametrize(("first", "then"), [("OUT", "OUT"), ("OUT", "OUT/a"), ("OUT/a", "OUT")])
def test_a_call_beside_another_is_refused_in_a_rows_folder_too(data, tmp_path, monkeypatch, capfd, first, then):
    places = {"OUT": (tmp_path / "out", "a=fbank"), "OUT/a": (tmp_path / "out" / "a", "fbank")}
    run_all = command.run_all

    def call(place: str) -> int:
        out, model = places[place]
        words = ["--data", str(data), "--out", str(out), "--device", "cpu", "--tasks", "sid"]
        return main(["evaluate", "--upstream", model, *words])

    def while_running(*given: Any) -> Any:
        monkeypatch.setattr(command, "run_all", run_all)
        assert "another s3prl-ekd evaluate or robustness is at work there" in refused(capfd, call(then))
        return run_all(*given)

    monkeypatch.setattr(command, "run_all", while_running)
    assert call(first) == 0


def test_what_a_call_finished_while_another_was_planned_counts(data, tmp_path, monkeypatch, capfd):
    """The second had looked before there was anything, and would replace a tested rate by another one."""

    def another(*_: Any) -> None:
        monkeypatch.setattr(command, "upstream_cost", lambda *_: None)
        assert evaluate(data, tmp_path, "--lr", "0.1") == 0

    monkeypatch.setattr(command, "upstream_cost", another)
    assert "at learning rate 0.1, now 0.01" in refused(capfd, evaluate(data, tmp_path, "--lr", "0.01"))
    assert read_scores(tmp_path / "out")["tasks"]["sid"]["lr"] == 0.1
    assert calls(tmp_path / "out") == ["sid-lr0.1"]


# ---------------------------------------------------------------------------------------------------------------- names


def test_a_row_that_was_renamed_in_its_folder_stays_one(data, tmp_path):
    out = tmp_path / "out"
    assert evaluate(data, tmp_path, upstream=up("a=fbank")) == 0
    alone = ["--data", str(data), "--out", str(out / "a"), "--device", "cpu", "--tasks", "sid"]
    assert main(["evaluate", "--upstream", "fbank", "--label", "x", *alone]) == 0
    assert evaluate(data, tmp_path, upstream=up("b=mfcc")) == 0
    for model in ("fbank", "x=fbank"):  # by the model, by the label
        assert evaluate(data, tmp_path, upstream=up(model), tasks="pr") == 0
        assert rows(out) == {"a": ("x", ["pr", "sid"]), "b": ("b", ["sid"])}
    assert calls(out / "a") == ["pr", "sid"]


def test_a_checkpoint_that_was_moved_is_said_to_be_the_same(data, tmp_path, capfd):
    student = write_student(tmp_path / "here" / "states-1.ckpt")
    assert evaluate(data, tmp_path, upstream=("--ckpt", str(student))) == 0
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tmp_path / "there" / student.name
    told = refused(capfd, evaluate(data, tmp_path, "--seed", "2", upstream=("--ckpt", str(moved))))
    assert f"whose weights were then {student}, now {moved}; move them back" in told


# ---------------------------------------------------------------------------------- things cleared away, things changed


def test_a_score_whose_run_is_gone_is_not_measured_again_unasked(data, tmp_path, capfd, caplog):
    """On a GPU it would be another one."""
    out = tmp_path / "out"
    set_dev(tmp_path, (["voxceleb1", "0.1", None, None, None], 0.9))
    assert evaluate(data, tmp_path, "--lr", "0.1,0.01", "--seed", "1") == 0
    before = (out / "scores.json").read_bytes()
    shutil.rmtree(out / "runs")
    told = refused(capfd, evaluate(data, tmp_path, "--lr", "0.1", "--seeds", "1,2"))
    assert f"sid was tested there with seed 1 in {out / 'runs' / 'sid-lr0.1'}, which is gone" in told
    assert (out / "scores.json").read_bytes() == before
    assert evaluate(data, tmp_path, "--lr", "0.1", "--seed", "2") == 0
    assert read_scores(out)["seeds"] == [1, 2]

    # seed 2 has the folder that seed 1's score names: that is no run of seed 1
    assert calls(out) == ["sid-lr0.1"]
    assert main(["export", "public", "--runs", str(out), "--out", str(tmp_path / "p.zip"), "--seed", "1"]) == 2
    assert "sid-lr0.1: is not the run of seed 1" in capfd.readouterr().err
    told = refused(capfd, evaluate(data, tmp_path, "--lr", "0.1", "--seed", "1"))
    assert "which is gone or another run's; leave it out of this call" in told

    set_dev(tmp_path, (["voxceleb1", "0.1", None, None, None], 0.8))
    assert evaluate(data, tmp_path, "--lr", "0.1", "--seed", "1", "--overwrite") == 0
    assert "sid, seed 1: replaced in scores.json: was made with other runs, at learning rates 0.1, 0.01" in caplog.text


def test_a_failure_in_a_folder_that_another_seed_had_costs_no_score(data, tmp_path):
    out = tmp_path / "out"
    assert evaluate(data, tmp_path, "--seed", "1") == 0
    shutil.rmtree(out / "runs")
    (out / "runs").mkdir()
    (out / "runs" / "broken").touch()
    assert evaluate(data, tmp_path, "--seed", "2") == 2
    (out / "runs" / "broken").unlink()
    assert evaluate(data, tmp_path, tasks="pr") == 0
    assert list(read_scores(out)["tasks"]) == ["pr", "sid"]


@pytest.mark.parametrize("what", ["changed", "gone"])
def test_data_of_a_task_that_is_not_called(data, tmp_path, capfd, caplog, what):
    """Changed, its score is out of date, which is refused; cleared away, the score stays."""
    out = tmp_path / "out"
    config = data / "pr.yaml"
    assert evaluate(data, tmp_path, tasks="pr,sid") == 0
    before = (out / "scores.json").read_bytes()
    if what == "gone":
        config.unlink()
        assert evaluate(data, tmp_path, "--seed", "5") == 0
        assert list(read_scores(out)["tasks"]) == ["pr", "sid"]
        return
    config.write_text(config.read_text()[:-1] + ', "specaug": {}}')
    told = refused(capfd, evaluate(data, tmp_path, "--seed", "5"))
    assert f"pr was tested there before {config} changed" in told
    assert (out / "scores.json").read_bytes() == before
    assert evaluate(data, tmp_path, "--seed", "5", "--overwrite") == 0
    assert list(read_scores(out)["tasks"]) == ["sid"]
    assert f"left out of scores.json: {config} has changed since" in caplog.text


def test_data_that_were_wrong_when_a_run_failed_may_be_mended(data, tmp_path):
    """As other settings may: there is nothing to keep."""
    (tmp_path / "out" / "runs").mkdir(parents=True)
    (tmp_path / "out" / "runs" / "broken").touch()
    assert evaluate(data, tmp_path) == 2
    (tmp_path / "out" / "runs" / "broken").unlink()
    (data / "split.txt").write_text((data / "split.txt").read_text() + "2 id10001/b/1.wav\n")
    assert evaluate(data, tmp_path) == 0


# ------------------------------------------------------------------------------------------------------ rates and means


def test_more_folds_with_fewer_rates_are_refused(data, tmp_path, capfd):
    """The one rate would stand there as if it were the only one that was tried."""
    assert evaluate(data, tmp_path, "--lr", "0.1,0.01", "--folds", "fold1", tasks="er") == 0
    told = refused(capfd, evaluate(data, tmp_path, "--lr", "0.1", tasks="er"))
    assert "at learning rate 0.1, the best of 0.1, 0.01 on dev, now 0.1; to pick on dev give all" in told
    assert evaluate(data, tmp_path, "--lr", "0.1,0.01", tasks="er") == 0
    er = read_scores(tmp_path / "out")["tasks"]["er"]
    assert [list(one["folds"]) for one in er["grid"]] == [["fold1", "fold2"]] * 2


def test_of_rates_that_are_equal_on_dev_the_tested_one_stays(data, tmp_path):
    """In whatever order they are given: the others' test scores would be looked at else."""
    for rates in ("0.1,0.01", "0.01,0.1", "0.5,0.1", "0.01,0.1,0.5"):
        assert evaluate(data, tmp_path, "--lr", rates) == 0
        assert read_scores(tmp_path / "out")["tasks"]["sid"]["lr"] == 0.1
    assert calls(tmp_path / "out", "tests.txt") == ["sid-lr0.1"]


def test_a_new_pick_counts_once_it_is_tested(data, tmp_path, monkeypatch):
    """Until then the earlier one, though all trainings are done and one of them was tested."""

    def failing(*_: Any) -> None:
        raise EkdError("boom")

    assert evaluate(data, tmp_path, "--lr", "0.1") == 0
    set_dev(tmp_path, (["voxceleb1", "0.01", None, None, None], 0.9))
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "do_test", failing)
        assert evaluate(data, tmp_path, "--lr", "0.1,0.01", tasks="sid") == 2
    sid = read_scores(tmp_path / "out")["tasks"]["sid"]
    assert sid["lr"] == 0.1 and "grid" not in sid
    assert evaluate(data, tmp_path, "--lr", "0.1,0.01") == 0
    assert read_scores(tmp_path / "out")["tasks"]["sid"]["lr"] == 0.01


def test_the_configurations_own_rate_is_a_grids_run_of_that_rate(data, tmp_path):
    """Trained again, it would have another dev score on a GPU, and the grid would be lost."""
    config = (data / "sid.yaml").read_text()
    (data / "sid.yaml").write_text(config[:-1] + ', "optimizer": {"lr": 0.1}}')
    assert evaluate(data, tmp_path, "--lr", "0.1,0.01") == 0
    set_dev(tmp_path, (["voxceleb1", None, None, None, "sid"], 0.7))
    assert evaluate(data, tmp_path) == 0
    assert calls(tmp_path / "out") == ["sid-lr0.01", "sid-lr0.1"]
    grid = read_scores(tmp_path / "out")["tasks"]["sid"]["grid"]
    assert {one["lr"]: one["picked"] for one in grid} == {0.1: True, 0.01: False}


@pytest.mark.parametrize("then", [("--lr", "0.01"), ("--override", "config.optimizer.lr=0.01"), ("--lr", "0.1,0.01")])
def test_a_rate_that_is_written_otherwise_is_the_same_run(data, tmp_path, then):
    assert evaluate(data, tmp_path, "--override", "config.optimizer.lr=1e-2") == 0
    assert evaluate(data, tmp_path, *then) == 0
    assert calls(tmp_path / "out") == ["sid", *(["sid-lr0.1"] if "0.1,0.01" in then else [])]


def test_a_row_without_the_task_does_not_allow_other_overrides_of_it(data, tmp_path, capfd):
    assert evaluate(data, tmp_path, upstream=up("a=fbank"), tasks="pr") == 0
    assert evaluate(data, tmp_path, upstream=up("b=mfcc"), tasks="sid") == 0
    other = ("--override", "pr:config.runner.total_steps=4")
    told = refused(capfd, evaluate(data, tmp_path, *other, upstream=up("c=mel"), tasks="pr"))
    assert "the table was made with pr:config.runner.total_steps not set, now 4 (a)" in told


def test_overrides_of_a_record_that_does_not_name_them_are_its_commands(data, tmp_path, capfd):
    """A scores.json from before they were written there."""
    out = tmp_path / "out"
    steps = ("--override", "config.runner.total_steps=4,,config.runner.log_step=1")
    assert evaluate(data, tmp_path, *steps, "--lr", "0.1", "--seed", "1") == 0
    record = read_scores(out)
    for key in ("overrides", "seed"):
        del record["tasks"]["sid"][key]
    del record["seeds"]
    (out / "scores.json").write_text(json.dumps(record))
    told = refused(capfd, evaluate(data, tmp_path, "--lr", "0.1", "--seed", "2"))
    assert "sid:config.runner.total_steps 4, now not set (fbank)" in told
    assert evaluate(data, tmp_path, *steps, "--lr", "0.1", "--seed", "2") == 0
    assert read_scores(out)["seeds"] == [1, 2]


# --------------------------------------------------------------------------------------------------------- dry run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lr", "0.01"), "at learning rate 0.1, now 0.01"),
        (("--preset", "tiny"), "--preset superb (fbank), now tiny"),
        (("--override", "pr:config.runner.log_step=1"), "an earlier run here had another config.runner.log_step"),
    ],
)
def test_a_dry_run_refuses_what_the_call_would(data, tmp_path, capfd, words, message):
    assert evaluate(data, tmp_path, "--lr", "0.1", tasks="pr") == 0
    rate = () if "--lr" in words else ("--lr", "0.1")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    for dry in (("--dry-run",), ()):
        assert message in refused(capfd, evaluate(data, tmp_path, *rate, *words, *dry, tasks="pr"))
    assert evaluate(data, tmp_path, *rate, *words, "--overwrite", "--dry-run", tasks="pr") == 0
    assert read_scores(tmp_path / "out") == read_scores(tmp_path / "copy")
    assert calls(tmp_path / "out") == ["pr-lr0.1"]


# ------------------------------------------------------------------------------------------------------ below the table


def test_rows_whose_data_changed_between_them_are_said_not_to_compare(data, tmp_path):
    """Under ``--overwrite``: without it the second row is refused."""
    assert evaluate(data, tmp_path, upstream=up("a=fbank")) == 0
    (data / "split.txt").write_text((data / "split.txt").read_text() + "2 id10001/b/1.wav\n")
    for model in ("b=mfcc", "c=mel"):
        assert evaluate(data, tmp_path, "--overwrite", upstream=up(model)) == 0
    text = (tmp_path / "out" / "scores.md").read_text()
    assert re.search(r"SID, contents of the data: \w{8} \(a\); \w{8} \(b, c\): NOT comparable\.", text)


def test_rows_that_came_to_have_one_label_are_told_apart(data, tmp_path):
    out = tmp_path / "out"
    assert evaluate(data, tmp_path, upstream=up("a=fbank", "b=mfcc")) == 0
    alone = ["--data", str(data), "--out", str(out / "a"), "--device", "cpu", "--tasks", "sid,pr"]
    assert main(["evaluate", "--upstream", "fbank", "--label", "b", *alone]) == 0
    assert evaluate(data, tmp_path, "--seed", "2", upstream=up("c=mel")) == 0
    assert [label for label, _ in rows(out).values()] == ["b (a)", "b (b)", "c"]
    assert "Seeds: 1337 (b (a), b (b)); 2 (c): not the same for all rows." in (out / "scores.md").read_text()


def test_seeds_that_differ_between_tasks_are_said_of_one_row_too(data, tmp_path):
    assert evaluate(data, tmp_path, "--seeds", "1,2", tasks="pr,sid") == 0
    assert evaluate(data, tmp_path, "--seed", "3") == 0
    assert "Seeds: pr 1, 2 / sid 1, 2, 3." in (tmp_path / "out" / "scores.md").read_text()
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "report.html")]) == 0
    assert "preset superb · seeds pr 1, 2 / sid 1, 2, 3" in (tmp_path / "report.html").read_text()
