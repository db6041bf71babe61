"""The report: what it reads, and that its page needs nothing but itself."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from dataclasses import replace
from html import escape

import matplotlib.pyplot as plt
import pytest
import torch
from report_lab import write_evaluation, write_pretraining
from score_records import score_of_task, score_record

from s3prl_ekd.cli import main
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.marker import Marker, write_marker
from s3prl_ekd.evaluate.scores_file import run_folder
from s3prl_ekd.evaluate.table import OF_TASKS
from s3prl_ekd.metrics_file import forget_from, read_metrics
from s3prl_ekd.report.curves import head_losses_png, layer_weights_png, overview_png
from s3prl_ekd.report.html import breakable
from s3prl_ekd.report.page import page
from s3prl_ekd.report.pngs import write_pngs
from s3prl_ekd.report.score_figures import _cost_panel, cost_png
from s3prl_ekd.report.sources import Evaluation, read_pretraining, read_results, split_head
from s3prl_ekd.report.style import DARK, LIGHT, drawing, looks

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def pretraining(tmp_path):
    return write_pretraining(tmp_path / "ekd <demo>")


@pytest.fixture
def evaluation(tmp_path):
    return write_evaluation(tmp_path / "student")


def read_evaluation(folder) -> Evaluation:
    return read_results([folder])[1][0]


def test_a_resumed_runs_steps_are_read_once(pretraining):
    run = read_pretraining(pretraining)
    assert [line["step"] for line in run.metrics] == [10, 20, 30, 40]
    assert run.heads() == ["wavlm.4", "wavlm.8", "wavlm.12", "hubert.4", "hubert.8", "hubert.12"]
    assert list(run.configs) == ["config_model.yaml"]


def test_layer_weights_are_softmaxed_and_averaged_over_folds(evaluation):
    weights = read_evaluation(evaluation).layer_weights
    assert weights["pr"] == pytest.approx([0.25, 0.25, 0.5])
    third, sixth = 1 / 3, 1 / 6
    assert weights["er"] == pytest.approx([(third + 4 * sixth) / 2, (third + sixth) / 2, (third + sixth) / 2])


def test_layer_weights_of_the_record_count_before_those_of_a_checkpoint(evaluation):
    """Which may be gone, or cleared away and made again; records of earlier versions do not hold them."""
    record = json.loads((evaluation / "scores.json").read_text())
    record["tasks"]["pr"]["layer_weights"] = [0.5, 0.3, 0.2]
    record["tasks"]["er"]["folds"]["fold2"]["layer_weights"] = [1.0, 0.0, 0.0]
    (evaluation / "scores.json").write_text(json.dumps(record))
    (evaluation / "runs" / "pr" / "dev-best.ckpt").unlink()
    weights = read_evaluation(evaluation).layer_weights
    assert weights["pr"] == [0.5, 0.3, 0.2]
    assert weights["er"] == pytest.approx([(1 + 1 / 3) / 2, 1 / 6, 1 / 6])
    record["tasks"]["pr"]["layer_weights"] = []  # a single state
    (evaluation / "scores.json").write_text(json.dumps(record))
    assert "pr" not in read_evaluation(evaluation).layer_weights


def test_a_run_folder_that_another_seed_has_now_counts_once(evaluation):
    """Seed 1's folder was removed, and a later call with seed 2 alone took its name; scores.json has both."""
    record = json.loads((evaluation / "scores.json").read_text())
    first = record["tasks"]["pr"]
    record["tasks"]["pr"] = {**first, "seeds": {"1": first, "2": first, "3": {**first, "folder": "pr-seed3"}}}
    record["tasks"]["pr"]["standard_error"] = {"per": 0.0}
    (evaluation / "scores.json").write_text(json.dumps(record))
    other = evaluation / "runs" / "pr-seed3"
    other.mkdir()
    state = {"Featurizer": {"weights": torch.tensor([0.0, 0.0, 0.0])}, "Args": argparse.Namespace(), "Step": 5}
    torch.save(state, other / "dev-best.ckpt")
    write_marker(evaluation / "runs" / "pr", Marker({"seed": 2}, {}, "finished"))
    third = 1 / 3  # of seed 3, whose folder has no marker to say otherwise
    expected = [(0.25 + third) / 2, (0.25 + third) / 2, (0.5 + third) / 2]
    assert read_evaluation(evaluation).layer_weights["pr"] == pytest.approx(expected)
    write_marker(evaluation / "runs" / "pr", Marker({"seed": 2}, {}, "started"))  # its checkpoint is another by now
    assert read_evaluation(evaluation).layer_weights["pr"] == pytest.approx([third] * 3)
    (evaluation / "runs" / "pr" / "run.json").write_text("{")
    assert read_evaluation(evaluation).layer_weights["pr"] == pytest.approx([third] * 3)


def test_a_damaged_checkpoint_costs_its_layer_weights_alone(evaluation, caplog):
    file = evaluation / "runs" / "er-fold1" / "dev-best.ckpt"
    file.write_bytes(file.read_bytes()[:500])
    read = read_evaluation(evaluation)
    assert read.scores["tasks"]["er"]["acc"] == 50.0
    assert read.layer_weights["er"] == pytest.approx([4 / 6, 1 / 6, 1 / 6])  # the other fold's
    assert f"{file}: cannot be read (cut short, or not a PyTorch file): left out of the layer weights" in caplog.text


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_figures_are_png(pretraining, evaluation, theme):
    run = read_pretraining(pretraining)
    assert head_losses_png(run, theme).startswith(PNG)
    assert overview_png(run, theme).startswith(PNG)
    assert layer_weights_png([read_evaluation(evaluation)], theme).startswith(PNG)
    assert layer_weights_png([], theme) is None


@pytest.mark.parametrize("reference", [False, True])
def test_the_page_needs_nothing_but_itself(pretraining, evaluation, reference):
    text = page(*read_results([pretraining, evaluation]), "a <title>", ["a note & more"], reference)
    targets = re.findall(r'(?:src|href|srcset)\s*=\s*"([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
    assert len(targets) == 6  # three figures, light and dark
    assert all(target.startswith("data:image/png;base64,") for target in targets)
    assert not re.search(r"<(?:script|link|iframe)|@import", text)
    assert "a &lt;title&gt;" in text
    assert "student &amp; co" in text
    assert "&lt;/pre&gt;&lt;script&gt;" in text
    assert "12.50" in text
    assert ("DPHuBERT" in text) == reference
    assert ("Other people" in text) == reference


def test_figures_are_light_on_paper_and_told_in_words(pretraining, evaluation):
    """Browsers keep the source of a <picture> when they print, a dark one too; a style sheet they apply again."""
    text = page(*read_results([pretraining, evaluation]), "title")
    shown = re.findall(r'<img class=(\w+) alt="([^"]*)"', text)
    assert [theme for theme, _ in shown] == ["light", "dark"] * 3 and "<picture" not in text
    assert set(re.findall(r"@media ([^{]*dark)", text)) == {"screen and (prefers-color-scheme:dark"}
    loss, heads, layers = (alt for theme, alt in shown if theme == "light")
    assert loss == "training loss 10.000 at step 10, 2.500 at step 40"
    assert "hubert.12: L1 0.145, −log σ(cos) 0.500" in heads
    assert layers == "student &amp; co, PR: 0.25 0.25 0.50; student &amp; co, ER: 0.50 0.25 0.25"
    captions = re.findall("<figcaption>(.*?)</figcaption>", text)
    assert not {loss, heads, layers} & set(captions)


def test_every_table_can_be_printed(pretraining, evaluation, tmp_path):
    """Its head is on each sheet; what is wider than a sheet is not scrolled, and so not cut."""
    again = shutil.copytree(pretraining, tmp_path / "again")
    (again / "config_model.yaml").write_text("a: 1\n")
    (again / "config_runner.yaml").write_text("b: 1\n")
    text = page(*read_results([pretraining, again, evaluation]), "title", reference=True)
    tables = re.findall(r"<div class=scroll><table class=\"([\w ]+)\">(<thead>)?", text)
    assert len(tables) == text.count("<table") > 5
    assert [classes for classes, head in tables if not head] == ["plain"]  # the environment's, of one column
    paper = text.partition("@media print")[2]
    assert ".scroll{overflow:visible}" in paper and "first-child{position:static}" in paper  # sticky cells lose lines


def test_on_paper_a_closed_fold_leaves_no_heading(pretraining, evaluation):
    """Neither its own nor that of a section of nothing else; one that the reader has opened is printed."""
    (pretraining / "config_model.yaml").write_text("a: 1\n")
    text = page(*read_results([pretraining, evaluation]), "title")
    assert "<section><h2>Pretraining configuration</h2><details><summary>" in text
    paper = text.partition("@media print")[2]
    assert "details:not([open]),section:not(:has(>:not(h2,details:not([open])))){display:none}" in paper


def test_long_names_and_commands_do_not_widen_the_page(evaluation):
    assert breakable("a_b-c.d/e <f> lr_1.0e-3") == "a_<wbr>b-<wbr>c.<wbr>d/<wbr>e &lt;f&gt; lr_1.0e-3"
    assert "pre{white-space:pre-wrap" in page([], [read_evaluation(evaluation)], "title")


def test_many_models_do_not_bury_what_follows(evaluation):
    one = read_evaluation(evaluation)
    few, many = (page([], [replace(one)] * number, "title") for number in (12, 13))
    for summary in ("13 models", "13 models' commands", "13 models' raw scores"):
        assert f"<summary>{escape(summary)}</summary>" in many
    assert "<summary>12 models" not in few and "<span>evaluation of 12 models" in few


@pytest.mark.parametrize("text", ["[", "[]", '{"tasks": {}}', '{"label": "x", "tasks": {"pr": 3}}'])
def test_another_file_of_that_name_is_one_line(tmp_path, capsys, text):
    (tmp_path / "scores.json").write_text(text)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert f"{tmp_path / 'scores.json'}: not a scores.json of s3prl-ekd evaluate: " in capsys.readouterr().err


def test_folders_that_hold_no_results(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(EkdError, match="metrics.jsonl:1: expected a JSON object with a step"):
        read_results([tmp_path])
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(EkdError, match="no log step yet"):
        read_results([tmp_path])


def test_a_folder_without_results_is_left_out_beside_others(pretraining, evaluation, tmp_path, caplog):
    unfinished, empty = tmp_path / "unfinished", tmp_path / "empty"
    (unfinished / "runs").mkdir(parents=True)
    empty.mkdir()
    (empty / "metrics.jsonl").write_text("")
    pretrainings, evaluations = read_results([unfinished, pretraining, empty, evaluation])
    assert [one.folder for one in (*pretrainings, *evaluations)] == [pretraining, evaluation]
    first, second = caplog.messages
    assert first.startswith(f"left out: {unfinished}: holds neither metrics.jsonl")
    assert second.startswith(f"left out: {empty / 'metrics.jsonl'}: no log step yet")
    with pytest.raises(EkdError, match=f"{unfinished}: holds neither metrics.jsonl .* nor scores.json"):
        read_results([unfinished, empty])


@pytest.mark.parametrize("name", ["metrics.jsonl", "validation.jsonl", "notes.yaml"])
def test_a_file_that_is_no_utf8_is_one_line_by_its_name(pretraining, evaluation, name, caplog):
    (pretraining / name).write_bytes(b"caf\xe9\n")
    with pytest.raises(EkdError, match=rf"{name}: .*'utf-8' codec can't decode"):
        read_results([pretraining])
    assert len(read_results([pretraining, evaluation])[1]) == 1
    assert f"left out: {pretraining / name}" in caplog.text


def test_what_is_joined_or_a_difference_is_one_teachers_layer(pretraining):
    heads = {name: {"l1": 1.0, "cosine": 0.5} for name in ("average.8+12", "average.4+8", "residual.4-8")}
    (pretraining / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, "lr": 1e-4, "heads": heads}) + "\n")
    run = read_pretraining(pretraining)
    assert run.heads() == ["average.4+8", "average.8+12", "residual.4-8"]
    assert [split_head(name) for name in run.heads()] == [("average", "4+8"), ("average", "8+12"), ("residual", "4-8")]
    assert head_losses_png(run).startswith(PNG)


def test_runs_and_models_of_one_name_are_told_apart(pretraining, evaluation, tmp_path):
    again, other = tmp_path / "b" / pretraining.name, tmp_path / "other"
    shutil.copytree(pretraining, again)
    shutil.copytree(evaluation, other)
    words = [str(one) for one in (pretraining, again, evaluation, other)]
    assert main(["report", *words, "--out", str(tmp_path / "r.html")]) == 0
    names = {file.name for file in (tmp_path / "r").iterdir()}
    assert {f"{pretraining.name}-loss.png", f"{pretraining.name}-2-loss.png"} <= names
    assert [run.label for run in read_results([pretraining, again])[0]] == [
        f"{pretraining.name} ({folder})" for folder in (pretraining, again)
    ]
    labels = [one.scores["label"] for one in read_results([evaluation, other])[1]]
    assert labels == [f"student & co ({evaluation})", f"student & co ({other})"]
    # the page of one run beside it: its figures do not go into the run's own folder
    before = sorted(again.iterdir())
    assert main(["report", str(again), "--out", str(again) + ".html"]) == 0
    assert sorted(again.iterdir()) == before and (again.parent / f"{again.name}_figures").is_dir()


def test_a_folder_given_twice_is_read_once(pretraining, evaluation):
    twice = [pretraining, evaluation, pretraining.parent / "." / pretraining.name, pretraining / ".." / "student"]
    assert [len(found) for found in read_results(twice)] == [1, 1]
    assert read_results(twice)[0][0].label == pretraining.name


def test_a_tables_row_that_is_given_too_is_shown_once(evaluation):
    record = json.loads((evaluation / "scores.json").read_text())
    rows = [{**record, "folder": evaluation.name}]
    table = evaluation.parent
    (table / "scores.json").write_text(json.dumps({"models": rows}))
    for folders in ([table, evaluation], [evaluation, table]):
        assert [one.scores["label"] for one in read_results(folders)[1]] == ["student & co"]
    rows[0]["label"] = "its earlier name"  # a call on the row's own folder gave it another since
    (table / "scores.json").write_text(json.dumps({"models": rows}))
    assert [one.scores["label"] for one in read_results([table, evaluation])[1]] == ["its earlier name"]


def test_no_two_runs_have_one_figure(pretraining, tmp_path):
    """The second "run" would take the name of the third."""
    runs = [read_pretraining(pretraining) for _ in range(3)]
    for run, folder in zip(runs, ("a/run", "b/run", "run-2"), strict=True):
        run.folder = tmp_path / folder
    assert len(write_pngs(tmp_path / "figures", runs, [])) == 7


def test_any_label_can_be_drawn(pretraining, evaluation):
    record = json.loads((evaluation / "scores.json").read_text()) | {"label": r"half $\x$ or {"}
    record["cost"] = {"params": 1, "macs": 10**12}
    (evaluation / "scores.json").write_text(json.dumps(record))
    one = read_evaluation(evaluation)
    assert layer_weights_png([one]).startswith(PNG)
    assert cost_png([one.scores]) is None  # a point alone
    assert cost_png([one.scores, one.scores | {"label": "other"}]).startswith(PNG)
    (pretraining / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n{"step": 2, "loss": 1.0}\n')
    assert "half $" in page([read_pretraining(pretraining)], [one], "title")


def test_cost_is_drawn_over_macs():
    records = [
        score_record(label, {"pr": score_of_task("pr", per)}, cost={"params": 1, "macs": macs})
        for label, per, macs in (("a", 10.0, 2 * 10**9), ("b", 20.0, 7 * 10**9))
    ]
    with drawing(LIGHT):
        figure, axis = plt.subplots()
        _cost_panel(axis, OF_TASKS[0], records, looks(["a", "b"], LIGHT))
        assert [tuple(one.lines[0].get_xydata()[0]) for one in axis.containers] == [(2.0, 10.0), (7.0, 20.0)]
        plt.close(figure)


@pytest.mark.parametrize("name", ["pr", "../../pr", "/etc/pr", "runs/pr"])
def test_a_record_leads_to_no_other_folder(tmp_path, name):
    assert run_folder(tmp_path, {"folder": name}) == tmp_path / "runs" / "pr"


def test_a_hundred_models_look_different():
    found = looks([str(number) for number in range(100)], LIGHT)
    assert len(set(found.values())) == 100


def test_a_killed_runs_steps_are_forgotten_where_it_goes_on(tmp_path):
    file = tmp_path / "metrics.jsonl"
    # checkpoint at 40, killed in the middle of a line; gone on with another log_step
    file.write_text("".join(f'{{"step": {step}, "run": 1}}\n' for step in (20, 40, 60, 80)) + '{"step": 100, "ru')
    assert [line["step"] for line in read_metrics(file)] == [20, 40, 60, 80]
    forget_from(file, 50)
    assert file.read_text() == '{"step": 20, "run": 1}\n{"step": 40, "run": 1}\n'
    good = file.read_text()
    # as an older version went on behind half a line
    file.write_text(good + '{"step": 60, "r{"step": 50, "run": 2}\n{"st')
    forget_from(file, 50)
    assert file.read_text() == good + '{"step": 60, "r{"step": 50, "run": 2}\n{"st\n'
    file.write_text(good + '{"step": 60, "run": 1}\n{"step": 50, "run": 2}\n')  # by an older version
    assert [(line["step"], line["run"]) for line in read_metrics(file)] == [(20, 1), (40, 1), (50, 2)]


@pytest.mark.parametrize("step", ['"2"', "1e400", "1.5", "null"])
def test_a_step_that_is_no_whole_number_ends_no_training_and_is_one_line(tmp_path, step):
    file = tmp_path / "metrics.jsonl"
    damaged = f'{{"step": 1}}\n{{"step": {step}}}\n{{"step": 3}}\n'
    file.write_text(damaged)
    with pytest.raises(EkdError, match=r"metrics.jsonl:2: expected a JSON object with a step: .*no whole number"):
        read_metrics(file)
    forget_from(file, 2)
    assert file.read_text() == damaged + "\n"


def test_a_record_from_elsewhere_puts_no_markup_and_no_other_file_into_the_page(evaluation, tmp_path):
    """Of a file that a record names, the report shows nothing but an untrained student's configuration."""
    record = json.loads((evaluation / "scores.json").read_text())
    secret, mine = tmp_path / "secret.yaml", tmp_path / "mine.yaml"
    secret.write_text("password: hunter2\n")
    mine.write_text("base: config_model.yaml  # of mine\n")
    grid = [{"lr": 0.1, "dev": 12.5, "picked": True}]
    for name, file in (("student", mine), ("other", secret)):
        (tmp_path / name).mkdir(exist_ok=True)
        row = {**record, "label": f"{name} <b>", "preset": "<script>", "model_config": str(file)}
        row["tasks"] = {"pr": {**record["tasks"]["pr"], "grid": grid}}
        (tmp_path / name / "scores.json").write_text(json.dumps(row))
    _, evaluations = read_results([tmp_path / "student", tmp_path / "other"])
    text = page([], evaluations, "t")
    assert "<script>" not in text and "<b>" not in text.replace("<div><b>", "")
    assert "# of mine" in text and "hunter2" not in text
    row["label"] = "a\x1b[31mb"
    (tmp_path / "other" / "scores.json").write_text(json.dumps(row))
    with pytest.raises(EkdError, match=r"scores.json: not a scores.json .*: label: .*'a\\x1b\[31mb'"):
        read_results([tmp_path / "other"])
