"""Where runs go: the devices of ``--devices``, and how a native run is kept to one GPU.

A run on ``cuda:1`` is started with ``--device cuda`` and sees that one GPU through CUDA_VISIBLE_DEVICES: parts of s3prl
and of many upstreams use plain ``cuda``, which is the first GPU.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence

from s3prl_ekd.device import find_device
from s3prl_ekd.errors import EkdError
from s3prl_ekd.spelling import repeated


def add_running_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare ``--devices``, ``--jobs`` and ``--keep-going``; ``what`` there are so many of at a time."""
    parser.add_argument(
        "--devices", "--device", metavar="DEVICE,...",
        help="cpu, cuda, or cuda:0,cuda:1,... (default: cuda if there is one)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, metavar="N", help=f"{what} at a time (default: one per device)")
    parser.add_argument(
        "--keep-going", action="store_true",
        help=f"if one fails, continue with the other {what}; the command still ends in an error",
    )  # fmt: skip


def given_devices(args: argparse.Namespace) -> list[str] | None:
    """The devices that the command names; None where it leaves them to us.

    Raises:
        EkdError: an unknown device, one that is named twice, or no job at a time.
    """
    devices = None if args.devices is None else parse_devices(args.devices)
    if args.jobs is not None and args.jobs < 1:
        raise EkdError(f"--jobs {args.jobs}: expected 1 or more")
    return devices


def parse_devices(text: str) -> list[str]:
    """Split ``"cuda:0,cuda:1"`` into a list.

    Raises:
        EkdError: an unknown device, or one that is named twice.
    """
    devices = [part.strip() for part in text.split(",") if part.strip()]
    for device in devices:
        if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
            raise EkdError(f"--devices: unknown device {device!r}; expected cpu, cuda, or some of cuda:0,cuda:1,...")
    if not devices:
        raise EkdError("--devices: expected cpu, cuda, or some of cuda:0,cuda:1,...")
    doubled = repeated(devices)
    if doubled is not None:
        raise EkdError(f"--devices {text}: {doubled} is named twice; --jobs N puts several runs on each")
    return devices


def check_devices(devices: Sequence[str]) -> None:
    """Check that this machine has the GPUs.

    Raises:
        EkdError: one that it does not have.
    """
    for device in devices:
        if device != "cpu":
            find_device(device, "--devices")


def native_device(device: str) -> str:
    """The value of a native command's ``--device``: ``cuda`` or ``cpu``."""
    return device.partition(":")[0]


def gpu_environment(device: str) -> dict[str, str]:
    """The environment variables that show a child process this GPU alone, numbered within our CUDA_VISIBLE_DEVICES."""
    number = device.partition(":")[2]
    if not number:
        return {}
    ours = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return {"CUDA_VISIBLE_DEVICES": ours[int(number)] if int(number) < len(ours) else number}


def slots(devices: Sequence[str], jobs: int) -> list[str]:
    """The device of each of ``jobs`` runs at a time, the devices in turn."""
    return [devices[number % len(devices)] for number in range(jobs)]
