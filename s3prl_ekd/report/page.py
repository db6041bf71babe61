"""The report as ONE HTML file: inline style, figures as data, nothing fetched from anywhere.

Follows the reader's light or dark setting; each figure is embedded once for either.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from s3prl_ekd.evaluate.results import versions
from s3prl_ekd.evaluate.table import best_rows, cell, columns_of, footnote
from s3prl_ekd.report.curves import head_losses_png, layer_weights_png, overview_png
from s3prl_ekd.report.reference import PUBLIC_SUPERB
from s3prl_ekd.report.sources import Evaluation, Pretraining
from s3prl_ekd.report.style import DARK, LIGHT, Theme
from s3prl_ekd.report.stylesheet import STYLESHEET
from s3prl_ekd.version import __version__

Draw = Callable[[Theme], bytes | None]


def write_page(
    path: Path,
    pretrainings: list[Pretraining],
    evaluations: list[Evaluation],
    title: str = "Ensemble knowledge distillation: report",
    notes: Sequence[str] = (),
    reference: bool = False,
) -> Path:
    """Write the page; ``notes`` are plain sentences shown on top, ``reference`` adds other systems' published rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(pretrainings, evaluations, title, notes, reference), encoding="utf-8")
    return path


def page(
    pretrainings: list[Pretraining],
    evaluations: list[Evaluation],
    title: str,
    notes: Sequence[str] = (),
    reference: bool = False,
) -> str:
    """The page's text."""
    date = datetime.datetime.now(datetime.UTC).strftime("%d %B %Y")
    records = [one.scores for one in evaluations]
    sections = [
        _section("Scores", _score_table(records) + _note(footnote(records))) if records else "",
        _section("Published scores of other systems", _reference()) if reference else "",
        *[_pretraining(run) for run in pretrainings],
        _layer_weights(evaluations),
        _configuration(pretrainings),
        _commands(records),
        _environment(records),
    ]
    note_list = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLESHEET}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p class=sub>{escape(date)} · s3prl-ekd {escape(__version__)}</p>"
        f"{f'<ul class=notes>{note_list}</ul>' if notes else ''}{_facts(pretrainings, evaluations)}</header>"
        f"{''.join(sections)}</main></body></html>\n"
    )


def figure(draw: Draw, caption: str) -> str:
    """One figure in both themes, embedded; empty when there is nothing to draw."""
    light, dark = draw(LIGHT), draw(DARK)
    if light is None or dark is None:
        return ""
    sources = [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in (light, dark)]
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{sources[1]}">'
        f'<img alt="{escape(caption, quote=True)}" src="{sources[0]}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _facts(pretrainings: list[Pretraining], evaluations: list[Evaluation]) -> str:
    facts: list[tuple[str, str]] = []
    for run in pretrainings[:1]:
        first, last = run.metrics[0], run.metrics[-1]
        facts.append((f"{last['step']:,}", "pretraining steps"))
        facts.append((str(len(run.heads())), "prediction heads"))
        if "loss" in first and "loss" in last:
            facts.append((f"{first['loss']:.3f} → {last['loss']:.3f}", "loss"))
        speeds = [line["audio_seconds_per_second"] for line in run.metrics if line.get("audio_seconds_per_second")]
        if speeds:
            facts.append((f"{sorted(speeds)[len(speeds) // 2]:,.0f} ×", "real time, training"))
    if evaluations:
        seconds = sum(task["seconds"] for one in evaluations for task in one.scores["tasks"].values())
        facts.append((_duration(seconds), "evaluation"))
    items = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in facts)
    return f"<div class=facts>{items}</div>" if items else ""


def _score_table(records: list[dict[str, Any]]) -> str:
    columns = columns_of(records)
    best = {column: best_rows(records, column) for column in columns}
    head = "".join(f"<th>{escape(column.heading)}</th>" for column in columns)
    rows = []
    for row, record in enumerate(records):
        cells = "".join(
            f"<td{' class=best' if row in best[column] else ''}>{cell(column.value(record))}</td>" for column in columns
        )
        detail = " · ".join(filter(None, [record["upstream"], f"preset {record['preset']}", f"seed {record['seed']}"]))
        rows.append(f"<tr><th>{escape(record['label'])}<small>{escape(detail)}</small></th>{cells}</tr>")
    return f"<div class=scroll><table class=scores><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"


def _reference() -> str:
    rows = "".join(
        f"<tr><th>{escape(row.name)}</th><td>{row.params:.1f}</td><td>{cell(row.pr)}</td><td>{cell(row.sid)}</td>"
        f"<td>{cell(row.er)}</td><td>{cell(row.asr)}</td></tr>"
        for row in PUBLIC_SUPERB
    )
    return (
        "<div class=scroll><table class='scores others'><tr><th></th><th>M params</th><th>PR PER ↓</th>"
        f"<th>SID acc ↑</th><th>ER acc ↑</th><th>ASR WER ↓</th></tr>{rows}</table></div>"
        + _note(
            "Other people's published numbers on the real SUPERB test sets (ASR without a language model), in %. "
            "They were not measured here, and compare only with scores made on the same corpora with s3prl's recipe."
        )
    )


def _pretraining(run: Pretraining) -> str:
    body = figure(lambda theme: overview_png(run, theme), "Loss over the pretraining steps")
    if run.heads():
        body += figure(
            lambda theme: head_losses_png(run, theme),
            "Loss per teacher and layer: mean absolute error above, cosine term below (dotted: its lowest value, "
            "prediction and target parallel)",
        )
    return _section(f"Pretraining: {run.name}", body)


def _layer_weights(evaluations: list[Evaluation]) -> str:
    body = figure(
        lambda theme: layer_weights_png(evaluations, theme),
        "Weight of each hidden state in the sum that a task reads (softmax; ER averaged over its folds)",
    )
    return _section("Layers that each task uses", body) if body else ""


def _configuration(pretrainings: list[Pretraining]) -> str:
    files = [
        _fold(f"{run.name} / {name}", f"<pre>{escape(text)}</pre>")
        for run in pretrainings
        for name, text in run.configs.items()
    ]
    return _section("Configuration", "".join(files)) if files else ""


def _commands(records: list[dict[str, Any]]) -> str:
    blocks = []
    for record in records:
        lines = [command for task in record["tasks"].values() for command in task["commands"]]
        blocks.append(
            _fold(f"{record['label']}: {len(lines)} native commands", f"<pre>{escape(chr(10).join(lines))}</pre>")
        )
    return _section("Commands", "".join(blocks)) if blocks else ""


def _environment(records: list[dict[str, Any]]) -> str:
    shown = records[0]["versions"] if records else versions()
    machine = records[0]["machine"] if records else {}
    rows = "".join(
        f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>"
        for key, value in {**shown, **machine}.items()
    )
    raw = "".join(
        _fold(f"{record['label']}: scores.json", f"<pre>{escape(json.dumps(record, indent=1))}</pre>")
        for record in records
    )
    return _section("Environment", f"<table class=plain>{rows}</table>{raw}")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _note(text: str) -> str:
    return f"<p class=note>{escape(text)}</p>"


def _fold(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
