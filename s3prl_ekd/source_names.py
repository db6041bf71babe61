"""How a teacher's source is written that has more than a name or a path.

``random:SOURCE``, ``s3prl:NAME:CKPT``, ``hf:OWNER/NAME@REVISION``, ``hf:OWNER/NAME/FILE@REVISION``.

What can be named, and what it is, is ``teachers/``'s to say.
"""

from __future__ import annotations

import re
from typing import NamedTuple

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


class HubModel(NamedTuple):
    """What ``hf:OWNER/NAME/FILE@REVISION`` names."""

    repository: str
    """OWNER/NAME."""
    file: str | None
    """FILE, which may lie in a folder of the repository; None: the transformers model that the repository is."""
    revision: str | None
    """Branch, tag or commit; None: the newest commit."""

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit's whole hash: the same files for ever, where branches and tags move."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def split_hub_model(source: str) -> HubModel:
    """The parts of a source that begins with :data:`HF`."""
    name, _, revision = source.removeprefix(HF).partition("@")
    owner, _, rest = name.partition("/")
    model, _, file = rest.partition("/")
    return HubModel(f"{owner}/{model}" if model else name, file or None, revision or None)


def is_pinned_form(pinned: str, source: str) -> bool:
    """Whether ``pinned`` is the commit of what ``source`` names on the Hugging Face Hub without a revision."""
    if not (pinned.startswith(HF) and source.startswith(HF)):
        return False
    kept, given = split_hub_model(pinned), split_hub_model(source)
    return kept.is_pinned and given == kept._replace(revision=None)
