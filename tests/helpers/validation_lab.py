"""Experts that validate on the held-out speech of a lab (pretrain_lab.py ``hold_out``)."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

HELD_OUT = {"valid_sets": ["valid"]}
"""What ``datarc`` says of it."""


def save(expert: Any, folder: Path, step: int = 4) -> list[dict[str, Any]]:
    """What the runner does at a checkpoint; the lines of validation.jsonl afterwards."""
    folder.mkdir(exist_ok=True)
    expert.add_state_to_save({"Step": step - 1, "Args": Namespace(expdir=str(folder))})
    file = folder / "validation.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
