"""The few HTML parts that every section of the report is made of; text is escaped here, bodies are HTML already."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from html import escape

from s3prl_ekd.report.style import DARK, LIGHT, Theme

Draw = Callable[[Theme], bytes | None]


def figure(draw: Draw, caption: str, alt: str) -> str:
    """One figure in both themes, embedded; empty when there is nothing to draw.

    Args:
        alt: what it shows, for those who do not see it.
    """
    light, dark = draw(LIGHT), draw(DARK)
    if light is None or dark is None:
        return ""
    # Two pictures and a style that shows one: of a <picture> browsers do not choose the source again for paper.
    shown = escape(alt, quote=True)
    pictures = "".join(
        f'<img class={theme} alt="{shown}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for theme, data in (("light", light), ("dark", dark))
    )
    return f"<figure><div class=scroll>{pictures}</div><figcaption>{escape(caption)}</figcaption></figure>"


def table(classes: str, head: str, rows: str) -> str:
    """A table that scrolls by itself where it is wider than the page; its head is on each sheet of paper.

    Args:
        classes: of the style sheet.
        head: the cells of the first row, without that of the row names; may be empty.
        rows: whole ones.
    """
    head = head and f"<thead><tr><td></td>{head}</tr></thead>"
    return f'<div class=scroll><table class="{classes}">{head}<tbody>{rows}</tbody></table></div>'


def breakable(text: str) -> str:
    """A name that may be broken behind its ``_ . - /``, as no browser does by itself; numbers stay whole."""
    return re.sub(r"(?<=[_./-])(?=[^\W\d_])", "<wbr>", escape(text))


def pre(text: str) -> str:
    """Text as it stands in a file."""
    return f"<pre>{escape(text)}</pre>"


def section(title: str, body: str) -> str:
    """A card with a heading."""
    return f"<section><h2>{breakable(title)}</h2>{body}</section>"


def note(text: str) -> str:
    """A muted sentence below a table."""
    return f"<p class=note>{escape(text)}</p>"


def fold(summary: str, body: str) -> str:
    """A block that opens on a click; on paper, only where it is open."""
    return f"<details><summary>{breakable(summary)}</summary>{body}</details>"
