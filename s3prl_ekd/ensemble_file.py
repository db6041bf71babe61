"""The list of models that stand side by side as one upstream: ``run_downstream.py -u ekd_ensemble -k FILE``.

A YAML list of ``{ckpt: CHECKPOINT}`` and ``{teacher: SOURCE}``, as in ``evaluate --models``; paths begin at the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from s3prl_ekd.checked import read_each
from s3prl_ekd.errors import EkdError
from s3prl_ekd.source_names import HF, S3PRL
from s3prl_ekd.teachers.names import check_source, model_path
from s3prl_ekd.user_paths import expanded

ENSEMBLE = "ekd_ensemble"  # the hub name of the upstream
Kind = Literal["ckpt", "teacher"]
_FORM = "{ckpt: CHECKPOINT} or {teacher: SOURCE}"


class Member(NamedTuple):
    """One of the models."""

    kind: Kind
    """A student, or a teacher."""
    source: str
    """An absolute path; of a teacher also any other source."""


def read_members(file: Path) -> list[Member]:
    """The models that a file lists, in its order.

    Raises:
        EkdError: no such list of two or more, or a model that is not there.
    """
    expected = f"a list of two models or more, each of them {_FORM}"
    return read_each(file, lambda entry: _member(entry, file.parent), least=2, expected=expected)


def _member(entry: Any, folder: Path) -> Member:
    if not isinstance(entry, dict) or len(entry) != 1 or not all(isinstance(value, str) for value in entry.values()):
        raise EkdError(f"expected {_FORM}")
    ((kind, source),) = entry.items()
    if kind not in get_args(Kind):
        raise EkdError(f"unknown key {kind!r}; expected {_FORM}")
    if kind == "ckpt":
        path = folder / expanded(source)
        if source.startswith(HF):
            check_source(source, "ckpt")
            return Member("ckpt", source)
        if not source or not path.exists():
            raise EkdError(f"ckpt: no such file or folder: {path}")
        return Member("ckpt", str(path.resolve()))
    if source.startswith(S3PRL):
        raise EkdError(f"teacher: {source}: is an upstream of s3prl's own, which cannot stand beside others")
    found = model_path(source, folder) or model_path(source)
    source = source if found is None else str(found.resolve())
    check_source(source, "teacher")
    return Member("teacher", source)
