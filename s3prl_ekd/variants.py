"""The configurations that ship with the package: where they are, and what the name given to ``-g`` means."""

from __future__ import annotations

from pathlib import Path

from s3prl_ekd.config_files import find_config
from s3prl_ekd.shipped import shipped
from s3prl_ekd.spelling import did_you_mean

BASE = "config_model"
"""The paper's recipe, which every variant starts from."""


def packaged(name: str) -> Path:
    """Path of a file of pretrain/ekd as installed (config_model.yaml, variants/average.yaml)."""
    return shipped(f"pretrain/ekd/{name}")


def variant_names() -> list[str]:
    """Names of the files of pretrain/ekd/variants/, sorted."""
    return sorted(file.stem for file in packaged("variants").glob("*.yaml"))


def variant_file(name: str) -> Path:
    """A variant's packaged file, there or not; ``config_model`` is the base."""
    return packaged(f"{BASE}.yaml" if name == BASE else f"variants/{name}.yaml")


def find_model_config(value: str, flag: str = "-g") -> Path:
    """The file that a user means: a path, a variant's name, or a path inside this repository (``pretrain/ekd/...``).

    Raises:
        EkdError: none is there; with the names of all variants.
    """
    ekd = packaged(".")
    near = "" if "/" in value else did_you_mean(value, variant_names())
    hint = f" (variants by name: {', '.join(variant_names())}){near}"
    return find_config(flag, value, (ekd / "variants", ekd, ekd.parent.parent), hint)
