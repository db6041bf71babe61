"""What recipes.mini_superb finds before it calls any command."""

from __future__ import annotations

from pathlib import Path

import yaml

from recipes.mini_superb.__main__ import SETS


def write_data(folder: Path) -> None:
    """Speech that need not be there, and what ``prepare`` would make of it."""
    for name in SETS:
        (folder / "speech" / name).mkdir(parents=True)
        (folder / "speech" / name / "manifest.tsv").touch()
    (folder / "work" / "data").mkdir(parents=True)
    for name in ("pretrain", "pr", "asr", "sid", "er"):
        empty = {"runner": {}, "optimizer": {}, "pretrain_expert": {"datarc": {}}}
        (folder / "work" / "data" / f"{name}.yaml").write_text(yaml.safe_dump(empty))
