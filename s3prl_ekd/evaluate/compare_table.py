"""A comparison of models as a table, for the terminal (rich) and Markdown; the report page shows the same lines."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from s3prl_ekd.evaluate.compare import Comparison
from s3prl_ekd.evaluate.table import MISSING, cell, markdown_table, verbatim
from s3prl_ekd.evaluate.tasks import shown

HEADINGS = ("score", "95 %", "Δ", "95 % of Δ", "better")
_FEW = 10  # utterances or blocks in a test set or a fold: the bootstrap takes what is there for all there could be


def note(comparison: Comparison) -> str:
    """What stands below the table."""
    settings = comparison.settings
    sizes = ", ".join(
        f"{one.task.name.upper()} {one.utterances:,}"
        + (f" in {sum(one.blocks):,} blocks" if settings.blocks is not None else "")
        for one in comparison.tasks
    )
    few = [f"{one.task.name.upper()} ({min(one.blocks)})" for one in comparison.tasks if min(one.blocks) < _FEW]
    unsure = f" Too few utterances or blocks for a reliable interval: {', '.join(few)}." if few else ""
    audio = "" if settings.condition is None else f" Test audio: {settings.condition}."
    return (
        "Test scores in %, with 95 % intervals by paired bootstrap over the test utterances "
        f"({sizes}; {settings.draws:,} draws).{unsure}{audio} Δ: points against {comparison.baseline}, marked where "
        "its interval does not contain zero; better: share of the draws in which the row is the better one. The "
        "intervals cover only the chance in the choice of test utterances, not that of training (--seeds of evaluate), "
        "and each row is a test of its own: of twenty models that do not differ, one is expected to show a difference."
    )


def lines(comparison: Comparison) -> Iterator[tuple[str, str, bool | None, list[str]]]:
    """Task, label, whether the model is better than the baseline (None: not known), and the other cells of each row."""
    for one in comparison.tasks:
        for row in one.rows:
            cells = [cell(row.score), " to ".join(map(cell, row.interval)), MISSING, MISSING, MISSING]
            found, is_better = row.difference, None
            if found is not None:
                is_better = found.is_better
                cells[2:] = [
                    f"{found.value:+.2f}", " to ".join(f"{bound:+.2f}" for bound in found.interval),
                    f"{100 * found.better:.1f} %",
                ]  # fmt: skip
            yield f"{one.task.name.upper()} {shown(one.task.metric)}", row.label, is_better, cells


def comparison_table(comparison: Comparison) -> Table:
    """The rich table: a difference whose interval is on one side of zero is green or red."""
    table = Table(
        caption=escape(note(comparison)), caption_justify="left", caption_style="dim", box=None, pad_edge=False
    )
    table.add_column("task", no_wrap=True)
    table.add_column("upstream", overflow="fold", min_width=12)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    above = None
    for task, label, is_better, cells in lines(comparison):
        if is_better is not None:
            cells[2:] = [f"[{'green' if is_better else 'red'}]{text}[/]" for text in cells[2:]]
        table.add_row("" if task == above else task, escape(label), *cells)
        above = task
    return table


def comparison_markdown(comparison: Comparison) -> str:
    """The table in Markdown, with its note; a difference whose interval is on one side of zero is bold."""
    table = [["task", "upstream", *HEADINGS]]
    for task, label, is_better, cells in lines(comparison):
        if is_better is not None:
            cells[2] = f"**{cells[2]}**"
        table.append([task, verbatim(label), *cells])
    return f"{markdown_table(table, left=2)}\n{verbatim(note(comparison))}\n"
