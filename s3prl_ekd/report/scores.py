"""The report's sections about evaluations: scores, others' scores, cost, learning rates, layers, settings, environment.

HTML fragments only; their numbers come from ``scores.json``, the figures from ``score_figures.py`` and ``curves.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from s3prl_ekd.config import load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.compare import Comparison
from s3prl_ekd.evaluate.compare_table import HEADINGS, lines
from s3prl_ekd.evaluate.compare_table import note as comparison_note
from s3prl_ekd.evaluate.conditions import normalised
from s3prl_ekd.evaluate.differences import seeds_text
from s3prl_ekd.evaluate.distorted_result import CLEAN
from s3prl_ekd.evaluate.grid_table import NOTE, GridOfTask, grids
from s3prl_ekd.evaluate.models import read_states
from s3prl_ekd.evaluate.pretrainings import with_means
from s3prl_ekd.evaluate.provenance import versions
from s3prl_ekd.evaluate.robustness import note as robustness_note
from s3prl_ekd.evaluate.robustness import rows_of, table_lines
from s3prl_ekd.evaluate.scores_file import by_seed
from s3prl_ekd.evaluate.table import MISSING, OF_TASKS, best_rows, cell, columns_of, costs, footnote
from s3prl_ekd.evaluate.tasks import TASKS
from s3prl_ekd.report.curves import layer_weights_png
from s3prl_ekd.report.html import breakable, figure, fold, note, pre, section, table
from s3prl_ekd.report.reference import HIDDEN_SET, PUBLIC_SUPERB, Published
from s3prl_ekd.report.score_figures import cost_png, grid_png, robustness_png
from s3prl_ekd.report.sources import Evaluation

Records = Sequence[dict[str, Any]]
_OPEN_ROWS = 12  # more rows of a grid than this are folded away below its figure


def scores(records: Records) -> str:
    """The score table: one row a model, the best of each column marked."""
    rows = with_means(records)
    columns = columns_of(rows)
    best = {column: best_rows(rows, column) for column in columns}
    sizes = costs(rows)
    head = "".join(f"<th>{escape(heading)}</th>" for heading, _ in sizes)
    head += "".join(f"<th>{escape(column.heading)}</th>" for column in columns)
    body = ""
    for place, row in enumerate(rows):
        cells = "".join(f"<td class=size>{escape(size[place])}</td>" for _, size in sizes)
        for column in columns:
            spread = column.spread(row)
            small = f"<small>{spread}</small>" if spread else ""
            mark = " class=best" if place in best[column] else ""
            cells += f"<td{mark}>{cell(column.value(row))}{small}</td>"
        body += f"<tr><th>{breakable(row['label'])}<small>{escape(_made(row))}</small></th>{cells}</tr>"
    return section("Scores", table("scores", head, body) + note(footnote(records)))


def _made(row: dict[str, Any]) -> str:
    """How a row of the score table was made, below its label."""
    if "models" in row:
        return ", ".join(row["models"])
    return " · ".join([row["upstream"], *read_states(row), f"preset {row['preset']}", _seeds(row)])


def differences(compared: Comparison) -> str:
    """Each model's difference from the baseline with its interval, task by task."""
    head = "<th>upstream</th>" + "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    body, above = [], None
    for task, label, is_better, cells in lines(compared):
        mark = {None: "", True: " class=best", False: " class=worse"}[is_better]
        found = "".join(f"<td{mark if column > 1 else ''}>{escape(text)}</td>" for column, text in enumerate(cells))
        body.append(f"<tr><th>{'' if task == above else escape(task)}</th><td>{breakable(label)}</td>{found}</tr>")
        above = task
    title = f"Differences from {compared.baseline}"
    return section(title, table("scores differences", head, "".join(body)) + note(comparison_note(compared)))


def robustness(evaluations: Sequence[Evaluation]) -> str:
    """Scores on distorted audio below the clean ones; empty where there are none."""
    rows = rows_of([(one.folder, one.scores) for one in evaluations])
    if not rows:
        return ""
    headings, lines = table_lines(rows)
    head = "<th>test audio</th>" + "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = []
    for row, cells in zip(rows, lines, strict=True):
        label = breakable(row.label) if row.condition == CLEAN else ""
        found = "".join(f"<td{' class=best' if best else ''}>{escape(text)}</td>" for text, best in cells)
        body.append(f"<tr><th>{label}</th><td>{escape(row.condition)}</td>{found}</tr>")
    labels = [one.scores["label"] for one in evaluations]
    picture = figure(
        lambda theme: robustness_png(rows, labels, theme),
        "Test score by what the test audio undergoes; a line joins the levels of one noise, bars are the standard "
        "error over seeds, where there are several",
        "Points over the conditions, a panel a task and a colour a model; the table below has their values",
    )
    below = table("scores", head, "".join(body)) + note(robustness_note(rows))
    return section("Distorted test audio", picture + below)


def reference() -> str:
    """Other people's numbers, in a section of their own."""
    body = (
        "<h3>Public SUPERB test sets</h3>"
        + _published(PUBLIC_SUPERB)
        + "<h3>SUPERB challenge, hidden test set</h3>"
        + _published(HIDDEN_SET)
        + note(
            "Other people's published numbers, in % (ASR without a language model). They were not measured here. The "
            "first table compares only with scores made on the same corpora with s3prl's recipe, the second only with "
            "the organisers' own evaluation of a submission."
        )
    )
    return section("Published scores of other systems", body)


def learning_rates(records: Records) -> str:
    """The whole grid: figure and tables; empty where nothing was searched."""
    found = grids(records)
    if not found:
        return ""
    body = figure(
        lambda theme: grid_png(records, theme),
        "Dev score by learning rate: a line is a model's mean over seeds, dots are its seeds, a ring is the rate that "
        "was picked (by any seed)",
        "Lines over the learning rates, a panel a task; the tables below have their values",
    )
    tables = "".join(_grid_table(grid) for grid in found) + note(NOTE)
    if sum(len(grid.rows) for grid in found) > _OPEN_ROWS:
        tables = fold("The same as tables", tables)
    return section("Learning rates", body + tables)


def macs(records: Records) -> str:
    """Test score against MACs; empty where fewer than two models' are known."""
    unknown = [record["label"] for record in records if not record.get("cost")]
    missing = f" Not known, and so not drawn: {', '.join(unknown)}." if unknown else ""
    body = figure(
        lambda theme: cost_png(records, theme),
        "Test score against multiply-accumulates as the SUPERB challenge counts them; bars are the standard error over "
        f"seeds, where there are several.{missing}",
        "Points over G MACs, a panel a task and a colour a model; the table of scores has their values",
    )
    return section("Score and cost", body) if body else ""


def layer_weights(evaluations: list[Evaluation]) -> str:
    """What each task's weighted sum learned; empty where no task mixes states."""
    body = figure(
        lambda theme: layer_weights_png(evaluations, theme),
        "Weight of each hidden state in the sum that a task reads (softmax; averaged over seeds and ER's folds)",
        "; ".join(
            f"{one.scores['label']}, {task.upper()}: {' '.join(f'{weight:.2f}' for weight in weights)}"
            for one in evaluations
            for task, weights in one.layer_weights.items()
        ),
    )
    return section("Layers that each task uses", body) if body else ""


def settings(records: Records) -> str:
    """How each model was evaluated, and its untrained student's configuration where that file is still there."""
    if not records:
        return ""
    tasks = [name for name in TASKS if any(name in record["tasks"] for record in records)]
    head = "".join(f"<th>{name.upper()}</th>" for name in tasks)
    rows, files = [], []
    for record in records:
        normalize = "features layer-normalised" if normalised(record) else "features not normalised"
        detail = " · ".join([*read_states(record), f"preset {record['preset']}", _seeds(record), normalize])
        cells = "".join(f"<td>{_trained(record, name)}</td>" for name in tasks)
        rows.append(f"<tr><th>{breakable(record['label'])}<small>{escape(detail)}</small></th>{cells}</tr>")
        path = Path(record.get("model_config") or "")
        if path.is_file() and _is_model_config(path):
            files.append(fold(f"{record['label']}: {path.name}", pre(path.read_text(encoding="utf-8"))))
    body = table("scores plainer", head, "".join(rows)) + note("Training steps, and the learning rate that was tested.")
    if len(rows) > _OPEN_ROWS:
        body = fold(f"{len(rows)} models", body)
    return section("Evaluation settings", body + "".join(files))


def _is_model_config(path: Path) -> bool:
    """Whether a file is what a record says that it is: of one from elsewhere, it could be any file of the reader's."""
    try:
        load_model_config(path)
    except EkdError:
        return False
    return True


def commands(records: Records) -> str:
    """The native commands behind each score."""
    blocks = []
    for record in records:
        lines = [command for task in record["tasks"].values() for command in task["commands"]]
        # A line between them: each takes several on the page
        blocks.append(fold(f"{record['label']}: {len(lines)} run_downstream.py commands", pre("\n\n".join(lines))))
    return section("Commands", _folded(blocks, "commands")) if blocks else ""


def environment(records: Records) -> str:
    """Versions and machines, a column for each that differs, and the raw records."""
    found: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for record in records:
        facts = {**record["versions"], **record["machine"]}
        found.setdefault(json.dumps(facts, sort_keys=True), (facts, []))[1].append(record["label"])
    columns = list(found.values()) or [(versions(), [])]
    keys = dict.fromkeys(key for facts, _ in columns for key in facts)
    head = ""
    if len(columns) > 1:
        head = "".join(f"<td>{breakable(', '.join(labels))}</td>" for _, labels in columns)
    rows = "".join(
        f"<tr><th>{escape(str(key))}</th>"
        + "".join(f"<td>{escape(str(facts.get(key, MISSING)))}</td>" for facts, _ in columns)
        + "</tr>"
        for key in keys
    )
    raw = [fold(f"{record['label']}: scores.json", pre(json.dumps(record, indent=1))) for record in records]
    return section("Environment", table("plain", head, rows) + _folded(raw, "raw scores"))


def _folded(blocks: Sequence[str], what: str) -> str:
    """The blocks, in one more where they are many."""
    return fold(f"{len(blocks)} models' {what}", "".join(blocks)) if len(blocks) > _OPEN_ROWS else "".join(blocks)


def _published(rows: Sequence[Published]) -> str:
    columns = [column for column in OF_TASKS if any(getattr(row, column.task) is not None for row in rows)]
    lines = "".join(
        f"<tr><th>{escape(row.name)}</th><td>{row.params:.1f}</td>"
        + "".join(f"<td>{cell(getattr(row, column.task))}</td>" for column in columns)
        + "</tr>"
        for row in rows
    )
    head = "<th>M params</th>" + "".join(f"<th>{column.heading}</th>" for column in columns)
    return table("scores others", head, lines)


def _grid_table(grid: GridOfTask) -> str:
    seed = "<th>seed</th>" if grid.several_seeds else ""
    head = seed + "".join(f"<th>{rate:g}</th>" for rate in grid.rates) + "<th>test</th>"
    rows = []
    for row in grid.rows:
        cells = f"<td class=size>{escape(str(row.seed))}</td>" if grid.several_seeds else ""
        for rate in grid.rates:
            mark = " class=picked" if rate == row.picked else ""
            cells += f"<td{mark}>{escape(row.cell(rate))}</td>"
        rows.append(f"<tr><th>{breakable(row.label)}</th>{cells}<td class=test>{cell(row.test)}</td></tr>")
    return f"<h3>{escape(grid.title)}</h3>" + table("scores grid", head, "".join(rows))


def _seeds(record: dict[str, Any]) -> str:
    """The seeds, task by task where their own differ."""
    seeds = seeds_text(record) or str(record["seed"])
    return f"seed{'' if seeds.isdigit() else 's'} {seeds}"


def _trained(record: dict[str, Any], task: str) -> str:
    found = record["tasks"].get(task)
    if found is None:
        return MISSING
    parts = by_seed(found).values()
    rates = dict.fromkeys(f"{part['lr']:g}" for part in parts if isinstance(part.get("lr"), int | float))
    steps = found.get("steps")
    size = f"{steps:,} steps" if isinstance(steps, int) else ""
    return escape(size or MISSING) + (f"<small>lr {escape(' / '.join(rates))}</small>" if rates else "")
