"""Whether the teachers of a run that goes on are those that it began with, wherever their files lie now."""

from __future__ import annotations

from collections.abc import Mapping

from s3prl_ekd.errors import EkdError
from s3prl_ekd.teachers.build import TeacherPlan
from s3prl_ekd.teachers.fingerprint import files_digest


def own_files(plan: TeacherPlan) -> dict[str, str]:
    """Teacher -> SHA-256 of its file or folder (about a second a gigabyte); hub names mean the same everywhere, and so
    do those of the Hugging Face Hub with the commit that a run's configuration gives them.

    Raises:
        EkdError: a file cannot be read.
    """
    return {
        name: files_digest(source.path, plan.where(name))
        for name, source in plan.sources.items()
        if source.path is not None and source.kind not in {"embedded", "huggingface"}
    }


def check_same(plan: TeacherPlan, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Compare the :func:`own_files` of a checkpoint and of the run that goes on from it.

    Raises:
        EkdError: a teacher has other weights.
    """
    for name, source in plan.sources.items():
        if name in before and name in now and before[name] != now[name]:
            raise EkdError(
                f"{plan.where(name)}: {source.source}: not the weights of {name} that the run was started with"
            )
