"""Ensemble knowledge distillation of speech teachers into one small student, for s3prl and SUPERB.

``s3prl_ekd.register()`` makes the student known to s3prl in this process::

    import s3prl_ekd
    s3prl_ekd.register()
    from s3prl.nn import S3PRLUpstream
    student = S3PRLUpstream("ekd_student", path_or_url="result/pretrain/NAME")

Without s3prl::

    student = s3prl_ekd.load_student("result/pretrain/NAME").encoder
    states = s3prl_ekd.encode_clips(student, [wave]).states  # layer -> (1, T, D)

Importing this package imports neither torch nor s3prl: other names are imported when they are asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.version import __version__

if TYPE_CHECKING:
    from s3prl_ekd.config import ModelConfig, load_model_config
    from s3prl_ekd.distill.objective import Objective
    from s3prl_ekd.model.clips import encode_clips
    from s3prl_ekd.model.encoder import Encoder
    from s3prl_ekd.model.student import Student
    from s3prl_ekd.shape import EncoderShape
    from s3prl_ekd.student_checkpoint import load_student
    from s3prl_ekd.teachers.build import load_teacher
    from s3prl_ekd.teachers.ensemble import FrozenTeachers
    from s3prl_ekd.torch_file import read_torch_file

_MODULES = {
    "Encoder": "model.encoder",
    "EncoderShape": "shape",
    "FrozenTeachers": "teachers.ensemble",
    "ModelConfig": "config",
    "Objective": "distill.objective",
    "Student": "model.student",
    "encode_clips": "model.clips",
    "load_model_config": "config",
    "load_student": "student_checkpoint",
    "load_teacher": "teachers.build",
    "read_torch_file": "torch_file",
}

__all__ = [
    "EkdError",
    "Encoder",
    "EncoderShape",
    "FrozenTeachers",
    "ModelConfig",
    "Objective",
    "Student",
    "__version__",
    "encode_clips",
    "load_model_config",
    "load_student",
    "load_teacher",
    "read_torch_file",
    "register",
]


def register() -> None:
    """Patch s3prl for the installed torch stack and add ``ekd_student*`` to ``s3prl.hub`` (safe to call again)."""
    from s3prl_ekd.compat.hub import register as _register

    _register()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
