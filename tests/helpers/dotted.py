"""Configurations with other values at dotted keys."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration with other values at its keys (``ekd.teachers.1.source``)."""
    found = copy.deepcopy(dict(values))
    for key, value in changes.items():
        target: Any = found
        *sections, last = (int(part) if part.isdigit() else part for part in key.split("."))
        for section in sections:
            target = target[section] if isinstance(target, list) else target.setdefault(section, {})
        target[last] = value
    return found
