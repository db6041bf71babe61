"""Files that ship with this package: where they are as installed."""

from __future__ import annotations

import importlib.resources
from pathlib import Path


def shipped(name: str) -> Path:
    """The path of ``pretrain/ekd/variants``, ``downstream_configs/pr.yaml``, ``resources/char.dict`` and the like.

    In a source checkout pretrain/ and downstream_configs/ lie beside s3prl_ekd/ and are mapped into it by package_dir.
    """
    folder, _, rest = name.partition("/")
    return Path(str(importlib.resources.files(f"s3prl_ekd.{folder}"))) / rest
