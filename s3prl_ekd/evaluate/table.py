"""Score tables: several ``scores.json`` side by side, for the terminal (rich), Markdown, and the report page.

One row an upstream, one column a metric, percent. A cell is the runner's number; the best of each column is marked
when there is more than one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

MISSING = "–"


@dataclass(frozen=True)
class Column:
    """One metric of one task, and how to find it in a ``scores.json``."""

    task: str
    metric: str
    heading: str
    lower_is_better: bool

    def value(self, record: dict[str, Any]) -> float | None:
        """The number in percent, or ``None`` where this record has none."""
        scores = record["tasks"].get(self.task)
        if scores is None:
            return None
        if self.metric == "cer":  # the runner reports no character error rate on text; ours is the only one
            return scores["rescored"].get("cer")
        return scores.get(self.metric)


COLUMNS = (
    Column("pr", "per", "PR PER ↓", True),
    Column("sid", "acc", "SID acc ↑", False),
    Column("er", "acc", "ER acc ↑", False),
    Column("asr", "wer", "ASR WER ↓", True),
    Column("asr", "cer", "ASR CER ↓", True),
)


def columns_of(records: Sequence[dict[str, Any]]) -> list[Column]:
    """The columns that at least one record fills."""
    return [column for column in COLUMNS if any(column.value(record) is not None for record in records)]


def best_rows(records: Sequence[dict[str, Any]], column: Column) -> set[int]:
    """Row numbers of the best value in a column; empty when there is nothing to compare with, or all are equal."""
    values = {row: column.value(record) for row, record in enumerate(records)}
    known = {row: value for row, value in values.items() if value is not None}
    if len(set(known.values())) < 2:
        return set()
    winner = (min if column.lower_is_better else max)(known.values())
    return {row for row, value in known.items() if value == winner}


def cell(value: float | None) -> str:
    """A score as it is shown: two decimals, as SUPERB's own tables."""
    return MISSING if value is None else f"{value:.2f}"


def score_table(records: Sequence[dict[str, Any]], title: str = "") -> Table:
    """The rich table of one or several records."""
    columns = columns_of(records)
    table = Table(title=title or None, caption=footnote(records), caption_justify="left", title_justify="left")
    table.add_column("upstream", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right")
    best = {column: best_rows(records, column) for column in columns}
    for row, record in enumerate(records):
        cells = [
            f"[bold green]{cell(column.value(record))}[/]" if row in best[column] else cell(column.value(record))
            for column in columns
        ]
        table.add_row(record["label"], *cells)
    return table


def score_markdown(records: Sequence[dict[str, Any]]) -> str:
    """The same table in Markdown, with what it was made with below."""
    columns = columns_of(records)
    best = {column: best_rows(records, column) for column in columns}
    lines = ["| upstream | " + " | ".join(column.heading for column in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for row, record in enumerate(records):
        cells = [
            f"**{cell(column.value(record))}**" if row in best[column] else cell(column.value(record))
            for column in columns
        ]
        lines.append("| " + " | ".join([record["label"].replace("|", "\\|"), *cells]) + " |")
    lines += ["", footnote(records), ""]
    return "\n".join(lines)


def footnote(records: Sequence[dict[str, Any]]) -> str:
    """Units, folds, chance levels, and any disagreement between the runner and the prediction files."""
    parts = ["Test scores in %."]
    for record in records:
        er = record["tasks"].get("er", {})
        if "folds" in er:
            count = len(er["folds"])
            parts.append(f"ER: mean of {count} folds." if count > 1 else f"ER: {next(iter(er['folds']))} alone.")
            break
    levels = []
    for name, what in (("sid", "one speaker in all"), ("er", "the commonest emotion")):
        found = {cell(record["tasks"][name]["chance"]) for record in records if _chance(record, name) is not None}
        if len(found) == 1:
            levels.append(f"{name.upper()} {found.pop()} ({what})")
    if levels:
        parts.append(f"Chance: {', '.join(levels)}.")
    for record in records:
        for name, scores in record["tasks"].items():
            if not scores["rescored"].get("agrees", True):
                parts.append(f"{record['label']}, {name}: the prediction files do not give the runner's number.")
    return " ".join(parts)


def _chance(record: dict[str, Any], task: str) -> float | None:
    return record["tasks"].get(task, {}).get("chance")
