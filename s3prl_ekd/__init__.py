"""Ensemble knowledge distillation of speech teachers into one small student, for s3prl and SUPERB.

``s3prl_ekd.register()`` makes the student known to s3prl in this process::

    import s3prl_ekd
    s3prl_ekd.register()
    from s3prl.nn import S3PRLUpstream
    student = S3PRLUpstream("ekd_student", path_or_url="result/pretrain/NAME")

Importing this package imports neither torch nor s3prl.
"""

from s3prl_ekd.errors import EkdError
from s3prl_ekd.version import __version__

__all__ = ["EkdError", "__version__", "register"]


def register() -> None:
    """Patch s3prl for the installed torch stack and add ``ekd_student*`` to ``s3prl.hub`` (safe to call again)."""
    from s3prl_ekd.compat.hub import register as _register

    _register()
