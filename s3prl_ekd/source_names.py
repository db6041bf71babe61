"""How a teacher's source is written that has more than a name or a path.

``random:SOURCE``, ``s3prl:NAME:CKPT``, ``hf:OWNER/NAME@REVISION``.

What can be named, and what it is, is ``teachers/``'s to say.
"""

from __future__ import annotations

import re

RANDOM = "random:"
S3PRL = "s3prl:"
HF = "hf:"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def split_source(source: str) -> tuple[str, str]:
    """A source as what may stand before a path (``random:``, ``s3prl:NAME:``, nothing), and the path or name itself."""
    match = re.match(f"{RANDOM}|{S3PRL}[^:]+:", source)
    prefix = match.group() if match else ""
    return prefix, source.removeprefix(prefix)


def split_upstream(source: str) -> tuple[str, str]:
    """NAME and CKPT of ``s3prl:NAME:CKPT``; CKPT is empty in ``s3prl:NAME``."""
    name, _, checkpoint = source.removeprefix(S3PRL).partition(":")
    return name, checkpoint


def split_repository(source: str) -> tuple[str, str | None]:
    """OWNER/NAME and REVISION of ``hf:OWNER/NAME@REVISION``; the revision is None in ``hf:OWNER/NAME``."""
    repository, _, revision = source.removeprefix(HF).partition("@")
    return repository, revision or None


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit's whole hash, which is the same files for ever; branches and tags move."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def is_pinned_form(pinned: str, source: str) -> bool:
    """Whether ``pinned`` is the commit of the repository that ``source`` names without a revision."""
    (repository, revision), (name, no_revision) = split_repository(pinned), split_repository(source)
    both = pinned.startswith(HF) and source.startswith(HF)
    return both and repository == name and is_commit(revision) and no_revision is None
