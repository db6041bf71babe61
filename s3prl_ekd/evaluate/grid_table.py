"""The whole learning-rate grid as tables: what each rate scored on dev, and which was picked; terminal and Markdown.

One table a task that was searched, one row a model and seed, one column a rate. The report page draws the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from s3prl_ekd.evaluate.scores_file import by_seed
from s3prl_ekd.evaluate.table import MISSING, cell, markdown_table, plain_table, verbatim
from s3prl_ekd.evaluate.tasks import TASKS, Task, shown

NOTE = "Dev scores in %, for ER the mean over folds; the picked rate of each row is marked, and it alone is tested."


@dataclass(frozen=True)
class GridRow:
    """One model at one seed: dev score by rate, the picked rate, and its test score."""

    label: str
    seed: int | None
    dev: dict[float, float | None]
    picked: float
    test: float

    def cell(self, rate: float) -> str:
        """The dev score as it is shown; empty where this row did not try the rate."""
        return cell(self.dev[rate]) if rate in self.dev else ""


@dataclass(frozen=True)
class GridOfTask:
    """All rows of one task."""

    task: Task
    rows: list[GridRow]

    @property
    def title(self) -> str:
        """The table's title, such as ``PR: dev PER ↓ by learning rate``."""
        return f"{self.task.name.upper()}: dev {shown(self.task.metric)} by learning rate"

    @property
    def rates(self) -> list[float]:
        """Every rate that a row tried, largest first."""
        return sorted({rate for row in self.rows for rate in row.dev}, reverse=True)

    @property
    def several_seeds(self) -> bool:
        """Whether the seed tells rows apart."""
        return len({row.seed for row in self.rows}) > 1


def grids(records: Sequence[dict[str, Any]]) -> list[GridOfTask]:
    """The grids of all tasks that were searched, in the tasks' order."""
    found = []
    for task in TASKS.values():
        rows = [
            GridRow(
                record["label"],
                seed,
                {float(one["lr"]): one["dev"] for one in part["grid"]},
                next(float(one["lr"]) for one in part["grid"] if one["picked"]),
                part[task.metric],
            )
            for record in records
            if task.name in record["tasks"]
            for seed, part in by_seed(record["tasks"][task.name]).items()
            if "grid" in part
        ]
        if rows:
            found.append(GridOfTask(task, rows))
    return found


def grid_tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    """A rich table for each task that was searched."""
    tables = []
    for grid in grids(records):
        table = plain_table(grid.title)
        if grid.several_seeds:
            table.add_column("seed", justify="right", style="dim", no_wrap=True)
        for rate in grid.rates:
            table.add_column(f"{rate:g}", justify="right", no_wrap=True)
        table.add_column("test", justify="right", no_wrap=True)
        before = None
        for row in grid.rows:
            cells = [
                f"[bold green]●{row.cell(rate)}[/]" if rate == row.picked else row.cell(rate) for rate in grid.rates
            ]
            seed = [str(row.seed)] if grid.several_seeds else []
            table.add_row("" if row.label == before else escape(row.label), *seed, *cells, cell(row.test))
            before = row.label
        tables.append(table)
    if tables:
        tables[-1].caption = NOTE
    return tables


def grid_markdown(records: Sequence[dict[str, Any]]) -> str:
    """The grids of :func:`grid_tables` in Markdown; empty where nothing was searched."""
    tables = []
    for grid in grids(records):
        seed = ["seed"] if grid.several_seeds else []
        lines = [["upstream", *seed, *(f"{rate:g}" for rate in grid.rates), "test"]]
        for row in grid.rows:
            cells = [
                f"**{row.cell(rate)}**" if rate == row.picked else row.cell(rate) or MISSING for rate in grid.rates
            ]
            own = [str(row.seed)] if seed else []
            lines.append([verbatim(row.label), *own, *cells, cell(row.test)])
        tables.append(f"### {grid.title}\n\n{markdown_table(lines)}")
    return "\n".join([*tables, f"{NOTE}\n"]) if tables else ""
