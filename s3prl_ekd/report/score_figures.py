"""Figures of evaluations as PNG bytes: dev score by learning rate, test score against MACs and by test audio.

One panel a task, one colour a model, the same in all of them. Curves of pretraining are in ``curves.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from s3prl_ekd.evaluate.grid_table import GridOfTask, grids
from s3prl_ekd.evaluate.robustness import Row
from s3prl_ekd.evaluate.table import OF_TASKS, Column
from s3prl_ekd.report.curves import png
from s3prl_ekd.report.style import LIGHT, WIDTH, Look, Theme, drawing, legend_below, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TICKS = 44  # characters below a panel; where there are more, they are slanted


def grid_png(records: Sequence[dict[str, Any]], theme: Theme = LIGHT) -> bytes | None:
    """Draw the dev score by learning rate; ``None`` when no task was searched.

    A line is the mean over seeds, dots are seeds; a ring is a rate that a seed picked.
    """
    found = grids(records)
    if not found:
        return None
    with drawing(theme):
        look = looks([record["label"] for record in records], theme)
        figure, axes = _panels(len(found))
        for axis, grid in zip(axes, found, strict=True):
            _grid_panel(axis, grid, look, theme)
        _legend(figure, [row.label for grid in found for row in grid.rows], look, theme, lines=True, ring=True)
        return png(figure)


def cost_png(records: Sequence[dict[str, Any]], theme: Theme = LIGHT) -> bytes | None:
    """Draw test score against MACs, with bars of the standard error over seeds.

    ``None`` where the MACs of fewer than two models are known.
    """
    shown = [record for record in records if record.get("cost")]
    if len(shown) < 2:
        return None  # a point alone compares nothing
    columns = [column for column in OF_TASKS if any(column.value(record) is not None for record in shown)]
    if not columns:
        return None
    with drawing(theme):
        look = looks([record["label"] for record in records], theme)
        figure, axes = _panels(len(columns))
        for axis, column in zip(axes, columns, strict=True):
            _cost_panel(axis, column, shown, look)
        _legend(figure, [record["label"] for record in shown], look, theme)
        return png(figure)


def robustness_png(rows: Sequence[Row], labels: Sequence[str], theme: Theme = LIGHT) -> bytes | None:
    """Draw the test score by condition, clean first; ``None`` where nothing was tested on distorted audio.

    A line joins the levels of one noise; the line of the first noise begins at the clean score.

    Args:
        labels: of all models of the report, for their colours.
    """
    if not rows:
        return None
    columns = [column for column in OF_TASKS if any(row.place and column.value(row.record) is not None for row in rows)]
    with drawing(theme):
        look = looks(labels, theme)
        figure, axes = _panels(len(columns))
        for axis, column in zip(axes, columns, strict=True):
            _robustness_panel(axis, column, rows, look)
        _legend(figure, [row.label for row in rows], look, theme, lines=True)
        return png(figure)


def _grid_panel(axis: Axes, grid: GridOfTask, look: dict[str, Look], theme: Theme) -> None:
    rates = sorted(grid.rates)
    place = {rate: number for number, rate in enumerate(rates)}  # evenly spaced: close rates keep readable names
    for label in dict.fromkeys(row.label for row in grid.rows):
        rows = [row for row in grid.rows if row.label == label]
        colour, marker = look[label].colour, look[label].marker
        means = {}
        for rate in rates:
            known = [value for row in rows if (value := row.dev.get(rate)) is not None]
            if known:
                means[rate] = fmean(known)
        line = look[label].line
        axis.plot([place[rate] for rate in means], list(means.values()), color=colour, linestyle=line, zorder=2)
        for row in rows:
            points = {rate: value for rate, value in row.dev.items() if value is not None}
            axis.plot(
                [place[rate] for rate in points], list(points.values()), marker, color=colour, markersize=4.5, zorder=3
            )
        rings = [rate for rate in means if any(row.picked == rate for row in rows)]
        axis.plot(
            [place[rate] for rate in rings], [means[rate] for rate in rings], "o", markersize=11,
            markerfacecolor="none", markeredgecolor=theme.text, markeredgewidth=1.1, zorder=4,
        )  # fmt: skip
    axis.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axis.set_xlim(-0.35, len(rates) - 0.65)
    axis.margins(y=0.16)
    axis.set_xlabel("learning rate")
    axis.set_title(grid.title.partition(" by ")[0])


def _cost_panel(axis: Axes, column: Column, records: list[dict[str, Any]], look: dict[str, Look]) -> None:
    macs = []
    for record in records:
        value = column.value(record)
        if value is None:
            continue
        macs.append(record["cost"]["macs"] / 1e9)
        one = look[record["label"]]
        axis.errorbar(
            macs[-1], value, yerr=column.error(record), fmt=one.marker, color=one.colour, markersize=6.5, capsize=4.5,
            elinewidth=1.5, capthick=1.5,
        )  # fmt: skip
    # From 0 and linear: half the cost is half the way, and features without a model (fbank) stand at the axis.
    axis.set_xlim(-0.05 * max(macs), 1.12 * max(macs))
    axis.set_xlabel("G MACs over the challenge's 32 utterances")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value == int(value) else f"{value:g}")
    axis.margins(y=0.18)
    axis.set_title(column.heading)


def _robustness_panel(axis: Axes, column: Column, rows: Sequence[Row], look: dict[str, Look]) -> None:
    names = {row.place: row.condition for row in sorted(rows, key=lambda row: row.place)}
    tick = {place: number for number, place in enumerate(names)}
    first = next((row.series for row in rows if row.place == 1), "")
    for label in dict.fromkeys(row.label for row in rows):
        one = look[label]
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            value = column.value(row.record)
            if row.label != label or value is None:
                continue
            at, error = tick[row.place], column.error(row.record)
            axis.errorbar(at, value, error, fmt=one.marker, color=one.colour, markersize=5.5, capsize=3.5, zorder=3)
            lines.setdefault(row.series if row.place else first, []).append((at, value))
        lines.pop("", None)
        for line in lines.values():
            axis.plot(*zip(*line, strict=True), color=one.colour, linestyle=one.line, zorder=2)
    slanted = sum(map(len, names.values())) > _TICKS
    axis.set_xticks(range(len(names)), list(names.values()))
    if slanted:
        axis.tick_params("x", rotation=30)
    axis.set_xlim(-0.35, len(names) - 0.65)
    axis.margins(y=0.16)
    axis.set_title(column.heading)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """``count`` panels, two side by side; an odd last one stands alone."""
    import matplotlib.pyplot as plt

    across = min(count, 2)
    down = math.ceil(count / across)
    figure, axes = plt.subplots(down, across, figsize=(WIDTH, 2.7 * down + 0.1), squeeze=False)
    figure.set_layout_engine("constrained", h_pad=0.09, w_pad=0.09)  # a title is further from the panel above
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def _legend(
    figure: Figure, labels: list[str], look: dict[str, Look], theme: Theme, lines: bool = False, ring: bool = False
) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=one.colour, marker=one.marker, linestyle=one.line if lines else "", label=name)
        for name, one in {name: look[name] for name in labels}.items()
    ]
    if ring:
        handles.append(Line2D(
            [], [], marker="o", markersize=10, markerfacecolor="none", markeredgecolor=theme.text, linestyle="",
            label="picked",
        ))  # fmt: skip
    legend_below(figure, handles)
