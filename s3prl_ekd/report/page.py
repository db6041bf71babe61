"""The report as ONE HTML file: inline style, figures as data, nothing fetched from anywhere.

Follows the reader's light or dark setting; each figure is embedded once for either. Sections about evaluations are made
in ``scores.py``.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from s3prl_ekd.evaluate.compare import Comparison
from s3prl_ekd.report import scores
from s3prl_ekd.report.comparison import comparison
from s3prl_ekd.report.curves import TERMS, head_losses_png, logged, overview_png, series
from s3prl_ekd.report.earlier import names_of
from s3prl_ekd.report.html import figure, fold, pre, section
from s3prl_ekd.report.sources import Evaluation, Pretraining
from s3prl_ekd.report.stylesheet import STYLESHEET
from s3prl_ekd.version import __version__


def page(
    pretrainings: list[Pretraining],
    evaluations: list[Evaluation],
    title: str,
    notes: Sequence[str] = (),
    reference: bool = False,
    figures: Sequence[Path] = (),
    compared: Comparison | None = None,
) -> str:
    """The page's text.

    Args:
        pretrainings, evaluations: what it shows.
        title: its heading.
        notes: plain sentences shown on top.
        reference: adds other systems' published rows.
        figures: the PNG files that were written with it.
        compared: the evaluations, for a table of their differences.
    """
    date = datetime.datetime.now(datetime.UTC).strftime("%d %B %Y")
    records = [one.scores for one in evaluations]
    sections = [
        scores.scores(records) if records else "",
        scores.differences(compared) if compared else "",
        scores.robustness(evaluations),
        scores.reference() if reference else "",
        scores.macs(records),
        scores.learning_rates(records),
        comparison(pretrainings),
        *[_pretraining(run) for run in pretrainings],
        scores.layer_weights(evaluations),
        _configuration(pretrainings),
        scores.settings(records),
        scores.commands(records),
        scores.environment(records),
    ]
    note_list = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{names_of(figures)}<title>{escape(title)}</title><style>{STYLESHEET}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p class=sub>{escape(date)} · s3prl-ekd {escape(__version__)}</p>"
        f"{f'<ul class=notes>{note_list}</ul>' if notes else ''}{_facts(pretrainings, evaluations)}</header>"
        f"{''.join(sections)}</main></body></html>\n"
    )


def _facts(pretrainings: list[Pretraining], evaluations: list[Evaluation]) -> str:
    facts: list[tuple[str, str]] = []
    if len(pretrainings) > 1:  # the numbers of one would be taken for all of them
        facts.append((str(len(pretrainings)), "pretraining runs"))
    for run in pretrainings if len(pretrainings) == 1 else ():
        first, last = run.metrics[0], run.metrics[-1]
        facts.append((f"{last['step']:,}", "pretraining steps"))
        facts.append((str(len(run.heads())), "prediction heads"))
        losses = [line["loss"] for line in (first, last) if line.get("loss") is not None]
        if len(losses) == 2:
            facts.append((f"{losses[0]:.3f} → {losses[1]:.3f}", "loss"))
        if run.speed is not None:
            facts.append((f"{run.speed:,.0f} ×", "real time, training"))
    if evaluations:
        seconds = sum(task["seconds"] for one in evaluations for task in one.scores["tasks"].values())
        models = f" of {len(evaluations)} models" if len(evaluations) > 1 else ""
        facts.append((_duration(seconds), f"evaluation{models}"))
    items = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in facts)
    return f"<div class=facts>{items}</div>" if items else ""


def _pretraining(run: Pretraining) -> str:
    held_out = "; dots: held-out speech, without dropout" if run.validation else ""
    body = figure(
        lambda theme: overview_png(run, theme),
        f"Loss over the pretraining steps{held_out}",
        "; ".join(filter(None, (_ends("training", run.metrics), _ends("validation", run.validation)))),
    )
    if run.heads():
        body += figure(
            lambda theme: head_losses_png(run, theme),
            "Per teacher and layer: mean absolute error; cosine term (dotted: its lowest value, prediction and target "
            "parallel); the head's share of the gradient at the student's state that it reads, where it was logged"
            f"{held_out}",
            "At the last step " + "; ".join(_last(run, head) for head in run.heads()),
        )
    return section(f"Pretraining: {run.label}", body)


def _ends(what: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """The loss at both ends of a curve, in words."""
    steps, values = logged(lines, "loss")
    return f"{what} loss {values[0]:.3f} at step {steps[0]:,}, {values[-1]:.3f} at step {steps[-1]:,}" if steps else ""


def _last(run: Pretraining, head: str) -> str:
    """A head's last values, in words."""
    found = [(label, series(run.metrics, head, term)[1]) for term, label in TERMS]
    return f"{head}: " + ", ".join(f"{label} {values[-1]:.3f}" for label, values in found if values)


def _configuration(pretrainings: list[Pretraining]) -> str:
    files = [fold(f"{run.label} / {name}", pre(text)) for run in pretrainings for name, text in run.configs.items()]
    return section("Pretraining configuration", "".join(files)) if files else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
