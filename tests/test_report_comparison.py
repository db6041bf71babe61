"""Several pretraining runs in one report: what they came to, in what they differ, how they are drawn and named.

And several models in one table: what is marked.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html import escape

import pytest
from report_lab import write_pretraining
from score_records import score_of_task, score_record

from s3prl_ekd.cli import main
from s3prl_ekd.console import Console
from s3prl_ekd.evaluate.grid_table import grid_markdown, grid_tables
from s3prl_ekd.evaluate.table import score_markdown, score_table
from s3prl_ekd.evaluate.tasks import TASKS
from s3prl_ekd.report import comparison
from s3prl_ekd.report.curves import comparison_png, head_losses_png, overview_png, smooth
from s3prl_ekd.report.page import page
from s3prl_ekd.report.scores import learning_rates, scores
from s3prl_ekd.report.sources import read_pretraining
from s3prl_ekd.report.style import DARK, LIGHT

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def pretraining(tmp_path):
    return write_pretraining(tmp_path / "ekd <demo>")


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
    assert heads["wavlm.4, training"] == ["0.0650 + 0.5000"] * 2 + ["–"]


def test_a_validation_of_nan_is_not_the_lowest(runs):
    run = runs[0]
    nan = {**run.validation[0], "step": 10, "loss": float("nan")}
    shown = [
        dict(comparison.results([replace(run, validation=lines)])).get("lowest (at step)")
        for lines in ([nan, *run.validation], [*run.validation, {**nan, "step": 50}], [nan])
    ]
    assert shown == [["2.5000 (20)"], ["2.5000 (20)"], None]


@pytest.mark.parametrize(
    ("targets", "accumulate", "told"),
    [
        ("{}", 1, False),
        ("{normalise: standardise}", 1, True),
        ("{normalise: phi_s, fit_batches: 21}", 1, True),  # the lowest loss is of step 20
        ("{normalise: phi_s, fit_batches: 20}", 1, False),
        ("{normalise: phi_s, fit_batches: 40}", 2, False),
    ],
)
def test_the_lowest_loss_on_another_scale_is_told_as_such(runs, targets, accumulate, told):
    run, other, _ = runs
    model = run.configs["config_model.yaml"].strip().removesuffix("}") + f", targets: {targets}}}"
    changed = {"config_model.yaml": model, "config_runner.yaml": f"runner: {{gradient_accumulate_steps: {accumulate}}}"}
    normalised = replace(run, configs=changed)
    said = f"lowest validation loss of {escape(run.label)} is on another scale than its last"
    assert (said in comparison.comparison([normalised, other])) == told
    last = replace(normalised, validation=run.validation[:1])  # is the lowest
    assert "another scale than its last" not in comparison.comparison([last, other])


@pytest.mark.parametrize("normalise", ["standardise", "null"])
def test_the_terminal_says_of_the_lowest_loss_that_it_is_on_another_scale(runs, normalise, capsys):
    run, other, _ = runs
    model = run.configs["config_model.yaml"].strip().removesuffix("}") + f", targets: {{normalise: {normalise}}}}}"
    (run.folder / "config_model.yaml").write_text(model)
    (run.folder / "config_runner.yaml").write_text("runner: {gradient_accumulate_steps: 1}")
    assert main(["report", str(run.folder), str(other.folder), "--out", str(run.folder.parent / "r.html")]) == 0
    told = f"lowest validation loss of {run.label} is on another scale" in capsys.readouterr().out
    assert told == (normalise == "standardise")


def test_heads_are_compared_on_held_out_speech_where_all_have_it(runs):
    (runs[0].folder.parent / "other" / "validation.jsonl").write_text((runs[0].folder / "validation.jsonl").read_text())
    again = [read_pretraining(run.folder) for run in runs]
    assert dict(comparison.heads(again))["hubert.8, validation"] == ["0.1800 + 0.5000"] * 2 + ["–"]


def test_a_run_without_held_out_speech_does_not_hide_that_of_others(runs):
    ours, other, _ = runs
    again = replace(other, validation=ours.validation)
    found = dict(comparison.heads([ours, again, other]))
    assert found["hubert.8, validation"] == ["0.1800 + 0.5000"] * 2 + ["–"]
    assert found["hubert.8, training"] == ["0.1050 + 0.5000"] * 3
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


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_several_runs_are_drawn_over_each_other(runs, theme):
    assert comparison_png(runs, theme).startswith(PNG)
    assert comparison_png(runs[1:] * 8, theme).startswith(PNG)  # more than there are colours; none with validation
    assert overview_png(runs[0], theme).startswith(PNG) and head_losses_png(runs[0], theme).startswith(PNG)
    text = page(runs, [], "title")
    assert (
        "Pretraining runs compared" in text
        and "ekd.<wbr>cosine_<wbr>weight" in text
        and "Heads in common: L1 +" in text
    )
    assert "compared" not in page(runs[:1], [], "title")


def test_the_terminal_has_the_runs_too(runs, tmp_path, capsys):
    words = [str(run.folder) for run in runs]
    assert main(["report", *words, "--out", str(tmp_path / "r.html")]) == 0
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
    assert main(["report", *map(str, folders), "--out", str(tmp_path / "r.html")]) == 0
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
    several = facts(runs)
    assert "<b>3</b><span>pretraining runs</span>" in several and "pretraining steps" not in several


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


def test_a_training_loss_is_the_mean_over_the_last_tenth_of_its_log_steps(pretraining):
    lines = [{"step": step, "loss": float(step), "lr": 1e-4, "heads": {}} for step in range(1, 41)]
    run = replace(read_pretraining(pretraining), metrics=lines)
    assert dict(comparison.results([run]))["training loss"] == [f"{(37 + 38 + 39 + 40) / 4:.4f}"]


def marked(records, grid: bool) -> dict[str, set[tuple[str, str]]]:
    """(model, first word of the column) of every marked cell of the score table or of the grid, in its three forms."""
    (terminal,) = grid_tables(records) if grid else [score_table(records)]
    names, *columns = terminal.columns
    rich = {
        (name, str(column.header).split()[0])
        for column in columns for name, cell in zip(names.cells, column.cells, strict=True) if "[bold green]" in cell
    }  # fmt: skip
    lines = [line.split("|")[1:-1] for line in (grid_markdown if grid else score_markdown)(records).splitlines()]
    head, _, *rows = [[cell.strip() for cell in line] for line in lines if line]
    bold = {(row[0], name.split()[0]) for row in rows for name, cell in zip(head, row, strict=True) if "**" in cell}
    html = learning_rates(records) if grid else scores(records)
    rows = [re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", row) for row in re.findall("<tr>.*?</tr>", html)]
    head, *rows = rows
    head = ["", *(text for _, text in head)][-len(rows[0]) :]
    classes = {
        (re.sub("<.*", "", row[0][1]), name.split()[0])
        for row in rows for name, (mark, _) in zip(head, row, strict=True) if re.search("best|picked", mark)
    }  # fmt: skip
    return {"terminal": rich, "markdown": bold, "page": classes}


def test_every_table_marks_the_best_of_each_column_and_the_picked_rate():
    def record(label, **tasks):
        found = {
            name: {metric: value, "rescored": {"agrees": True}, "lr": 0.01} for name, (metric, value) in tasks.items()
        }
        rates = ((0.1, 30.0), (0.01, 20.0))
        found["pr"]["grid"] = [{"lr": lr, "dev": dev, "picked": lr == 0.01} for lr, dev in rates]
        return {"label": label, "upstream": "fbank", "preset": "tiny", "seed": 1, "tasks": found}

    records = [
        record("a", pr=("per", 10.0), sid=("acc", 50.0)),
        record("b", pr=("per", 20.0), sid=("acc", 50.0)),
        record("c", pr=("per", 10.0), sid=("acc", 40.0), er=("acc", 60.0)),  # er: nothing to compare with
    ]
    best = {("a", "PR"), ("c", "PR"), ("a", "SID"), ("b", "SID")}
    for form, cells in marked(records, grid=False).items():
        assert cells == best, form
    for form, cells in marked(records, grid=True).items():
        assert cells == {(name, "0.01") for name in "abc"}, form


@pytest.mark.parametrize(
    ("terminal", "columns", "folds"), [(True, 80, True), (True, 100, True), (True, 200, False), (False, 80, False)]
)
def test_a_table_wider_than_the_terminal_keeps_its_names_and_numbers(terminal, columns, folds, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    tasks = {
        name: score_of_task(name, 40.25 + number, standard_error={task.metric: 10.25})
        for number, (name, task) in enumerate(TASKS.items())
    }
    cost = {"params": 23.5e6, "macs": 1e12}
    console = Console(force_terminal=terminal, no_color=True)
    console.print_table(score_table([score_record("of_all_three_teachers", tasks, cost=cost)]))
    printed = capsys.readouterr().out
    for number in range(len(TASKS)):
        assert f"{40.25 + number:.2f}" in printed
    assert printed.count("± 10.25") == len(TASKS) and "…" not in printed and "1,000.0" in printed
    assert ("of_all_three_teachers" in printed) is not folds and "of_all_three" in printed
