"""The report: what it reads, that its page needs nothing but itself, and the command."""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
from dataclasses import replace

import pytest
import torch

from s3prl_ekd.errors import EkdError
from s3prl_ekd.metrics_file import forget_from, read_metrics
from s3prl_ekd.report import command, comparison
from s3prl_ekd.report.curves import comparison_png, head_losses_png, layer_weights_png, overview_png, smooth
from s3prl_ekd.report.page import page
from s3prl_ekd.report.pngs import write_pngs
from s3prl_ekd.report.score_figures import cost_png, looks
from s3prl_ekd.report.sources import Evaluation, read_pretraining, read_results, split_head
from s3prl_ekd.report.style import DARK, LIGHT

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def pretraining(tmp_path):
    folder = tmp_path / "ekd <demo>"
    folder.mkdir()
    lines = []
    for step in (10, 20, 30, 20, 30, 40):  # 20 and 30 again: the run was resumed from step 10
        heads = {
            f"{teacher}.{layer}": {"l1": 1 / step + layer / 100, "cosine": 0.5, "target_norm": 1.0}
            for teacher in ("wavlm", "hubert") for layer in (12, 4, 8)
        }  # fmt: skip
        lines.append({"step": step, "loss": 100.0 / step, "lr": 1e-4, "heads": heads})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config_model.yaml").write_text("ekd: {mode: multi_head}  # </pre><script>\n")
    (folder / "args_1.yaml").write_text("expname: x\n")
    return folder


@pytest.fixture
def evaluation(tmp_path):
    folder = tmp_path / "student"
    weights = {"pr": [0.0, 0.0, math.log(2)], "er-fold1": [0.0, 0.0, 0.0], "er-fold2": [math.log(4), 0.0, 0.0]}

    def part(name, metric, value, **more):
        run = folder / "runs" / name
        run.mkdir(parents=True)
        state = {"Featurizer": {"weights": torch.tensor(weights[name])}, "Args": argparse.Namespace(x=1), "Step": 5}
        torch.save(state, run / "dev-best.ckpt")
        return {
            metric: value, "rescored": {metric: value, "agrees": True, **more}, "dev": value, "seconds": 75.0,
            "folder": name, "checkpoint": f"/moved/away/runs/{name}/dev-best.ckpt",
            "commands": ["run_downstream.py -m train"],
        }  # fmt: skip

    folds = {fold: part(f"er-{fold}", "acc", 50.0, majority=40.0) for fold in ("fold1", "fold2")}
    tasks = {
        "pr": {**part("pr", "per", 12.5), "chance": None},
        "er": {"acc": 50.0, "rescored": {"acc": 50.0, "agrees": True}, "dev": 1.0, "seconds": 1.0, "folds": folds,
               "commands": [], "chance": 40.0},
    }  # fmt: skip
    record = {"label": "student & co", "upstream": "ekd_student", "preset": "tiny", "seed": 1, "tasks": tasks}
    record |= {"cost": None, "versions": {"torch": "2.11"}, "machine": {"cpu_cores": 2}}
    (folder / "scores.json").write_text(json.dumps(record))
    return folder


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


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
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
    if reference:
        assert "Other people" in text


def test_the_command_writes_page_and_figures(pretraining, evaluation, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / "out" / "report.html"
    assert command.run(parser.parse_args([str(pretraining), str(evaluation), "--out", str(out)])) == 0
    assert out.read_text().startswith("<!doctype html>")
    assert {file.suffix for file in (tmp_path / "out" / "report").iterdir()} == {".png"}
    assert "student & co" in capsys.readouterr().out
    (tmp_path / "folder.html").mkdir()
    for wrong in ("folder.html", "figures", "report.png"):  # figures/ is where the figures of figures.html go
        with pytest.raises(EkdError, match=f"--out .*{wrong}: expected a file that ends in .html"):
            command.run(parser.parse_args([str(pretraining), "--out", str(tmp_path / wrong)]))
        assert not (tmp_path / wrong).is_file()


def test_folders_that_hold_no_results(tmp_path):
    with pytest.raises(EkdError, match="holds neither metrics.jsonl .* nor scores.json"):
        read_results([tmp_path])
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
    with pytest.raises(EkdError, match=f"{unfinished}: holds neither"):
        read_results([unfinished, empty])


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
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = [str(one) for one in (pretraining, again, evaluation, other)]
    assert command.run(parser.parse_args([*words, "--out", str(tmp_path / "r.html")])) == 0
    names = {file.name for file in (tmp_path / "r").iterdir()}
    assert {f"{pretraining.name}-loss.png", f"{pretraining.name}-2-loss.png"} <= names
    assert [run.label for run in read_results([pretraining, again])[0]] == [
        f"{pretraining.name} ({folder})" for folder in (pretraining, again)
    ]
    labels = [one.scores["label"] for one in read_results([evaluation, other])[1]]
    assert labels == [f"student & co ({evaluation})", f"student & co ({other})"]
    # the page of one run beside it: its figures do not go into the run's own folder
    before = sorted(again.iterdir())
    assert command.run(parser.parse_args([str(again), "--out", str(again) + ".html"])) == 0
    assert sorted(again.iterdir()) == before and (again.parent / f"{again.name}_figures").is_dir()


@pytest.fixture
def runs(pretraining, tmp_path):
    """Two runs that share some heads, one with held-out speech; and one of other heads, without its settings."""
    ours, other, joined = pretraining, tmp_path / "other", tmp_path / "joined"
    for folder in (other, joined):
        shutil.copytree(ours, folder)
    (ours / "config_model.yaml").write_text(
        "ekd: {mode: multi_head, teachers: [{name: hubert, source: hubert_base, layers: [4, 8, 12]}]}\n"
    )
    (other / "config_model.yaml").write_text(
        "ekd: {teachers: [{name: wavlm, source: wavlm_base, layers: [12]}], cosine_weight: 0.5}\n"
    )
    (joined / "config_model.yaml").write_text("no mapping")
    lines = [json.loads(line) for line in (ours / "metrics.jsonl").read_text().splitlines()]
    (joined / "metrics.jsonl").write_text(
        "".join(json.dumps(line | {"heads": {"concat.4": line["heads"]["wavlm.4"]}}) + "\n" for line in lines)
    )
    held_out = [{"step": step, "loss": loss, "seconds": 9.0, "heads": lines[0]["heads"]}
                for step, loss in ((20, 2.5), (40, 3.0))]  # fmt: skip
    (ours / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in held_out))
    return [read_pretraining(folder) for folder in (ours, other, joined)]


def test_runs_are_compared_by_what_they_came_to(runs):
    rows = dict(comparison.results(runs))
    assert rows["steps"] == ["40"] * 3 and rows["training loss"] == ["2.5000"] * 3
    assert rows["validation loss"] == ["3.0000", "–", "–"]
    assert rows["lowest (at step)"] == ["2.5000 (20)", "–", "–"]
    assert "s of audio a second" not in rows  # none has logged it
    heads = dict(comparison.heads(runs))
    assert len(heads) == 6 and "concat.4" not in str(heads)
    assert heads["wavlm.4: L1 + −log σ(cos), training"] == ["0.0650 + 0.5000"] * 2 + ["–"]


def test_heads_are_compared_on_held_out_speech_where_all_have_it(runs):
    (runs[0].folder.parent / "other" / "validation.jsonl").write_text((runs[0].folder / "validation.jsonl").read_text())
    again = [read_pretraining(run.folder) for run in runs]
    assert dict(comparison.heads(again))["hubert.8: L1 + −log σ(cos), validation"] == ["0.1800 + 0.5000"] * 2 + ["–"]


def test_a_run_without_held_out_speech_does_not_hide_that_of_others(runs):
    ours, other, _ = runs
    again = replace(other, validation=ours.validation)
    found = dict(comparison.heads([ours, again, other]))
    assert found["hubert.8: L1 + −log σ(cos), validation"] == ["0.1800 + 0.5000"] * 2 + ["–"]
    assert found["hubert.8: L1 + −log σ(cos), training"] == ["0.1050 + 0.5000"] * 3
    assert len(found) == 12


def test_settings_that_differ_are_named_with_their_defaults(runs):
    found = dict(comparison.differences(runs[:2]))
    assert found == {
        "ekd.teachers.hubert.source": ["hubert_base", "–"],
        "ekd.teachers.hubert.layers": ["[4, 8, 12]", "–"],
        "ekd.teachers.wavlm.source": ["–", "wavlm_base"],
        "ekd.teachers.wavlm.layers": ["–", "[12]"],
        "ekd.cosine_weight": ["1.0", "0.5"],  # mode is multi_head in both, said or not
    }
    assert comparison.differences(runs[:1] * 2) == []
    balanced = runs[1].folder / "config_model.yaml"
    balanced.write_text(balanced.read_text().replace("cosine_weight: 0.5", "balance: {decay: 0.9}"))
    found = dict(comparison.differences([runs[0], read_pretraining(runs[1].folder)]))
    assert found["ekd.balance.decay"] == ["–", "0.9"] and "ekd.balance" not in found


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_several_runs_are_drawn_over_each_other(runs, theme):
    assert comparison_png(runs, theme).startswith(PNG)
    assert comparison_png(runs[1:] * 8, theme).startswith(PNG)  # more than there are colours; none with validation
    assert overview_png(runs[0], theme).startswith(PNG) and head_losses_png(runs[0], theme).startswith(PNG)
    text = page(runs, [], "title")
    assert "Pretraining runs compared" in text and "ekd.cosine_weight" in text and "wavlm.12: L1" in text
    assert "compared" not in page(runs[:1], [], "title")


def test_the_terminal_has_the_runs_too(runs, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = [str(run.folder) for run in runs]
    assert command.run(parser.parse_args([*words, "--out", str(tmp_path / "r.html")])) == 0
    assert "2.5000 (20)" in capsys.readouterr().out
    assert (tmp_path / "r" / "pretraining-runs.png").is_file()


def test_run_names_are_whole_in_a_narrow_terminal(runs, tmp_path, capsys, monkeypatch):
    """Runs of one name are told apart by the end of their paths."""
    monkeypatch.setenv("COLUMNS", "80")
    folders = [
        tmp_path / "a_folder_of_experiments_of_which_there_are_many" / one / "run" for one in ("first", "second")
    ]
    for folder in folders:
        shutil.copytree(runs[0].folder, folder)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args([*map(str, folders), "--out", str(tmp_path / "r.html")])) == 0
    shown = capsys.readouterr().out
    column = "".join(line[2:].split("  ")[0].strip() for line in shown.splitlines() if line.startswith("  "))
    assert all(f"({folder})" in column for folder in folders), shown


def test_a_run_that_is_not_at_its_end_says_so(runs):
    ours, other, joined = (run.folder for run in runs)
    runner = "runner: {total_steps: %s, log_step: 10, n_epochs: %s}"
    (ours / "config_runner.yaml").write_text(runner % (60, -1))
    (other / "config_runner.yaml").write_text(runner % (49, -1))  # the next log step would be 50
    (joined / "config_runner.yaml").write_text(runner % (60, 2))  # total_steps is not where it ends
    found = dict(comparison.results([read_pretraining(folder) for folder in (ours, other, joined)]))
    assert found["steps"] == ["40 of 60", "40", "40"]
    for odd in ("", "no mapping", "runner: {total_steps: many, log_step: 10}", "a: [b"):
        (ours / "config_runner.yaml").write_text(odd)
        assert dict(comparison.results([read_pretraining(ours)]))["steps"] == ["40"]


def test_the_head_of_the_page_is_not_about_one_run_of_several(runs):
    def facts(runs):
        return re.search("<div class=facts>(.*?)</header>", page(runs, [], "title"))[1]

    assert "pretraining steps" in facts(runs[:1])
    assert "<b>3</b><span>pretraining runs</span>" in facts(runs) and "pretraining steps" not in facts(runs)


def test_a_folder_given_twice_is_read_once(pretraining, evaluation):
    twice = [
        pretraining,
        evaluation,
        pretraining.parent / "." / pretraining.name,
        evaluation,
        pretraining / ".." / "student",
    ]
    assert [len(found) for found in read_results(twice)] == [1, 1]
    assert read_results(twice)[0][0].label == pretraining.name


def test_no_two_runs_have_one_figure(pretraining, tmp_path):
    """The second "run" would take the name of the third."""
    runs = [read_pretraining(pretraining) for _ in range(3)]
    for run, folder in zip(runs, ("a/run", "b/run", "run-2"), strict=True):
        run.folder = tmp_path / folder
    assert len(write_pngs(tmp_path / "figures", runs, [])) == 7


@pytest.mark.parametrize("letters", [3, 60, 400])
def test_names_of_runs_fit_below_the_figure(runs, monkeypatch, letters):
    """None is cut, and the panels keep their height, however many and however long they are."""
    seen = []
    monkeypatch.setattr("s3prl_ekd.report.curves.png", lambda figure: seen.append(figure) or b"")
    many = [replace(runs[0], label=f"{number} {'x' * letters}") for number in range(11)]
    comparison_png(many)
    (figure,) = seen
    figure.draw_without_rendering()
    (legend,) = figure.legends
    inner, outer = legend.get_window_extent(), figure.bbox
    assert outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0
    panel = figure.axes[0].get_window_extent()
    assert inner.y1 < panel.y0 and panel.height > 2.0 * figure.dpi


def test_a_run_of_one_log_step_is_seen(runs, monkeypatch):
    seen = []
    monkeypatch.setattr("s3prl_ekd.report.curves.png", lambda figure: seen.append(figure) or b"")
    begun = replace(runs[1], metrics=runs[1].metrics[:1])
    comparison_png([runs[0], begun])
    markers = [line.get_marker() for line in seen[0].axes[0].lines if line.get_label() == begun.label]
    assert markers == ["o"]


def test_a_smoothed_curve_has_its_ends_and_its_mean():
    values = [float(number % 2) for number in range(400)]
    smoothed = smooth(values)
    assert len(smoothed) == 400 and max(abs(value - 0.5) for value in smoothed) < 0.1
    assert smooth([1.0, 3.0]) == [1.0, 3.0] and smooth([]) == []


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


def test_a_hundred_models_look_different():
    found = looks([{"label": str(number)} for number in range(100)], LIGHT)
    assert len(set(found.values())) == 100


def test_a_killed_runs_steps_are_forgotten_where_it_goes_on(tmp_path):
    file = tmp_path / "metrics.jsonl"
    # checkpoint at 40, killed in the middle of a line; gone on with another log_step
    file.write_text("".join(f'{{"step": {step}, "run": 1}}\n' for step in (20, 40, 60, 80)) + '{"step": 100, "ru')
    assert [line["step"] for line in read_metrics(file)] == [20, 40, 60, 80]
    forget_from(file, 50)
    assert file.read_text() == '{"step": 20, "run": 1}\n{"step": 40, "run": 1}\n'
    good = file.read_text()
    file.write_text(
        good + '{"step": 60, "r{"step": 50, "run": 2}\n{"st'
    )  # as an older version went on behind half a line
    forget_from(file, 50)
    assert file.read_text() == good + '{"step": 60, "r{"step": 50, "run": 2}\n{"st\n'
    file.write_text(good + '{"step": 60, "run": 1}\n{"step": 50, "run": 2}\n')  # by an older version
    assert [(line["step"], line["run"]) for line in read_metrics(file)] == [(20, 1), (40, 1), (50, 2)]
