"""Running a plan: resumption, failures and scores.json, with a stand-in for the native runner."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import threading
from concurrent.futures import wait
from types import SimpleNamespace

import pytest
from evaluate_stand_in import evaluate, install_stand_in, make_data
from export_student import write_student
from rich.console import Console

from s3prl_ekd.checked import read_yaml
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import process
from s3prl_ekd.evaluate.folder_lock import locked_folder
from s3prl_ekd.evaluate.marker import Marker, read_marker, write_marker
from s3prl_ekd.evaluate.models import Upstream
from s3prl_ekd.evaluate.plan import make_plan
from s3prl_ekd.evaluate.progress import Board
from s3prl_ekd.evaluate.provenance import made_by
from s3prl_ekd.evaluate.records import collect
from s3prl_ekd.evaluate.results import chance
from s3prl_ekd.evaluate.schedule import run_all
from s3prl_ekd.evaluate.scores_file import read_models, read_scores, with_earlier_tasks, write_scores
from s3prl_ekd.evaluate.table import footnote, score_markdown
from s3prl_ekd.evaluate.tasks import TASKS


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "DATA")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    install_stand_in(tmp_path, monkeypatch)


@pytest.fixture
def board():
    with Board(Console(quiet=True)) as board:
        yield board


def plan(data, tmp_path, tasks=tuple(TASKS), **more):
    chosen = [TASKS[name] for name in tasks]
    return make_plan(chosen, data, tmp_path / "out", Upstream("fbank", "fbank"), more.pop("overrides", {}), **more)


def test_scores_resume_and_table(data, tmp_path, stand_in, board):
    runs = plan(data, tmp_path)
    results = run_all(runs, board, jobs=2)
    common = made_by(runs[0].upstream, runs, "tiny")
    record = read_scores(write_scores(collect(common, runs, results), tmp_path / "out"))
    tasks = record["tasks"]
    assert tasks["pr"]["per"] == pytest.approx(100 / 3)
    assert tasks["asr"]["wer"] == 50.0
    assert tasks["asr"]["rescored"]["cer"] == pytest.approx(25.0)  # one insertion over HI and YO
    assert tasks["asr"]["checkpoint"].endswith("states-2.ckpt")  # a dev WER over 100 keeps no best checkpoint
    assert tasks["asr"]["dev"] == 120.0
    assert set(tasks["er"]["folds"]) == {"fold1", "fold2"}
    assert tasks["er"]["n_utterances"] == 4
    assert (tasks["sid"]["chance"], tasks["er"]["chance"]) == (50.0, 50.0)
    assert all(task["rescored"]["agrees"] for task in tasks.values())
    assert all("-m train" in task["commands"][0] for task in tasks.values())
    calls = (tmp_path / "out" / "runs" / "calls.txt").read_text().split()
    assert sorted(calls) == ["asr", "er-fold1", "er-fold2", "pr", "sid"]

    assert run_all(plan(data, tmp_path, device="cuda"), board) == results  # finished: not run again, on any device
    assert (tmp_path / "out" / "runs" / "calls.txt").read_text().split() == calls

    other = {**record, "label": "other", "tasks": {"pr": {**tasks["pr"], "per": 12.5}}}
    text = score_markdown([record, other])
    assert "| other | **12.50** | – | – | – | – |" in text
    assert "| fbank | 33.33 | 50.00 | 50.00 | 50.00 | 25.00 |" in text
    assert "SID 50.00 (one speaker in all)" in text


def test_a_score_whose_data_are_gone_is_left_out(tmp_path, stand_in, board, caplog):
    data = make_data(tmp_path / "own")

    def scores(*tasks):
        runs = plan(data, tmp_path, tasks)
        common = made_by(runs[0].upstream, runs, "tiny")
        record = collect(common, runs, run_all(runs, board))
        write_scores(with_earlier_tasks(record, common, tmp_path / "out"), tmp_path / "out")
        return read_scores(tmp_path / "out")["tasks"]

    (data / "er.txt").write_text("ER's own table\n")
    own = (data / "er.yaml").read_text().replace("split.txt", "er.txt")
    (data / "er.yaml").write_text(own)
    scores("sid")
    scores("er")
    (data / "er.yaml").write_text("# prepared again\n" + own)
    assert set(scores("er")) == {"sid", "er"}
    (data / "split.txt").write_text((data / "split.txt").read_text() + "2 id10001/b/1.wav\n")
    assert set(scores("pr")) == {"pr", "er"}
    assert f"left out of scores.json: {data / 'split.txt'} has changed since" in caplog.text


def test_rows_that_were_tested_otherwise_are_said_not_to_compare():
    def row(label, folds, cached):
        er = {"acc": 50.0, "rescored": {"agrees": True}, "folds": dict.fromkeys(folds, {})}
        return {"label": label, "tasks": {"er": er}, "cache_states": cached}

    alike = footnote([row("a", ["fold1", "fold2"], True), row("b", ["fold1", "fold2"], True)])
    assert "ER: mean of 2 folds." in alike and "NOT comparable" not in alike
    unlike = footnote([row("a", ["fold1", "fold2"], True), row("b", ["fold1"], False)])
    assert "ER: mean of 2 folds (a); fold1 alone (b): NOT comparable." in unlike
    assert "Clips were encoded alone (a); in padded batches (b): NOT comparable." in unlike
    one, other = (
        row(name, ["fold1"], False) | {"normalize": name == "a", "data": f"/data/{name}"} for name in ("a", "b")
    )
    told = footnote([one, other])
    assert "Features were taken normalized (a); as they are (b): NOT comparable." in told
    assert "Data of /data/a (a); /data/b (b): comparable only if these hold the same." in told


def test_other_settings_are_refused_then_overwritten(data, tmp_path, stand_in, board):
    run_all(plan(data, tmp_path, ["pr"]), board)
    changed = plan(data, tmp_path, ["pr"], seeds=[2])
    with pytest.raises(EkdError, match="another seed .1337, now 2.*--overwrite"):
        run_all(changed, board)
    run_all(changed, board, overwrite=True)
    assert (tmp_path / "out" / "runs" / "calls.txt").read_text().split() == ["pr", "pr"]


@pytest.mark.parametrize("what", ["checkpoint", "configuration", "table"])
def test_what_lies_under_the_same_path_may_have_changed(what, tmp_path, stand_in, board):
    """A student trained again under its name, data prepared again: the scores of the former are not theirs."""
    data = make_data(tmp_path / "own")
    student = write_student(tmp_path / "states-1.ckpt")
    model = Upstream("ekd_student", "mine", checkpoint=student)

    def planned():
        return make_plan([TASKS["sid"]], data, tmp_path / "out", model, {})

    run_all(planned(), board)
    config = data / "sid.yaml"
    config.write_text("# the same, prepared again\n" + config.read_text())
    os.utime(student, (1, 1))
    run_all(planned(), board)
    assert (tmp_path / "out" / "runs" / "calls.txt").read_text().split() == ["sid"]
    if what == "checkpoint":
        file = write_student(student, seed=2)
    elif what == "table":
        file = data / "split.txt"
        file.write_text(file.read_text() + "2 id10001/b/1.wav\n")
    else:
        file = config
        file.write_text(json.dumps({**read_yaml(file), "specaug": {}}))
    with pytest.raises(EkdError, match=rf"run.json: an earlier run here read another {file}: it has changed since"):
        run_all(planned(), board)
    run_all(planned(), board, overwrite=True)
    assert (tmp_path / "out" / "runs" / "calls.txt").read_text().split() == ["sid", "sid"]


@pytest.mark.parametrize("what", ["transcripts", "weights", "base"])
def test_what_no_path_of_the_call_names_may_have_changed_too(what, tmp_path, stand_in, board, monkeypatch):
    """Texts prepared again beside the same audio; a teacher's name that has other weights now; a file's ``base:``."""
    from s3prl_ekd.evaluate import inputs as reading

    data, task, model = make_data(tmp_path / "own"), "sid", Upstream("fbank", "fbank")
    if what == "transcripts":
        task, changing = "asr", tmp_path / "libri" / "train-clean-100" / "1" / "1-1.trans.txt"
        changing.parent.mkdir(parents=True)
        section = {"datarc": {"libri_root": str(tmp_path / "libri"), "train": ["train-clean-100"], "dev-clean": ["x"]}}
        config = read_yaml(data / "asr.yaml") | {"downstream_expert": section}
        (data / "asr.yaml").write_text(json.dumps(config))
        named = f"the transcripts below {tmp_path / 'libri' / 'train-clean-100'}"
    elif what == "weights":
        changing = tmp_path / "weights"
        monkeypatch.setattr("s3prl_ekd.teachers.fingerprint.weights_digest", lambda *a, **b: changing.read_text())
        model, named = Upstream("ekd_teacher", "t", checkpoint="embedded:tiny_hubert"), "the weights of embedded:tiny"
    else:
        changing, mine = tmp_path / "base.yaml", tmp_path / "mine.yaml"
        mine.write_text("base: base.yaml\n")
        model, named = Upstream("ekd_student", "u", model_config=mine), f"the student of {mine}"
    former, latter = ("base: config_model.yaml\n", "base: config_model.yaml\nstudent: {layers: 1}\n")
    changing.write_text(former)

    def planned():
        reading._texts.cache_clear()
        reading._weights.cache_clear()  # a call is a process
        return make_plan([TASKS[task]], data, tmp_path / "out", model, {})

    run_all(planned(), board)
    changing.write_text(former)
    run_all(planned(), board)
    assert (tmp_path / "out" / "runs" / "calls.txt").read_text().split() == [task]
    changing.write_text(latter)
    with pytest.raises(EkdError, match=f"an earlier run here read another {named}"):
        run_all(planned(), board)


@pytest.mark.parametrize("key", ["model_config", "bucket_file"])
def test_files_of_other_upstreams_and_asrs_tables_count(key, tmp_path, stand_in, board):
    data, file = make_data(tmp_path / "own"), tmp_path / "tables" / "train.csv"
    file.parent.mkdir()
    file.write_text("a")
    model = Upstream("mine_local", "mine", model_config=file if key == "model_config" else None)
    if key == "bucket_file":
        config = read_yaml(data / "asr.yaml") | {"downstream_expert": {"datarc": {"bucket_file": str(file.parent)}}}
        (data / "asr.yaml").write_text(json.dumps(config))
    run_all(make_plan([TASKS["asr"]], data, tmp_path / "out", model, {}), board)
    file.write_text("b")
    with pytest.raises(EkdError, match=f"an earlier run here read another {file}"):
        run_all(make_plan([TASKS["asr"]], data, tmp_path / "out", model, {}), board)


def test_a_mistake_that_ended_at_once_does_not_block_the_folder(data, tmp_path, stand_in):
    broken = tmp_path / "out" / "runs" / "broken"
    broken.parent.mkdir(parents=True)
    broken.touch()
    assert evaluate(data, tmp_path, upstream=("--upstream", "nosuch")) == 2
    broken.unlink()
    assert evaluate(data, tmp_path, upstream=("--upstream", "fbank")) == 0
    assert read_scores(tmp_path / "out")["upstream"] == "fbank"


def test_a_second_call_on_one_folder_waits_for_its_turn(data, tmp_path, stand_in, capsys):
    with locked_folder(tmp_path / "out"):
        assert evaluate(data, tmp_path) == 2
    assert "another s3prl-ekd evaluate is at work there" in capsys.readouterr().err
    assert evaluate(data, tmp_path) == 0


def test_tasks_of_another_model_or_setting_are_not_mixed_into_a_record(data, tmp_path, stand_in):
    assert evaluate(data, tmp_path, tasks="pr") == 0
    out = tmp_path / "out"
    [run] = plan(data, tmp_path, ["pr"])
    common, record = made_by(run.upstream, [run], "superb"), {**read_scores(out), "tasks": {"sid": {}}}
    assert common == {key: record[key] for key in common}
    assert set(with_earlier_tasks(record, common, out)["tasks"]) == {"pr", "sid"}
    assert len(common) == 10
    for key in common:
        other = {key: "another"}
        assert set(with_earlier_tasks({**record, **other}, {**common, **other}, out)["tasks"]) == {"sid"}, key


def test_a_score_whose_run_is_begun_again_is_left_out(data, tmp_path, stand_in):
    assert evaluate(data, tmp_path, tasks="pr") == 0
    assert evaluate(data, tmp_path, tasks="sid") == 0
    (tmp_path / "out" / "runs" / "broken").touch()
    assert evaluate(data, tmp_path, "--overwrite", "--override", "sid:config.runner.eval_step=1", tasks="sid") == 2
    (tmp_path / "out" / "runs" / "broken").unlink()
    assert evaluate(data, tmp_path, tasks="er") == 0
    assert list(read_scores(tmp_path / "out")["tasks"]) == ["pr", "er"]


def test_a_models_row_is_its_own(data, tmp_path, stand_in):
    """Another model under a label that had a score: without one of its own it has none."""
    assert evaluate(data, tmp_path, upstream=("--upstream", "a=fbank", "--upstream", "b=fbank")) == 0
    (tmp_path / "out" / "b" / "runs" / "broken").touch()
    models = ("--upstream", "a=fbank", "--upstream", "b=mfcc")
    assert evaluate(data, tmp_path, "--overwrite", upstream=models) == 2
    assert [record["label"] for _, record in read_models(tmp_path / "out")] == ["a"]


def test_the_last_score_that_is_printed_counts_and_all_seconds(data, tmp_path, stand_in, board, monkeypatch):
    from s3prl_ekd.evaluate import run as running

    [one] = plan(data, tmp_path, ["pr"])
    one.expdir.mkdir(parents=True)
    begun = {"settings": one.settings(), "inputs": {}, "state": "started", "seconds": 1000.0}
    (one.expdir / "run.json").write_text(json.dumps(begun))
    monkeypatch.setattr(running, "runner_scores", lambda task, output, split: [99.0, 100 / 3])
    result = run_all([one], board)["pr"]
    assert result["per"] == pytest.approx(100 / 3) and result["seconds"] > 1000


def test_a_failure_names_the_log_and_then_continues(data, tmp_path, stand_in, board):
    broken = tmp_path / "out" / "runs" / "broken"
    broken.parent.mkdir(parents=True)
    broken.touch()
    with pytest.raises(EkdError) as caught:
        run_all(plan(data, tmp_path, ["pr"]), board)
    assert "train.log" in str(caught.value)
    assert "RuntimeError: boom" in str(caught.value)
    assert "\n" not in str(caught.value)
    broken.unlink()
    assert run_all(plan(data, tmp_path, ["pr"]), board)["pr"]["per"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_is_done_is_kept_when_the_rest_does_not_get_done(
    data, tmp_path, stand_in, monkeypatch, capsys, interrupted
):
    from s3prl_ekd.evaluate import schedule

    do_train, stop_all, stopped = schedule.do_train, schedule.stop_all, threading.Event()

    def train(run, *rest):
        if run.key == "er-fold2":
            if interrupted:  # the run goes on until it is stopped
                os.kill(os.getpid(), signal.SIGTERM)
                assert stopped.wait(60)
            raise EkdError("boom")
        return do_train(run, *rest)

    monkeypatch.setattr(schedule, "do_train", train)
    monkeypatch.setattr(schedule, "stop_all", lambda: (stop_all(), stopped.set()))
    words = ("--preset", "tiny")
    assert evaluate(data, tmp_path, *words, tasks="pr,er,asr") == (130 if interrupted else 2)
    record = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(record["tasks"]) == ["pr"] and record["tasks"]["pr"]["per"] == pytest.approx(100 / 3)
    said = " ".join(capsys.readouterr().out.split())
    assert "scores.json holds the tasks that are done" in said
    assert ("the same command goes on" in said) == interrupted
    monkeypatch.setattr(schedule, "do_train", do_train)
    assert evaluate(data, tmp_path, *words, tasks="pr,er,asr") == 0
    assert list(json.loads((tmp_path / "out" / "scores.json").read_text())["tasks"]) == ["pr", "er", "asr"]
    calls = (tmp_path / "out" / "runs" / "calls.txt").read_text().split()
    assert sorted(calls) == ["asr", "er-fold1", "er-fold2", "pr"]  # nothing was done twice


def test_models_without_a_finished_task_keep_their_earlier_scores(data, tmp_path, stand_in, monkeypatch):
    from s3prl_ekd.evaluate import schedule

    do_train = schedule.do_train

    def train(run, *rest):
        if run.key == "mfcc/sid":
            raise EkdError("boom")
        return do_train(run, *rest)

    models = ("--upstream", "fbank", "--upstream", "mfcc")
    assert evaluate(data, tmp_path, upstream=models, tasks="pr") == 0
    monkeypatch.setattr(schedule, "do_train", train)
    assert evaluate(data, tmp_path, upstream=models, tasks="sid") == 2
    found = {record["label"]: list(record["tasks"]) for _, record in read_models(tmp_path / "out")}
    assert found == {"fbank": ["pr", "sid"], "mfcc": ["pr"]}


def test_clips_alone_and_padded_batches_are_not_mixed_in_one_row(data, tmp_path, stand_in):
    cache = ("--cache-states", str(tmp_path / "states"))
    assert evaluate(data, tmp_path, tasks="pr") == 0
    assert evaluate(data, tmp_path, *cache, tasks="sid") == 0
    record = read_scores(tmp_path / "out")
    assert list(record["tasks"]) == ["sid"] and record["cache_states"] is True
    assert evaluate(data, tmp_path, *cache, tasks="er") == 0
    assert list(read_scores(tmp_path / "out")["tasks"]) == ["sid", "er"]
    assert evaluate(data, tmp_path, *cache, tasks="pr") == 2  # that run was another


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("", "--cache-states '': expected a folder"),
        ("a=b", "--cache-states 'a=b': expected a folder without '='"),
        ("{file}", "--cache-states {file}: cannot be made"),
        ("{file}/x", "--cache-states {file}/x: cannot be made"),
    ],
)
def test_a_cache_that_cannot_be_is_said_before_any_run(data, tmp_path, stand_in, capsys, folder, message):
    (tmp_path / "file").touch()
    folder, message = (text.format(file=tmp_path / "file") for text in (folder, message))
    assert evaluate(data, tmp_path, "--cache-states", folder, tasks="pr") == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


def test_what_ends_together_with_a_failure_counts(data, tmp_path, stand_in, board, monkeypatch):
    from s3prl_ekd.evaluate import schedule

    meet = threading.Barrier(2)

    def train(run, *rest):
        meet.wait()
        if run.task.name == "pr":
            raise EkdError("boom")
        return {"dev": 50.0, "seconds": 0.0, "steps": 2, "lr": None}

    def both(futures, return_when):
        return wait(futures)

    monkeypatch.setattr(schedule, "do_train", train)
    monkeypatch.setattr(schedule, "wait", both)
    results = {}
    with pytest.raises(EkdError, match="boom"):
        run_all(plan(data, tmp_path, ["pr", "sid"]), board, jobs=2, results=results)
    assert list(results) == ["sid"]


def test_disagreement_with_the_runner_is_said(data, tmp_path, stand_in, board, monkeypatch):
    from s3prl_ekd.evaluate import run as running

    monkeypatch.setattr(running, "runner_scores", lambda task, output, split: [99.0])
    runs = plan(data, tmp_path, ["pr"])
    record = collect(made_by(runs[0].upstream, runs, "tiny"), runs, run_all(runs, board))
    assert record["tasks"]["pr"]["per"] == 99.0  # the number of record stays the runner's
    assert "fbank, pr: the prediction files do not give the runner's number" in score_markdown([record])


def test_progress_is_read_from_bars_and_prints(tmp_path):
    seen = []
    code = textwrap.dedent(
        """
        import sys
        sys.stderr.write("\\roverall:   0%|          | 0/40 [00:00<?, ?it/s]")
        sys.stderr.write("\\roverall:  25%|##5       | 10/40 [00:10<00:30,  1.00s/it]")
        sys.stderr.write("\\n\\rtrain:  50%|#####     | 2/4 [00:00<00:00]\\x1b[A")
        sys.stderr.flush()
        print("dev per: 0.75", flush=True)
        """
    )
    (tmp_path / "x.py").write_text(code)
    output, _ = process.run_logged(
        [sys.executable, str(tmp_path / "x.py")], tmp_path / "x.log", lambda p: seen.append((p.step, p.total, p.news))
    )
    assert seen[-1] == (10, 40, "dev per 0.75")
    assert output == "dev per: 0.75"
    assert "%|" not in (tmp_path / "x.log").read_text()


def test_our_own_error_line_is_the_message(tmp_path):
    code = "import sys; print('noise'); sys.stderr.write('error: config_model.yaml: ekd.mode: bad\\n'); sys.exit(2)"
    with pytest.raises(EkdError, match=r"x\.log: config_model\.yaml: ekd\.mode: bad$"):
        process.run_logged([sys.executable, "-c", code], tmp_path / "x.log")


def test_the_chance_of_er_is_one_emotion_for_all_folds(tmp_path):
    """The commonest emotion of each test fold would be an oracle: nobody knows it beforehand."""
    folds = {"fold1": ["neu", "neu", "hap", "ang"], "fold2": ["neu", "neu", "hap", "hap", "hap"]}
    for fold, labels in folds.items():
        (tmp_path / f"er-{fold}").mkdir()
        file = tmp_path / f"er-{fold}" / TASKS["er"].reference.format(fold=fold)
        file.write_text("".join(f"{fold}_{number} {label}\n" for number, label in enumerate(labels)))
    record = {"folds": {fold: {"folder": f"er-{fold}"} for fold in folds}}
    run = SimpleNamespace(expdir=tmp_path / "er-fold1")
    assert chance(TASKS["er"], run, record) == pytest.approx(100 * (2 / 4 + 2 / 5) / 2)  # neu, first of two


def test_the_chance_of_sid_is_that_of_the_split_file_the_run_reads(data, tmp_path):
    """An ``--override`` may name another one than the task's YAML file."""
    other = tmp_path / "four.txt"
    other.write_text("".join(f"{1 + n % 3} id1000{n}/a/1.wav\n" for n in range(1, 5)))
    override = {"config.downstream_expert.datarc.meta_data": repr(str(other))}
    [plain] = plan(data, tmp_path, ["sid"])
    [overridden] = plan(data, tmp_path, ["sid"], overrides={"sid": override})
    assert (chance(TASKS["sid"], plain, {}), chance(TASKS["sid"], overridden, {})) == (50.0, 25.0)


@pytest.mark.parametrize("text", ["[1", "[]", "{}", '{"settings": {}, "inputs": {}, "status": 1}'])
def test_a_damaged_marker_is_one_clear_line(data, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(EkdError, match=rf"{tmp_path}/run.json: not readable .*; delete {tmp_path} to run it again$"):
        read_marker(tmp_path)


def test_a_marker_is_read_as_it_was_written(tmp_path):
    marker = Marker({"seed": 1}, {"a": "b"})
    write_marker(tmp_path, marker)
    expected = {"settings": {"seed": 1}, "inputs": {"a": "b"}, "state": "started", "seconds": 0.0}
    assert json.loads((tmp_path / "run.json").read_text()) == expected  # no result before there is one
    assert read_marker(tmp_path) == marker
    marker.state, marker.result = "finished", {"per": 1.0}
    write_marker(tmp_path, marker)
    assert read_marker(tmp_path) == marker
