"""What scores.json and its table say, and which earlier scores they keep, with a stand-in for the native runner."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from evaluate_stand_in import calls, evaluate, make_data, plan
from markdown_it import MarkdownIt
from score_records import score_of_task, score_record

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.compare import Comparison, Difference, OnTask, Settings
from s3prl_ekd.evaluate.compare import Row as Compared
from s3prl_ekd.evaluate.compare_table import comparison_markdown
from s3prl_ekd.evaluate.grid_table import grid_markdown
from s3prl_ekd.evaluate.kept_scores import earlier_record, outdated
from s3prl_ekd.evaluate.marker import Marker, write_marker
from s3prl_ekd.evaluate.provenance import made_by
from s3prl_ekd.evaluate.records import collect
from s3prl_ekd.evaluate.results import chance
from s3prl_ekd.evaluate.robustness import Row, robustness_markdown
from s3prl_ekd.evaluate.schedule import run_all
from s3prl_ekd.evaluate.scores_file import read_models, read_scores, runs_of, write_scores
from s3prl_ekd.evaluate.table import OF_TASKS, best_rows, footnote, score_markdown
from s3prl_ekd.evaluate.tasks import TASKS


def test_scores_resume_and_table(data, tmp_path, stand_in, board):
    runs = plan(data, tmp_path)
    results = run_all(runs, board, jobs=2)
    common = made_by(runs, "tiny")
    cost = {"params": 3, "macs": 4}
    record = read_scores(write_scores(collect(common, runs, results, ["cpu"], cost), tmp_path / "out"))
    assert record["cost"] == cost
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
    tested = [run for task in tasks.values() for run in runs_of(task).values()]
    assert [run["layer_weights"] for run in tested] == [pytest.approx([1 / 3] * 3)] * 5  # what the stand-in has saved
    assert all("-m train" in task["commands"][0] for task in tasks.values())
    assert calls(tmp_path / "out") == ["asr", "er-fold1", "er-fold2", "pr", "sid"]

    assert run_all(plan(data, tmp_path), board, devices=["cuda"]) == results  # finished: not run again, on any device
    assert len(calls(tmp_path / "out")) == 5

    other = {**record, "label": "other", "tasks": {"pr": {**tasks["pr"], "per": 12.5}}}
    text = score_markdown([record | {"cost": None}, other | {"cost": None}])
    assert "| other | **12.50** | – | – | – | – |" in text
    assert "| fbank | 33.33 | 50.00 | 50.00 | 50.00 | 25.00 |" in text
    assert "SID 50.00 (a speaker drawn at random)" in text


@pytest.mark.parametrize(
    "label",
    ["ekd <3 teachers>", "<b>&", "a*b*c", "__init__", "x_ _y", "tick`s `", "[a](b)", "\\*", "tiny_hubert", "a|b"],
)
def test_a_label_stands_in_markdown_as_it_is(label):
    """As a renderer of tables shows it; tags were swallowed, and stars made the rest of a line slanted."""
    grid = [{"lr": 0.1, "dev": 1.0, "picked": True}, {"lr": 0.2, "dev": 2.0, "picked": False}]
    one = score_record(label, {"pr": score_of_task("pr", grid=grid)})
    clean, noisy = (Row(label, name, place, "", one) for place, name in enumerate(("clean", "_noise_")))
    difference = Difference(1.0, (0.0, 2.0), 0.5, None)
    row = Compared(label, 1.0, (0.0, 2.0), difference)
    compared = Comparison(label, Settings(), [OnTask(TASKS["pr"], [row], 1, [1])])
    texts = [
        score_markdown([one, one | {"label": "other", "normalize": True}]), grid_markdown([one]),
        robustness_markdown([clean, noisy]), comparison_markdown(compared),
    ]  # fmt: skip
    for text in texts:
        inline = [token for token in MarkdownIt().enable("table").parse(text) if token.type == "inline"]
        shown = ["".join(part.content for part in token.children) for token in inline]
        assert label in shown
        assert label in shown[-1] or text in (texts[1], texts[2])  # in the note too
    assert "_noise_" in [
        token.children[0].content for token in MarkdownIt().enable("table").parse(texts[2]) if token.children
    ]


def test_the_best_of_a_column():
    """The least of error rates, the most of accuracies; none where all are equal or there is one."""
    rows = [
        score_record(
            tasks={"pr": score_of_task("pr", one), "sid": score_of_task("sid", one), "er": score_of_task("er")}
        )
        for one in (30.0, 10.0, 20.0, 10.0)
    ]
    rows.append(score_record(tasks={"pr": score_of_task("pr", 90.0)}))
    best = {column.task: best_rows(rows, column) for column in OF_TASKS}
    assert best == {"pr": {1, 3}, "sid": {0}, "er": set(), "asr": set(), "ks": set(), "ic": set()}
    assert best_rows(rows[:1], OF_TASKS[0]) == set()


def test_a_score_whose_data_are_gone_is_left_out(tmp_path, stand_in, board, caplog):
    data = make_data(tmp_path / "own")

    def scores(*tasks):
        runs = plan(data, tmp_path, tasks)
        common = made_by(runs, "tiny")
        earlier = earlier_record(common, tmp_path / "out")
        write_scores(collect(common, runs, run_all(runs, board), ["cpu"], earlier=earlier), tmp_path / "out")
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
    others = footnote([row("a", ["fold1", "fold2"], True), row("b", ["fold3", "fold4"], True)])
    assert "ER: mean of fold1, fold2 (a); mean of fold3, fold4 (b): NOT comparable." in others
    one, other = (
        row(name, ["fold1"], False) | {"normalize": name == "a", "data": f"/data/{name}"} for name in ("a", "b")
    )
    told = footnote([one, other])
    assert "Upstream features: layer-normalised (a); not normalised (b): NOT comparable." in told
    assert "Data of /data/a (a); /data/b (b): comparable only if these hold the same." in told
    # s3prl normalises in the sum alone
    told = footnote([one | {"data": "x"}, one | {"data": "x", "label": "a, layer 2", "layer": 2}])
    assert "Upstream features: layer-normalised (a); not normalised (a, layer 2): NOT comparable." in told


def test_tasks_of_another_model_or_setting_are_not_mixed_into_a_record(data, tmp_path, stand_in, caplog):
    assert evaluate(data, tmp_path, tasks="pr") == 0
    out = tmp_path / "out"
    [run] = plan(data, tmp_path, ["pr"])
    common = made_by([run], "superb")
    assert list(earlier_record(common, out)["tasks"]) == ["pr"]
    assert len(common) == 11
    for key in set(common) - {"label"}:
        assert earlier_record({**common, key: "another"}, out) is None, key
        assert f"the scores of fbank (pr) are left out: their {key} was {common[key]}" in caplog.text
    assert earlier_record({**common, "label": "another"}, out) is not None  # a name is no condition


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
    assert [path.name for path in (tmp_path / "out" / "b").iterdir() if path.name.startswith("scores")] == []


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


def test_clips_alone_and_padded_batches_are_not_mixed_in_one_row(data, tmp_path, stand_in, capfd):
    cache = ("--cache-states", str(tmp_path / "states"))
    assert evaluate(data, tmp_path, tasks="pr") == 0
    assert evaluate(data, tmp_path, *cache, tasks="sid") == 2
    assert "was made with --cache-states off (fbank), now on" in " ".join(capfd.readouterr().err.split())
    assert evaluate(data, tmp_path, *cache, "--overwrite", tasks="sid") == 0
    record = read_scores(tmp_path / "out")
    assert list(record["tasks"]) == ["sid"] and record["cache_states"] is True
    assert evaluate(data, tmp_path, *cache, tasks="er") == 0
    assert list(read_scores(tmp_path / "out")["tasks"]) == ["sid", "er"]
    assert evaluate(data, tmp_path, *cache, tasks="pr") == 2  # that run was another


def test_disagreement_with_the_runner_is_said(data, tmp_path, stand_in, board, monkeypatch):
    from s3prl_ekd.evaluate import run as running

    monkeypatch.setattr(running, "runner_scores", lambda task, output, split: [99.0])
    runs = plan(data, tmp_path, ["pr"])
    record = collect(made_by(runs, "tiny"), runs, run_all(runs, board), ["cpu"])
    assert record["tasks"]["pr"]["per"] == 99.0  # the number of record stays the runner's
    assert "fbank, pr: the prediction files do not give the runner's number" in score_markdown([record])


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


def test_a_score_outlives_its_folder_which_another_seed_has_now(tmp_path):
    """Only what its own run has become since speaks against it."""
    score = {"seed": 1, "folder": "sid"}
    for seed, state, gone in ((2, "started", False), (1, "finished", False), (1, "started", True)):
        (tmp_path / "runs" / "sid").mkdir(parents=True, exist_ok=True)
        write_marker(tmp_path / "runs" / "sid", Marker({"seed": seed}, {}, state))
        assert outdated(score, tmp_path) is gone
