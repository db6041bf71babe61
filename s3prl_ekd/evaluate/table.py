"""Score tables: several ``scores.json`` side by side, for the terminal (rich), Markdown, and the report page.

One row an upstream, one column a metric, percent; before them parameters and MACs where they are known. A cell is the
runner's number, with several seeds their mean ± its standard error; the best of each column is marked when there is
more than one row. Rows of one recipe are followed by their mean (``pretrainings.py``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from s3prl_ekd.evaluate.differences import differences, first_of
from s3prl_ekd.evaluate.pretrainings import NOTE, means, with_means
from s3prl_ekd.evaluate.tasks import TASKS, is_error_rate, shown

MISSING = "–"
CHANCE = {
    "sid": "a speaker drawn at random",
    "er": "always the commonest emotion",
    "ks": "always the commonest word",
    "ic": "always the commonest intent",
}


@dataclass(frozen=True)
class Column:
    """One metric of one task, and how to find it in a ``scores.json``."""

    task: str
    metric: str

    @property
    def heading(self) -> str:
        """``PR PER ↓``."""
        return f"{self.task.upper()} {shown(self.metric)}"

    def value(self, record: dict[str, Any]) -> float | None:
        """The number in percent, or ``None`` where this record has none."""
        scores = record["tasks"].get(self.task)
        if scores is None:
            return None
        if self.metric == "cer":  # the runner reports no character error rate on text; ours is the only one
            return scores["rescored"].get("cer")
        return scores.get(self.metric)

    def error(self, record: dict[str, Any]) -> float | None:
        """The standard error of :meth:`value` over seeds; ``None`` of one seed."""
        return record["tasks"].get(self.task, {}).get("standard_error", {}).get(self.metric)

    def spread(self, record: dict[str, Any]) -> str:
        """What is shown behind the value: its error, and of a mean that lacks some of its models how many it is of."""
        error, count = self.error(record), record["tasks"].get(self.task, {}).get("pretrainings")
        fewer = count is not None and count < len(record.get("models", ()))
        return " ".join(([] if error is None else [f"± {error:.2f}"]) + ([f"(n = {count})"] if fewer else []))

    def cell(self, record: dict[str, Any]) -> str:
        """Value and error as they are shown."""
        return f"{cell(self.value(record))} {self.spread(record)}".rstrip()


OF_TASKS = tuple(Column(task.name, task.metric) for task in TASKS.values())
COLUMNS = (*OF_TASKS, Column("asr", "cer"))


def columns_of(records: Sequence[dict[str, Any]]) -> list[Column]:
    """The columns that at least one record fills."""
    return [column for column in COLUMNS if any(column.value(record) is not None for record in records)]


def best_rows(records: Sequence[dict[str, Any]], column: Column) -> set[int]:
    """Row numbers of the best value in a column; empty when there is nothing to compare with, or all are equal.

    A mean of rows is none: it is never better than the best of them.
    """
    values = {row: column.value(record) for row, record in enumerate(records) if "models" not in record}
    known = {row: value for row, value in values.items() if value is not None}
    if len(set(known.values())) < 2:
        return set()
    winner = (min if is_error_rate(column.metric) else max)(known.values())
    return {row for row, value in known.items() if value == winner}


def cell(value: float | None) -> str:
    """A score as it is shown: two decimals, as SUPERB's own tables."""
    return MISSING if value is None else f"{value:.2f}"


def costs(records: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The columns of parameters and MACs, as heading and cells; none where no record knows them."""
    known = [record.get("cost") or {} for record in records]
    if not any(known):
        return []
    return [
        ("M params", [f"{cost['params'] / 1e6:.1f}" if cost else MISSING for cost in known]),
        ("G MACs", [f"{cost['macs'] / 1e9:,.1f}" if cost else MISSING for cost in known]),
    ]


def score_table(records: Sequence[dict[str, Any]]) -> Table:
    """The rich table of one or several records."""
    table = plain_table(caption=escape(footnote(records)))
    records = with_means(records)
    columns = columns_of(records)
    sizes = costs(records)
    for heading, _ in sizes:
        table.add_column(heading, justify="right", style="dim", no_wrap=True)
    for column in columns:
        table.add_column(column.heading.replace(" ", "\n", 1), justify="right", no_wrap=True)
    best = {column: best_rows(records, column) for column in columns}
    for row, record in enumerate(records):
        cells = []
        for column in columns:
            value, spread = cell(column.value(record)), column.spread(record)
            marked = f"[bold green]{value}[/]" if row in best[column] else value
            cells.append(f"{marked}\n[dim]{spread}[/]" if spread else marked)
        table.add_row(escape(record["label"]), *(size[row] for _, size in sizes), *cells)
    return table


def plain_table(title: str = "", caption: str = "") -> Table:
    """An empty table whose first column, the names, wraps on a narrow terminal, so that numbers stay whole."""
    table = Table(
        title=title or None, caption=caption or None, title_justify="left", caption_justify="left",
        title_style="bold", caption_style="dim", box=SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    table.add_column("upstream", overflow="fold", min_width=12)
    return table


def score_markdown(records: Sequence[dict[str, Any]]) -> str:
    """The score table in Markdown, with the conditions of its numbers below."""
    note = footnote(records)
    records = with_means(records)
    columns = columns_of(records)
    best = {column: best_rows(records, column) for column in columns}
    sizes = costs(records)
    lines = [["upstream", *(heading for heading, _ in sizes), *(column.heading for column in columns)]]
    for row, record in enumerate(records):
        cells = [f"**{column.cell(record)}**" if row in best[column] else column.cell(record) for column in columns]
        lines.append([verbatim(record["label"]), *(size[row] for _, size in sizes), *cells])
    return f"{markdown_table(lines)}\n{verbatim(note)}\n"


def markdown_table(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Cells, headings first, as a table in Markdown whose first ``left`` columns are text, the others numbers."""
    rule = "|" + "---|" * left + "---:|" * (len(lines[0]) - left)
    first, *rest = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n".join([first, rule, *rest]) + "\n"


def verbatim(text: str) -> str:
    """Text that Markdown shows as it stands; its ``|`` are :func:`markdown_table`'s. Underscores within words stay."""
    return re.sub(r"[\\`*<\[]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


def footnote(records: Sequence[dict[str, Any]]) -> str:
    """Units, seeds, what rows do not share, chance levels, and where the runner and the prediction files disagree."""
    parts = ["Test scores in %."]
    counts = {len(task["seeds"]) for record in records for task in record["tasks"].values() if "seeds" in task}
    if counts:
        number = f"{counts.pop()} seeds" if len(counts) == 1 else "a model's seeds"
        parts.append(f"±: standard error of the mean over {number}.")
    if means(records):
        parts.append(NOTE)
    parts += differences(records)
    if costs(records):
        parts.append("Parameters, MACs: of the upstream, as the SUPERB challenge counts (MACs over its 32 utterances).")
    levels = []
    for name, what in CHANCE.items():
        known = [record["tasks"].get(name, {}).get("chance") for record in records]
        found = {cell(level) for level in known if level is not None}
        if len(found) == 1:
            levels.append(f"{name.upper()} {found.pop()} ({what})")
    if levels:
        parts.append(f"Chance: {', '.join(levels)}.")
    unlike = [
        f"{record['label']}, {name}"
        for record in records
        for name, scores in record["tasks"].items()
        if not scores["rescored"].get("agrees", True)
    ]
    if unlike:
        parts.append(f"{first_of(unlike)}: the prediction files do not give the runner's number.")
    return " ".join(parts)
