"""How a teacher's source is written that has more than a name or a path: ``random:SOURCE``, ``s3prl:NAME:CKPT``.

What can be named, and what it is, is ``teachers/``'s to say.
"""

from __future__ import annotations

import re

RANDOM = "random:"
S3PRL = "s3prl:"


def split_source(source: str) -> tuple[str, str]:
    """A source as what may stand before a path (``random:``, ``s3prl:NAME:``, nothing), and the path or name itself."""
    match = re.match(f"{RANDOM}|{S3PRL}[^:]+:", source)
    prefix = match.group() if match else ""
    return prefix, source.removeprefix(prefix)


def split_upstream(source: str) -> tuple[str, str]:
    """NAME and CKPT of ``s3prl:NAME:CKPT``; CKPT is empty in ``s3prl:NAME``."""
    name, _, checkpoint = source.removeprefix(S3PRL).partition(":")
    return name, checkpoint
