"""Several pretraining runs side by side: what they came to, and which settings they differ in.

Rows are ``(heading, a text for each run)``; ``page.py`` and ``command.py`` show them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import yaml

from s3prl_ekd.config import load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.table import MISSING
from s3prl_ekd.report.curves import comparison_png, logged, series
from s3prl_ekd.report.html import breakable, figure, note, section, table
from s3prl_ekd.report.sources import Pretraining

Row = tuple[str, list[str]]
MODEL, RUNNER = "config_model.yaml", "config_runner.yaml"
HEADS = "Heads in common: L1 + −log σ(cos)"
NOTE = (
    "Training losses are means over the last tenth of the log steps. Losses compare between runs that predict the same "
    "heads on the same scale; of other runs, the heads that they share, by the cosine term."
)
MOVING_NOTE = (
    "The lowest validation loss of {} is on another scale than its last: the statistics that normalise its "
    "targets have changed since, so it need not be of a better student."
)


def comparison(runs: Sequence[Pretraining]) -> str:
    """The page's section; empty for fewer than two runs."""
    if len(runs) < 2:
        return ""
    caption = "Loss of each run; that of training is smoothed over a fortieth of the run"
    alt = "Lines over the steps, one a run; the table below has what they came to"
    body = figure(lambda theme: comparison_png(runs, theme), caption, alt)
    body += _table(runs, results(runs)) + note(NOTE)
    moved = moving_note(runs)
    body += note(moved) if moved else ""
    for title, rows in (("Settings that differ", differences(runs)), (HEADS, heads(runs))):
        body += f"<h3>{title}</h3>{_table(runs, rows)}" if rows else ""
    return section("Pretraining runs compared", body)


def results(runs: Sequence[Pretraining]) -> list[Row]:
    """Steps, losses and speed of each run."""
    rows = [
        ("steps", [_steps(run) for run in runs]),
        ("training loss", [_number(_last_tenth(logged(run.metrics, "loss")[1])) for run in runs]),
        ("validation loss", [_number(_last(logged(run.validation, "loss")[1])) for run in runs]),
        ("lowest (at step)", [_lowest_text(run) for run in runs]),
        ("s of audio a second", [MISSING if run.speed is None else f"{run.speed:,.0f}" for run in runs]),
    ]
    return [(name, values) for name, values in rows if any(value != MISSING for value in values)]


def moving_note(runs: Sequence[Pretraining]) -> str:
    """What is to be said of the lowest validation losses; empty where they are on the scale of the last."""
    moved = [run.label for run in runs if _scale_moved(run)]
    return MOVING_NOTE.format(", ".join(moved)) if moved else ""


def heads(runs: Sequence[Pretraining]) -> list[Row]:
    """L1 and cosine term of each head that two runs have: of validation, and of training where one of them has none."""
    rows = []
    for head in dict.fromkeys(head for run in runs for head in run.heads()):
        trained, held_out = (
            [_terms(lines, head, mean) for lines in found]
            for found, mean in (([run.metrics for run in runs], _last_tenth), ([run.validation for run in runs], _last))
        )
        counts = [sum(text != MISSING for text in texts) for texts in (trained, held_out)]
        if counts[1] > 1:
            rows.append((f"{head}, validation", held_out))
        if counts[0] > max(counts[1], 1):
            rows.append((f"{head}, training", trained))
    return rows


def _terms(lines: Sequence[Mapping[str, Any]], head: str, mean: Callable[[Sequence[float]], float | None]) -> str:
    """L1 and cosine term of a head as a sum, each its ``mean`` over the lines."""
    terms = [_number(mean(series(lines, head, term)[1])) for term in ("l1", "cosine")]
    return MISSING if MISSING in terms else " + ".join(terms)


def differences(runs: Sequence[Pretraining]) -> list[Row]:
    """The settings whose values differ, with defaults filled in where the model file can be read as one of ours."""
    settings = [dict(_settings(run)) for run in runs]
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [(name, [one.get(name, MISSING) for one in settings]) for name in names]
    absent = {"null", MISSING}  # a section that is null in one run has rows of its own in another
    return [(name, values) for name, values in rows if len(set(values)) > 1 and not set(values) <= absent]


def _settings(run: Pretraining) -> Iterator[tuple[str, str]]:
    for name, text in run.configs.items():
        try:
            values = yaml.safe_load(text)
            if name == MODEL and isinstance(values, Mapping):
                values = load_model_config(values).model_dump(mode="json")
        except (yaml.YAMLError, EkdError):
            continue
        yield from _flat(values)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values as YAML; entries of a list that have a name are told by it."""
    if isinstance(value, list) and value and all(isinstance(one, Mapping) and "name" in one for one in value):
        value = {one["name"]: {key: part for key, part in one.items() if key != "name"} for one in value}
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    else:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
        yield name, text.removesuffix("...\n").strip()


def _last(values: Sequence[float]) -> float | None:
    return values[-1] if values else None


def _last_tenth(values: Sequence[float]) -> float | None:
    part = values[-max(1, len(values) // 10) :]
    return sum(part) / len(part) if part else None


def _lowest(run: Pretraining) -> tuple[float, int] | None:
    """The lowest validation loss and its step; None where that is the last, or none is a number."""
    steps, values = logged(run.validation, "loss")
    lowest = min(
        ((value, step) for value, step in zip(values, steps, strict=True) if not math.isnan(value)), default=None
    )
    return None if lowest is None or lowest[0] == values[-1] else lowest


def _lowest_text(run: Pretraining) -> str:
    lowest = _lowest(run)
    return MISSING if lowest is None else f"{lowest[0]:.4f} ({lowest[1]:,})"


def _scale_moved(run: Pretraining) -> bool:
    """Whether the targets of a run's lowest validation loss, where that is not the last, are on another scale.

    Running statistics never end to adapt; those of phi_s are fitted on the first batches and kept.
    """
    lowest = _lowest(run)
    settings = dict(_settings(run))
    kind = settings.get("ekd.targets.normalise")
    if lowest is None or kind != "phi_s":
        return lowest is not None and kind == "standardise"
    batches = lowest[1] * int(settings.get("runner.gradient_accumulate_steps", "1"))
    return batches < int(settings["ekd.targets.fit_batches"])


def _steps(run: Pretraining) -> str:
    """The last log step and, where another would have followed it, of how many: the run goes on, or was stopped."""
    step = run.metrics[-1]["step"]
    try:
        runner = yaml.safe_load(run.configs.get(RUNNER, ""))["runner"]
        total = int(runner["total_steps"])
        unfinished = step + int(runner["log_step"]) <= total and int(runner.get("n_epochs", -1)) <= 0
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        return f"{step:,}"
    return f"{step:,} of {total:,}" if unfinished else f"{step:,}"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _table(runs: Sequence[Pretraining], rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{breakable(run.label)}</th>" for run in runs)
    body = "".join(
        f"<tr><th>{breakable(heading)}</th>{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>"
        for heading, texts in rows
    )
    return table("scores plainer", head, body)
