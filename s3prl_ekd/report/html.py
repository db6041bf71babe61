"""The few HTML parts that every section of the report is made of; text is escaped here, bodies are HTML already."""

from __future__ import annotations

import base64
from collections.abc import Callable
from html import escape

from s3prl_ekd.report.style import DARK, LIGHT, Theme

Draw = Callable[[Theme], bytes | None]


def figure(draw: Draw, caption: str) -> str:
    """One figure in both themes, embedded; empty when there is nothing to draw."""
    light, dark = draw(LIGHT), draw(DARK)
    if light is None or dark is None:
        return ""
    sources = [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in (light, dark)]
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{sources[1]}">'
        f'<img alt="{escape(caption, quote=True)}" src="{sources[0]}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def section(title: str, body: str) -> str:
    """A card with a heading."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def note(text: str) -> str:
    """A muted sentence below a table."""
    return f"<p class=note>{escape(text)}</p>"


def fold(summary: str, body: str) -> str:
    """A block that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
