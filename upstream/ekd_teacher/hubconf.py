"""s3prl hub entry of teachers, in the form of s3prl's own ``upstream/*/hubconf.py``."""

from __future__ import annotations

from typing import Any


def ekd_teacher(ckpt: str | None = None, *args: Any, **kwargs: Any) -> Any:
    """A teacher as an upstream.

    Args:
        ckpt: any source that ``ekd.teachers[].source`` may name.
    """
    from s3prl_ekd.upstream.ekd_teacher.expert import UpstreamExpert

    return UpstreamExpert(ckpt, *args, **kwargs)
