"""s3prl hub entry of models side by side, in the form of s3prl's own ``upstream/*/hubconf.py``."""

from __future__ import annotations

from typing import Any


def ekd_ensemble(ckpt: str | None = None, *args: Any, **kwargs: Any) -> Any:
    """Several students and teachers as one upstream.

    Args:
        ckpt: the YAML file that lists them (``ensemble_file.py``).
    """
    from s3prl_ekd.upstream.ekd_ensemble.expert import UpstreamExpert

    return UpstreamExpert(ckpt, *args, **kwargs)
