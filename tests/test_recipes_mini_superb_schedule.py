"""recipes.mini_superb: rows side by side; the commands that they call are stood in for."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml
from mini_superb_lab import write_data
from score_records import score_of_task, score_record

from recipes.mini_superb import __main__ as command
from recipes.mini_superb import scores, students
from recipes.mini_superb.calls import Calls
from recipes.mini_superb.settings import Row, read_experiment, rows
from s3prl_ekd.data import target_folder
from s3prl_ekd.errors import EkdError
from s3prl_ekd.task_names import PAPER_TASKS

HERE = Path(command.__file__).parent


class FakeCalls:
    """In place of the commands: what they leave behind, and when each began and ended (``log``)."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.02) -> None:
        self.folder, self.seconds, self.log, self.lock = folder, seconds, [], threading.Lock()
        self.fills = 0
        self.broken: set[str] = set()  # "distil NAME SEED" or "evaluate NAME SEED"
        self.raised: BaseException = EkdError("exit 1: boom")
        monkeypatch.setattr(Calls, "__call__", lambda _, words, log: self(words, log))
        monkeypatch.setattr(students, "merge_checkpoints", self.merge)
        monkeypatch.setattr(students, "_write_start", lambda config, out: out.touch())
        monkeypatch.setattr(scores, "keep", lambda folder, student, work, target: target.mkdir(parents=True))
        write_data(folder)

    def note(self, *event: str) -> int:
        with self.lock:
            self.log.append(event)
            return len(self.log)

    def __call__(self, words: list[str], log: Path) -> None:
        if words[:2] == ["s3prl-ekd", "targets"]:
            return self.fill(Path(words[words.index("-g") + 1]))
        name, seed = log.parent.parent.name, log.parent.name.removeprefix("seed")
        act = {"run_pretrain.py": "distil", "s3prl-ekd": "evaluate"}[words[0]]
        self.note("begin", act, name, seed)
        time.sleep(self.seconds)
        if f"{act} {name} {seed}" in self.broken:
            raise self.raised
        if act == "distil":
            assert self.fills == 1  # before the first student, and once for all
            (log.parent / "run").mkdir()
            (log.parent / "run" / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
            shutil.copy(log.with_name("runner.yaml"), log.parent / "run" / "states-1.ckpt")
        else:
            log.parent.mkdir(parents=True, exist_ok=True)
            tasks = {task: score_of_task(task) for task in PAPER_TASKS}
            (log.parent / "scores.json").write_text(json.dumps(score_record(name, tasks)))
        self.note("end", act, name, seed)

    def fill(self, config: Path) -> None:
        time.sleep(self.seconds)
        self.fills += 1
        targets = Path(yaml.safe_load(config.read_text())["ekd"]["cache_targets"])
        targets.mkdir()
        (targets / target_folder.INDEX).touch()
        (targets / target_folder.STATE).write_bytes(bytes([target_folder.STORED]))

    def merge(self, parts: list[Path], out: Path) -> None:
        for part in parts:
            home = part.parent.parent  # students/ROW/seedN, of whose run it is the checkpoint
            assert ("end", "distil", home.parent.name, home.name.removeprefix("seed")) in self.log
        out.touch()

    def main(self, *words: str) -> int:
        where = {"speech": self.folder / "speech", "work": self.folder / "work", "results": self.folder / "results"}
        return command.main([*(f"--{name}={path}" for name, path in where.items()), *words])

    def at(self, *event: str) -> int:
        assert self.log.count(event) == 1, event
        return self.log.index(event)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCalls:
    return FakeCalls(tmp_path, monkeypatch)


def test_tasks_that_were_done_before_an_interruption_are_kept(fake: FakeCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(words: list[str], log: Path) -> None:
        log.parent.mkdir(parents=True)
        (log.parent / "scores.json").write_text("{}")  # as evaluate leaves it
        raise KeyboardInterrupt

    monkeypatch.setattr(Calls, "__call__", lambda _, words, log: interrupted(words, log))
    assert fake.main("--only", "fbank", "--seeds", "1") == 130
    assert (fake.folder / "results" / "fbank" / "seed1").is_dir()


def test_a_later_seed_wants_every_rate_of_the_first(fake: FakeCalls, caplog: pytest.LogCaptureFixture) -> None:
    first = fake.folder / "work" / "scores" / "fbank" / "seed1"
    first.mkdir(parents=True)
    (first / "scores.json").write_text(json.dumps(score_record("fbank")))
    assert fake.main("--only", "fbank", "--seeds", "2", "--tasks", "pr,asr") == 2
    assert "seed1/scores.json: has no asr, whose learning rate is picked there" in caplog.text
    assert fake.main("--only", "fbank", "--seeds", "2", "--tasks", "pr") == 0


def test_a_later_seed_follows_when_the_first_picks_another_rate(fake: FakeCalls, monkeypatch) -> None:
    """``s3prl-ekd evaluate`` alone refuses to replace a tested rate; here dev has picked the new one."""
    given: list[list[str]] = []
    monkeypatch.setattr(Calls, "__call__", lambda _, words, log: given.append(words))
    monkeypatch.setattr(scores, "keep", lambda *_: None)
    for seed in (1, 2):
        folder = fake.folder / "work" / "scores" / "fbank" / f"seed{seed}"
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text(json.dumps(score_record("fbank")))
    words = ("--only", "fbank", "--seeds", "2", "--tasks", "pr")
    assert fake.main(*words) == 0
    first = fake.folder / "work" / "scores" / "fbank" / "seed1" / "scores.json"
    first.write_text(json.dumps(score_record("fbank", {"pr": score_of_task("pr", lr=0.01)})))
    assert fake.main(*words) == 0
    assert [("pr:0.1" in words, "--overwrite" in words) for words in given] == [(True, False), (False, True)]


def test_some_tasks_take_their_own_settings_alone(fake: FakeCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    """``s3prl-ekd evaluate`` refuses an override or a rate of a task that is not among ``--tasks``."""
    given: list[str] = []
    monkeypatch.setattr(Calls, "__call__", lambda _, words, log: given.extend(words))
    monkeypatch.setattr(scores, "keep", lambda *_: None)
    assert fake.main("--only", "fbank", "--seeds", "1", "--tasks", "sid") == 0
    settings = [given[at + 1].partition(":")[0] for at, word in enumerate(given) if word in ("--override", "--lr")]
    assert len(settings) > 2 and set(settings) == {"sid"}


@pytest.fixture
def small_experiment(tmp_path: Path) -> Path:
    """The recipe's experiment with rows of every kind, but few students."""
    text = yaml.safe_load((HERE / "experiment.yaml").read_text())
    text |= {"students": ["hubert", "wavlm"], "from_random": ["hubert"], "ablations": {}, "longer": {"hubert": 6000}}
    text |= {"merged": {"merged": ["hubert", "wavlm"]}}
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(text))
    return file


@pytest.mark.parametrize("parallel", [1, 3, 20])
def test_rows_side_by_side_keep_their_order(fake: FakeCalls, small_experiment: Path, parallel: int) -> None:
    experiment = read_experiment(small_experiment)
    assert {row.kind for row in rows(experiment)} == set(get_args(get_type_hints(Row)["kind"]))
    words = ["--experiment", str(small_experiment), "--parallel", str(parallel)]
    assert fake.main(*words, "--seeds", "2", "1", "3") == 0  # the first seed goes first
    going = most = 0
    for event in fake.log:
        going += {"begin": 1, "end": -1}[event[0]]
        most = max(most, going)
    assert most == parallel if parallel < 10 else most > 3
    for row in rows(experiment):
        for seed in "123":
            evaluated = fake.at("begin", "evaluate", row.name, seed)
            if row.kind == "student":
                assert fake.at("end", "distil", row.name, seed) < evaluated  # once: nobody distils a merge's part again
            for part in row.parts:
                assert fake.at("end", "distil", part, seed) < evaluated
            assert seed == "1" or fake.at("end", "evaluate", row.name, "1") < evaluated  # picks the learning rates
            assert (fake.folder / "results" / row.name / f"seed{seed}").is_dir()
    if parallel == 1:
        evaluations = [event[2:] for event in fake.log if event[:2] == ("begin", "evaluate")]
        assert evaluations == [(row.name, seed) for seed in "123" for row in rows(experiment)]


def test_a_merge_distils_its_parts_itself_but_never_twice_at_once(fake: FakeCalls) -> None:
    assert fake.main("--parallel", "4", "--only", "merged", "hubert", "--seeds", "1") == 0
    distilled = [event[2] for event in fake.log if event[:2] == ("begin", "distil")]
    assert sorted(distilled) == ["hubert", "robust_hubert", "wavlm"]


def test_other_speech_is_refused(fake: FakeCalls, capsys: pytest.CaptureFixture[str]) -> None:
    """The data that are there would be taken for it; the same speech may lie elsewhere."""
    assert fake.main("--only", "fbank", "--seeds", "1") == 0
    moved = (fake.folder / "speech").rename(fake.folder / "moved")
    words = ["--only", "fbank", "--seeds", "2", f"--speech={moved}"]
    assert fake.main(*words) == 0
    (moved / "sid" / "manifest.tsv").write_text("path\tsplit\tspeaker\n")
    assert fake.main(*words) == 2
    error = capsys.readouterr().err
    made_by = fake.folder / "work" / "made_by.json"
    assert error.startswith(f"error: --speech {moved}: {made_by}: this experiment was made with other settings")
    assert error.endswith(f"name another --work, or remove {fake.folder / 'work'}\n")


def test_a_merge_of_students_that_were_made_anew_is_refused(
    fake: FakeCalls, small_experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file stays where its parts' folders were removed for another budget, as their own refusal advises."""
    words = ["--experiment", str(small_experiment), "--only", "merged", "--seeds", "1"]
    assert fake.main(*words) == 0
    values = yaml.safe_load(small_experiment.read_text())
    values["distillation"]["lr"] /= 2
    small_experiment.write_text(yaml.safe_dump(values))
    made = fake.folder / "work" / "students"
    for part in ("hubert", "wavlm"):
        assert fake.main(*words) == 2
        assert f"remove {made / part / 'seed1'}\n" in capsys.readouterr().err
        shutil.rmtree(made / part / "seed1")
    assert fake.main(*words) == 2
    assert f"remove {made / 'merged' / 'seed1'}\n" in capsys.readouterr().err
    for gone in (made / "merged", fake.folder / "results"):
        shutil.rmtree(gone)
    assert fake.main(*words) == 0


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_row_that_fails_stops_no_other(
    fake: FakeCalls, parallel: int, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    fake.broken = {"distil hubert 1", "evaluate wavlm 2"}
    words = ["--parallel", str(parallel), "--only", "fbank", "hubert", "wavlm", "config_model", "--seeds", "1", "2"]
    assert fake.main(*words) == 2
    error = capsys.readouterr().err
    assert "3 of 8 failed" in error and "exit 1: boom" in error
    told = sorted(record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert told == [
        "seed 1, hubert: exit 1: boom",
        "seed 2, hubert: its first seed failed, which picks the learning rates",
        "seed 2, wavlm: exit 1: boom",
    ]
    for failed in ("hubert (seed 1)", "hubert (seed 2)", "wavlm (seed 2)"):
        assert failed in error
    kept = {str(path.relative_to(fake.folder / "results")) for path in (fake.folder / "results").glob("*/*")}
    assert kept == {f"{row}/seed{seed}" for row in ("fbank", "config_model") for seed in "12"} | {"wavlm/seed1"}
    fake.broken.clear()
    assert fake.main("--only", "hubert", "--seeds", "1") == 0  # the same command goes on


def test_an_interrupted_command_stops_all(fake: FakeCalls, capsys: pytest.CaptureFixture[str]) -> None:
    fake.broken, fake.raised = {"distil hubert 1"}, KeyboardInterrupt()
    assert fake.main("--parallel", "2", "--only", "hubert", "wavlm", "robust_hubert", "config_model") == 130
    assert "interrupted; run the same command again to resume" in capsys.readouterr().err
    assert not [event for event in fake.log if event[3] != "1"]


@pytest.mark.parametrize(("words", "says"), [(("--only", "none"), "no row 'none'"), (("--tasks", "pr,x"), "x")])
def test_wrong_rows_and_tasks_are_told_before_any_command(
    fake: FakeCalls,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, str],
    says: str,
) -> None:
    monkeypatch.setattr(command, "prepare", lambda *_: pytest.fail("prepares"))
    assert fake.main(*words) == 2
    assert says in capsys.readouterr().err
