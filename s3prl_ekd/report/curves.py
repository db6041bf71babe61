"""The report's figures as PNG bytes: losses of one run and of several, learning rate, layer weights.

Figures of scores are in ``score_figures.py``. Data comes from ``sources.py``, colours from ``style.py``; the page that
holds the figures is ``page.py``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from s3prl_ekd.report.sources import Evaluation, Pretraining, split_head
from s3prl_ekd.report.style import LIGHT, WIDTH, Theme, drawing, legend_below, looks, shade

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSINE_FLOOR = math.log1p(math.exp(-1.0))  # -log sigmoid(1) = 0.313: the term where prediction and target are parallel
TERMS = (("l1", "L1"), ("cosine", "−log σ(cos)"), ("gradient_share", "share of gradient"))
_VALIDATION = {"linestyle": (0, (1, 1.2)), "marker": "o", "markersize": 3.2}


def head_losses_png(run: Pretraining, theme: Theme = LIGHT) -> bytes:
    """Draw the losses: a column a teacher, a row a loss term, a line a layer; a row shares its scale, to compare.

    Dots are held-out speech's. A third row, where it was logged, is the share of the gradient that each head has.
    """
    import matplotlib.pyplot as plt

    heads = run.heads()
    teachers = list(dict.fromkeys(split_head(head)[0] for head in heads))
    terms = [(term, label) for term, label in TERMS if any(series(run.metrics, head, term)[0] for head in heads)]
    with drawing(theme):
        columns, rows = max(len(teachers), 1), len(terms)
        figure, axes = plt.subplots(
            rows, columns, figsize=(max(3.1 * columns, 4.6), 0.3 + 2.2 * rows), sharex=True, sharey="row", squeeze=False
        )
        for column, teacher in enumerate(teachers):
            layers = [head for head in heads if split_head(head)[0] == teacher]
            hue = theme.teachers[column % len(theme.teachers)]
            for row, (term, _) in enumerate(terms):
                for rank, head in enumerate(layers):
                    colour = shade(hue, rank / max(len(layers) - 1, 1), theme)
                    steps, values = series(run.metrics, head, term)
                    axes[row][column].plot(steps, values, color=colour, label=f"layer {split_head(head)[1]}")
                    axes[row][column].plot(*series(run.validation, head, term), color=colour, **_VALIDATION)
                if term == "cosine":
                    axes[row][column].axhline(COSINE_FLOOR, color=theme.muted, linewidth=0.9, linestyle=(0, (2, 3)))
            axes[0][column].set_title(teacher)
            axes[0][column].legend(loc="best", handlelength=1.4, labelspacing=0.25)
            axes[-1][column].set_xlabel("step")
        for row, (term, label) in enumerate(terms):
            axes[row][0].set_ylabel(label)
            if term == "cosine":
                axes[row][0].annotate(
                    "parallel", (0.01, COSINE_FLOOR), xycoords=("axes fraction", "data"), xytext=(0, 2),
                    textcoords="offset points", fontsize=7.5, color=theme.muted, va="bottom",
                )  # fmt: skip
        return png(figure)


def overview_png(run: Pretraining, theme: Theme = LIGHT) -> bytes:
    """Draw the total loss over the steps, of held-out speech too, and, where it was logged, the learning rate."""
    import matplotlib.pyplot as plt

    with drawing(theme):
        with_rate = any("lr" in line for line in run.metrics)
        panels = 1 + with_rate
        figure, axes = plt.subplots(1, panels, figsize=(WIDTH, 2.7), width_ratios=(2, 1)[:panels], squeeze=False)
        losses = axes[0][0]
        _line(losses, run, "loss", theme.accent, "loss, mean over heads")
        steps, values = logged(run.validation, "loss")
        if steps:
            losses.plot(steps, values, color=theme.teachers[1], label="validation", **_VALIDATION)
            losses.lines[0].set_label("training")
            losses.legend(loc="best")
        if with_rate:
            rates = axes[0][1]
            _line(rates, run, "lr", theme.muted, "learning rate")
            # Powers of ten at each tick: matplotlib's common factor above the axis would push the title up.
            rates.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}".replace("e-0", "e-") if value else "0")
        return png(figure)


def comparison_png(runs: Sequence[Pretraining], theme: Theme = LIGHT) -> bytes:
    """Draw the losses of several runs over each other: of training, smoothed, and beside it of held-out speech."""
    import matplotlib.pyplot as plt

    with drawing(theme):
        held_out = any(run.validation for run in runs)
        figure, axes = plt.subplots(
            1, 1 + held_out, figsize=(WIDTH, 3.1), sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
        lines = []
        look_of = looks([run.label for run in runs], theme)
        for run in runs:
            look = look_of[run.label]
            style = {"color": look.colour, "linestyle": look.line, "markersize": 3.2}
            steps, values = logged(run.metrics, "loss")
            axes[0][0].plot(steps, values, color=look.colour, linewidth=0.7, alpha=0.3)
            lines += axes[0][0].plot(steps, smooth(values), marker=_marker(steps), label=run.label, **style)
            if held_out:
                axes[0][1].plot(*logged(run.validation, "loss"), marker="o", **style)
        for axis, title in zip(axes[0], ("training loss", "validation loss"), strict=False):
            axis.set_title(title)
            axis.set_xlabel("step")
        legend_below(figure, lines)
        return png(figure)


def layer_weights_png(evaluations: list[Evaluation], theme: Theme = LIGHT) -> bytes | None:
    """Draw how much of each hidden state each task uses, a panel an upstream; ``None`` when no task mixes states."""
    import matplotlib.pyplot as plt

    shown = [one for one in evaluations if one.layer_weights]
    if not shown:
        return None
    with drawing(theme):
        states = max(len(row) for one in shown for row in one.layer_weights.values())
        tasks = max(len(one.layer_weights) for one in shown)
        across = 1 if states > 6 else min(2, len(shown))
        down = math.ceil(len(shown) / across)
        figure, axes = plt.subplots(down, across, figsize=(WIDTH, down * (0.9 + 0.42 * tasks)), squeeze=False)
        for axis in axes.flat[len(shown) :]:
            axis.set_visible(False)
        for axis, one in zip(axes.flat, shown, strict=False):
            _heat(axis, one, theme)
        return png(figure)


def series(lines: Sequence[Mapping[str, Any]], head: str, term: str) -> tuple[list[int], list[float]]:
    """Steps and values of one loss term of one head, where it was logged."""
    found = [line for line in lines if term in line.get("heads", {}).get(head, {})]
    return [line["step"] for line in found], [line["heads"][head][term] for line in found]


def logged(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of what a line has one of, as the loss, where it was logged."""
    found = [line for line in lines if line.get(key) is not None]
    return [line["step"] for line in found], [line[key] for line in found]


def smooth(values: Sequence[float]) -> list[float]:
    """Each value's mean over the fortieth of the curve around it, cut at the ends: log steps are single batches."""
    reach = len(values) // 80
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _line(axis: Axes, run: Pretraining, key: str, colour: str, title: str) -> None:
    steps, values = logged(run.metrics, key)
    axis.plot(steps, values, color=colour, marker=_marker(steps))
    axis.set_title(title)
    axis.set_xlabel("step")


def _marker(steps: Sequence[int]) -> str | None:
    """A dot where there is one log step so far, and so no line to see."""
    return "o" if len(steps) == 1 else None


def _heat(axis: Axes, one: Evaluation, theme: Theme) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    tasks = list(one.layer_weights)
    values = [one.layer_weights[task] for task in tasks]
    states = len(values[0])
    # From 0: the same colour is the same weight in every panel; 2/n leaves room above the uniform 1/n.
    top = max(2.0 / states, max(max(row) for row in values))
    colours = LinearSegmentedColormap.from_list("heat", theme.heat)
    size = 9.5 if states <= 13 else 8  # of a Large model's 25 columns each is a third of an inch
    image = axis.imshow(values, aspect="auto", cmap=colours, vmin=0.0, vmax=top)
    for row, weights in enumerate(values):
        for column, weight in enumerate(weights):
            red, green, blue, _ = image.cmap(image.norm(weight))  # type: ignore[arg-type]  # numbers too
            # Luma, and white up to a middle blue: black on it has the higher ratio of luminances, yet reads worse.
            ink = "#101828" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.56 else "#ffffff"
            axis.text(column, row, f"{weight:.2f}", ha="center", va="center", fontsize=size, weight="bold", color=ink)
    axis.set_xticks(range(states), ["input"] + [f"layer {index}" for index in range(1, states)])
    axis.set_yticks(range(len(tasks)), [task.upper() for task in tasks])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_title(one.scores["label"])


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file; closes it. A figure without a layout of its own gets a tight one."""
    import matplotlib.pyplot as plt

    if figure.get_layout_engine() is None:
        figure.tight_layout(pad=0.6, w_pad=1.4)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    plt.close(figure)
    return buffer.getvalue()
