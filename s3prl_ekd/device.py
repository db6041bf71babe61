"""What ``--device`` names, checked before anything is loaded; the CPUs that there are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from s3prl_ekd.errors import EkdError

if TYPE_CHECKING:
    import torch

DEVICE_FILES = Path("/dev")
"""Where NVIDIA's driver, Windows' for Linux (dxg) and AMD's (kfd) show GPUs."""


def usable_cpus() -> int:
    """CPUs that this process may use: a job's share of a machine, not all of it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_device(name: str, option: str = "--device") -> torch.device:
    """The device of that name.

    A GPU is counted, not used: several ranks ask before each has taken its own.

    Raises:
        EkdError: no device is called so, or torch cannot compute on it here.
    """
    import torch  # the launchers set up its environment before

    try:
        device = torch.device(str(name))  # -o args.device may give anything
    except RuntimeError as error:
        raise EkdError(f"{option} {name}: is no device; expected cpu, cuda, or one of cuda:0, cuda:1, ...") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0 or not torch.cuda.is_available():
            raise EkdError(f"{option} {name}: torch sees no CUDA GPU here; give {option} cpu")
        if (device.index or 0) >= count:
            raise EkdError(f"{option} {name}: torch sees {count} CUDA GPU{'s' * (count > 1)} here, the first is cuda:0")
        return device
    try:
        torch.empty(1, device=device).add(1).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # the latter two: torch built without it
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise EkdError(f"{option} {name}: not usable here ({reason})") from error
    return device


def default_device() -> str:
    """The device of a command that is given none: ``cuda`` where PyTorch sees a GPU, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def shows_gpu() -> bool:
    """Whether this machine shows a GPU that torch may use, for commands that are only printed.

    By the drivers' device files: torch, which knows, takes seconds to import.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    return any(any(DEVICE_FILES.glob(pattern)) for pattern in ("nvidia[0-9]*", "dxg", "kfd"))


def use_device(name: str) -> torch.device:
    """:func:`find_device`, and of ``cuda:N`` make it the current GPU: its random generator is saved, and code that says
    plain ``cuda`` takes it.

    Raises:
        EkdError: as there.
    """
    import torch

    device = find_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device
