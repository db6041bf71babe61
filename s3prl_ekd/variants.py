"""The configurations that ship with the package: where they are, and what the name given to ``-g`` means."""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path

from s3prl_ekd.errors import EkdError
from s3prl_ekd.spelling import did_you_mean

BASE = "config_model"
"""The paper's recipe, which every variant starts from."""


def packaged(name: str) -> Path:
    """Path of a file of pretrain/ekd as installed (config_model.yaml, variants/average.yaml)."""
    return Path(str(importlib.resources.files("s3prl_ekd.pretrain.ekd").joinpath(name)))


def variant_names() -> list[str]:
    """Names of the files of pretrain/ekd/variants/, sorted."""
    return sorted(file.stem for file in packaged("variants").glob("*.yaml"))


def variant_file(name: str) -> Path:
    """A variant's packaged file, there or not; ``config_model`` is the base."""
    return packaged(f"{BASE}.yaml" if name == BASE else f"variants/{name}.yaml")


def find_model_config(value: str, flag: str = "-g") -> Path:
    """The file that a user means: a path, a variant's name, or a path inside this repository (``pretrain/ekd/...``).

    A file beside the user comes first, with or without ``.yaml``.

    Raises:
        EkdError: none is there; with the names of all variants.
    """
    candidates = [Path(value).expanduser()]
    if "/" not in value:
        stem = value.removesuffix(".yaml")
        candidates += [Path(f"{stem}.yaml"), variant_file(stem)]
    candidates.append(packaged(re.sub(r"^(\./)?pretrain/ekd/", "", value)))  # it may be installed under another folder
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    hint = "" if "/" in value else did_you_mean(value, variant_names())
    raise EkdError(f"{flag} {value}: no such config file (variants by name: {', '.join(variant_names())}){hint}")
