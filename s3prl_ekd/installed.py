"""What is installed, beside what setup.cfg requires: the first table of ``s3prl-ekd doctor``."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import platform
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from packaging.requirements import Requirement

from s3prl_ekd.environment import version_of
from s3prl_ekd.version import __version__

ROWS = ("torch", "torchaudio", "transformers", "huggingface_hub", "s3prl")
"""Those with a row of their own."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``broken`` is what keeps a run from working; the exit status is 1 then."""

    what: str
    state: Literal["ok", "note", "broken"]
    found: str
    todo: str = ""


def software() -> list[Finding]:
    """Versions, and the readers of audio."""
    required = _required()
    rows = [Finding("python", "ok", platform.python_version()), Finding("s3prl-ekd", "ok", __version__)]
    for name in ROWS:
        if importlib.util.find_spec(name) is None:
            rows.append(_missing(name))
            continue
        known = version_of(name)
        found = Finding(name, "ok", known or "not installed by pip, found on the import path")
        rows.append(_outside(required.get(name), known) or found)
    rows += _others(required)
    codec = importlib.util.find_spec("torchcodec") is not None
    program, library = shutil.which("ffmpeg"), ctypes.util.find_library("avcodec")
    told = f"program: {program or 'none'}; libavcodec: {library or 'none'}"
    # torchcodec alone needs it, and without either soundfile reads
    rows.append(Finding("FFmpeg", "ok" if library or not codec else "note", told))
    text = "installed" if codec else "absent; audio is read by soundfile instead (WAV, FLAC, OGG, MP3)"
    rows.append(Finding("torchcodec", "ok" if codec else "note", text))
    return rows


def _others(required: Mapping[str, Requirement]) -> list[Finding]:
    """What else setup.cfg requires: a row for all that is there as it should be, and one for each that is not."""
    if not required:
        return [Finding("other packages", "note", "not checked: s3prl-ekd is not installed by pip", "pip install .")]
    others = {name: version_of(name) for name in required if name not in ROWS}
    rows = [_missing(name) if known is None else _outside(required[name], known) for name, known in others.items()]
    wrong = [row for row in rows if row is not None]
    if len(wrong) < len(others):
        wrong.append(Finding("other packages", "ok", f"{len(others) - len(wrong)} of {len(others)} installed"))
    return wrong


def _required() -> dict[str, Requirement]:
    """What setup.cfg requires, by name; empty where pip does not know us."""
    try:
        texts = importlib.metadata.requires("s3prl-ekd") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {found.name: found for text in texts if (found := Requirement(text)).marker is None}  # extras have one


def _outside(wanted: Requirement | None, version: str | None) -> Finding | None:
    """The row of a version that setup.cfg does not take: pip leaves one where it is told to install another package."""
    if wanted is None or version is None or wanted.specifier.contains(version, prereleases=True):
        return None
    return Finding(wanted.name, "note", f"{version}, not {wanted.specifier}", f"pip install {shlex.quote(str(wanted))}")


def _missing(distribution: str) -> Finding:
    return Finding(distribution, "broken", "not installed", f"pip install {distribution}")
