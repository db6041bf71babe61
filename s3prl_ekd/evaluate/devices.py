"""Where runs go: the devices of ``--devices``, and how a native run is kept to one GPU.

A run on ``cuda:1`` is started with ``--device cuda`` and sees that one GPU through CUDA_VISIBLE_DEVICES: parts of s3prl
and of many upstreams say plain ``cuda``, which would land on the first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from s3prl_ekd.device import find_device
from s3prl_ekd.errors import EkdError


def parse_devices(text: str | None) -> list[str]:
    """``"cuda:0,cuda:1"`` as a list; ``None`` is ``cuda`` where PyTorch sees a GPU, else ``cpu``."""
    if text is None:
        import torch  # a --help needs no torch

        return ["cuda" if torch.cuda.is_available() else "cpu"]
    devices = [part.strip() for part in text.split(",") if part.strip()]
    for device in devices:
        if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
            raise EkdError(f"--devices: unknown device {device!r}; expected cpu, cuda, or some of cuda:0,cuda:1,...")
    if not devices:
        raise EkdError("--devices: expected cpu, cuda, or some of cuda:0,cuda:1,...")
    if len(set(devices)) < len(devices):
        raise EkdError(f"--devices {text}: a device is named twice; --jobs N puts several runs on each")
    return devices


def check_devices(devices: Sequence[str]) -> None:
    """:class:`EkdError` for a GPU that this machine does not have."""
    for device in devices:
        if device != "cpu":
            find_device(device, "--devices")


def native_device(device: str) -> str:
    """What a native command's ``--device`` says: ``cuda`` or ``cpu``."""
    return device.partition(":")[0]


def visible(device: str) -> dict[str, str]:
    """The environment that leaves a child process this one GPU; a CUDA_VISIBLE_DEVICES of ours is looked through."""
    number = device.partition(":")[2]
    if not number:
        return {}
    ours = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return {"CUDA_VISIBLE_DEVICES": ours[int(number)] if int(number) < len(ours) else number}


def slots(devices: Sequence[str], jobs: int) -> list[str]:
    """A device for each of ``jobs`` runs at a time, dealt in turn."""
    return [devices[number % len(devices)] for number in range(jobs)]
