"""Colours and matplotlib settings of the report, for a light page and for a dark one; legends below figures."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.typing import LineStyleType

WIDTH = 9.3  # inches: the page's column, so that all letters are of one size
_LEGEND_LINE = 14  # characters of names, handles and gaps in an inch under a figure
_LEGEND_HANDLE = 7  # of them, a handle and its gaps
_LEGEND_ROW = 0.19  # inches
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINES: tuple[LineStyleType, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)))


@dataclass(frozen=True)
class Theme:
    """Colours that a figure and the page around it share."""

    page: str
    card: str
    text: str
    muted: str
    grid: str
    accent: str
    teachers: tuple[str, ...]  # one hue a teacher; layers are its shades
    heat: tuple[str, ...]  # of the layer weights: from none, near the card, to most


LIGHT = Theme(
    page="#f6f7f9",
    card="#ffffff",
    text="#1c2430",
    muted="#667085",
    grid="#e4e7ec",
    accent="#2563eb",
    teachers=("#2563eb", "#c2410c", "#0f766e", "#7c3aed", "#be185d", "#4d7c0f"),
    heat=("#f2f6ff", "#8fb3f7", "#1d4ed8", "#172f7a"),
)
DARK = Theme(
    page="#0f1319",
    card="#171d26",
    text="#e6eaf0",
    muted="#98a2b3",
    grid="#2b3441",
    accent="#7aa7ff",
    teachers=("#7aa7ff", "#ff9e64", "#4fd1c5", "#b794f6", "#f687b3", "#a3d977"),
    heat=("#1b2330", "#24468a", "#5b8def", "#c3d8ff"),
)


@contextmanager
def drawing(theme: Theme) -> Iterator[None]:
    """Matplotlib without a screen, in the theme's colours."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.use("Agg", force=True)
        matplotlib.rcParams.update(
            {
                "figure.facecolor": theme.card,
                "axes.facecolor": theme.card,
                "savefig.facecolor": theme.card,
                "text.color": theme.text,
                "axes.labelcolor": theme.muted,
                "axes.titlecolor": theme.text,
                "axes.edgecolor": theme.grid,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "axes.titlesize": 11,
                "axes.titleweight": "bold",
                "axes.titlelocation": "left",
                "axes.labelsize": 9,
                "grid.color": theme.grid,
                "grid.linewidth": 0.8,
                "xtick.color": theme.muted,
                "ytick.color": theme.muted,
                "xtick.labelsize": 8.5,
                "ytick.labelsize": 8.5,
                "xtick.major.size": 0,
                "ytick.major.size": 0,
                "legend.frameon": False,
                "legend.fontsize": 8.5,
                "font.family": ["DejaVu Sans"],
                "text.parse_math": False,  # a label with dollar signs is a label
                "font.size": 9.5,
                "lines.linewidth": 1.9,
                "lines.solid_capstyle": "round",
                "figure.dpi": 144,
            }
        )
        yield


@dataclass(frozen=True)
class Look:
    """A model's or run's colour, marker and line: hues repeat after six with another marker or line, all after 108."""

    colour: str
    marker: str
    line: LineStyleType


def looks(labels: Sequence[str], theme: Theme) -> dict[str, Look]:
    """A look for each label, in their order."""
    found = {}
    for number, label in enumerate(dict.fromkeys(labels)):
        turn, hue = divmod(number, len(theme.teachers))
        marker = turn % len(_MARKERS)
        line = (turn + turn // len(_MARKERS)) % len(_LINES)
        found[label] = Look(theme.teachers[hue], _MARKERS[marker], _LINES[line])
    return found


def legend_below(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Name the lines under the panels, in as many columns as their labels leave room for; the panels keep their size.

    The figure is :data:`WIDTH` wide and has the constrained layout. A label that is wider still is broken into lines.
    """
    room = int(WIDTH * _LEGEND_LINE)
    for handle in handles:
        handle.set_label("\n".join(textwrap.wrap(str(handle.get_label()), room - _LEGEND_HANDLE)))
    lines = [str(handle.get_label()).splitlines() or [""] for handle in handles]
    longest = max(len(line) for label in lines for line in label) + _LEGEND_HANDLE
    columns = max(1, min(len(handles), room // longest))
    rows = math.ceil(len(handles) / columns) * max(map(len, lines))
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * rows)
    figure.legend(handles=handles, loc="outside lower left", ncols=columns)


def shade(colour: str, position: float, theme: Theme) -> tuple[float, float, float]:
    """A teacher's hue for one of its layers: 0 (shallow) fades towards the card, 1 (deep) is the full hue."""
    from matplotlib.colors import to_rgb

    strength = 0.42 + 0.58 * position
    red, green, blue = (
        strength * full + (1 - strength) * back for full, back in zip(to_rgb(colour), to_rgb(theme.card), strict=True)
    )
    return red, green, blue
