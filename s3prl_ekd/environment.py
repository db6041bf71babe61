"""The versions of the software that a number was computed with, as every kept result names them."""

from __future__ import annotations

import importlib.metadata
import platform

from s3prl_ekd.compat.modules import s3prl_folder
from s3prl_ekd.version import __version__

NAMED = ("s3prl", "torch", "torchaudio", "transformers", "numpy")


def version_of(package: str) -> str | None:
    """The version of an installed package, of s3prl that of the files which are imported; None where nobody says one.

    pip may know a wheel of s3prl while a git checkout on PYTHONPATH is what gets imported.

    Raises:
        EkdError: s3prl is asked for and is not there.
    """
    if package == "s3prl":
        file = s3prl_folder() / "version.txt"
        if file.is_file():
            return file.read_text().strip()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(*more: str) -> dict[str, str]:
    """Versions of s3prl-ekd, Python, :data:`NAMED` and the packages ``more``."""
    found = {"s3prl-ekd": __version__, "python": platform.python_version()}
    return found | {name: version_of(name) or "not installed by pip" for name in (*NAMED, *more)}
