"""What made a score: the model and its settings, the versions of the software, the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

from s3prl_ekd import environment
from s3prl_ekd.evaluate.inputs import model_digest
from s3prl_ekd.evaluate.plan import Run


def made_by(runs: Sequence[Run], preset: str) -> dict[str, Any]:
    """The model and the settings that all runs of one record share (``conditions.py``), and its label."""
    upstream = runs[0].upstream
    return {
        "label": upstream.label,
        **upstream.record(),
        "checkpoint_sha256": model_digest(upstream),
        "preset": preset,
        "normalize": runs[0].normalize,
        "cache_states": runs[0].cache is not None,
        "data": str(runs[0].config.parent),
    }


def versions() -> dict[str, str]:
    """Versions of what a score depends on."""
    return environment.versions("jiwer")


def deciding_versions() -> dict[str, str]:
    """Versions of the two packages whose code decides a score."""
    return {name: version for name, version in versions().items() if name in ("s3prl", "s3prl-ekd")}


def machine(devices: Sequence[str]) -> dict[str, Any]:
    """The machine that runs were on: cores, system, devices (GPUs by their names)."""
    facts: dict[str, Any] = {"system": platform.platform(), "cpu_cores": os.cpu_count(), "device": ", ".join(devices)}
    if any(device.startswith("cuda") for device in devices):
        import torch  # only where there is a GPU to name

        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(device) for device in devices if device.startswith("cuda")]
            facts["gpu"] = ", ".join(dict.fromkeys(names))
    return facts
