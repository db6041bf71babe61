"""s3prl hub entries of the distilled student, in the form of s3prl's own ``upstream/*/hubconf.py``.

``ekd_student(ckpt)`` takes a checkpoint or an experiment folder of ``run_pretrain.py -u ekd``, or a URL; without one,
``model_config`` builds an untrained student. The model is in ``expert.py``; it is imported only when an entry is
called, so that registering stays cheap.
"""

from __future__ import annotations

from typing import Any


def ekd_student_local(ckpt: str | None = None, *args: Any, **kwargs: Any) -> Any:
    """The student from a local file.

    Args:
        ckpt: ``states-N.ckpt``, or an experiment folder (its newest checkpoint); None with ``model_config`` in
            ``kwargs`` gives an untrained student.
    """
    from s3prl_ekd.upstream.ekd_student.expert import UpstreamExpert

    return UpstreamExpert(ckpt, *args, **kwargs)


def ekd_student_url(ckpt: str, refresh: bool = False, *args: Any, **kwargs: Any) -> Any:
    """The student from a URL, kept in s3prl's download cache.

    Args:
        ckpt: the URL of a checkpoint.
        refresh: download again although the file is in the cache.
    """
    from s3prl_ekd.compat.hub import download

    return ekd_student_local(str(download(ckpt, refresh)), *args, **kwargs)


def ekd_student(ckpt: str | None = None, refresh: bool = False, *args: Any, **kwargs: Any) -> Any:
    """The student from a local file, an experiment folder, the Hugging Face Hub (``hf:OWNER/NAME``) or a URL (``://``)."""
    if ckpt is not None and "://" in str(ckpt):
        return ekd_student_url(ckpt, refresh, *args, **kwargs)
    return ekd_student_local(ckpt, *args, **kwargs)


def ekd_student_with_heads(ckpt: str | None = None, refresh: bool = False, *args: Any, **kwargs: Any) -> Any:
    """The student with its training heads, whose predictions are hidden states too; not of layerwise_concat.

    ``-s heads_averaged`` takes the mean over the teachers' heads in their place.
    """
    return ekd_student(ckpt, refresh, *args, with_heads=True, **kwargs)
