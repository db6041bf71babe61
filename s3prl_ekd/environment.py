"""The versions of the software that a number was computed with, as every kept result names them."""

from __future__ import annotations

import importlib.metadata
import platform

from s3prl_ekd.version import __version__

PACKAGES = ("s3prl", "torch", "torchaudio", "transformers", "numpy")


def versions(*more: str) -> dict[str, str]:
    """Versions of s3prl-ekd, Python, :data:`PACKAGES` and the packages ``more``."""
    found = {"s3prl-ekd": __version__, "python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "a checkout"
    return found
