"""Shims of torchaudio: that it imports, and what its 2.9 release removed and s3prl still calls.

The registry is ``shims.py``.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
import warnings
import wave
from pathlib import Path
from typing import Any

from s3prl_ekd.compat.modules import stand_in
from s3prl_ekd.errors import EkdError


def import_refused() -> bool:
    """Whether ``import torchaudio`` fails because torch was built with another CUDA version than torchaudio.

    torchaudio 2.11.0 takes any later torch, but asks for the same minor version of CUDA (13.0), which torch has left
    with 2.15 (13.2); 2.11.1 asks for the same major version.
    """
    return _refusal() is not None


def _refusal() -> list[str] | None:
    """The CUDA versions of torch and of torchaudio, where torchaudio refuses to be imported for them."""
    try:
        import torchaudio  # noqa: F401
    except RuntimeError as error:
        if re.search("different CUDA (major )?versions", str(error)):
            return re.findall(r"has CUDA version ([\d.]+\d)", str(error))
    return None


def apply_import() -> None:
    """Import torchaudio without its comparison of CUDA versions.

    Its library is loaded by then, with torch's CUDA runtime, which serves what was built with an earlier minor version
    of the same major one.

    Raises:
        EkdError: the major versions differ.
    """
    import torch

    ours, theirs = _refusal() or ("", "")
    if ours.split(".")[0] != theirs.split(".")[0]:
        raise EkdError(
            f"torch {torch.__version__} is built for CUDA {ours}, torchaudio for {theirs}: install a pair of one CUDA "
            "version, e.g. pip install -c constraints.txt . in the repository of s3prl-ekd"
        )
    found = torch.version.cuda
    try:
        torch.version.cuda = None  # then nothing is compared
        import torchaudio  # noqa: F401
    finally:
        torch.version.cuda = found


def apply_set_audio_backend() -> None:
    """A choice of reader that chooses nothing."""
    import torchaudio

    def set_audio_backend(backend: str | None = None) -> None:
        """Nothing to choose: there has been one reader since torchaudio 2.1."""

    torchaudio.set_audio_backend = set_audio_backend


def sox_needed() -> bool:
    """Whether there is no ``torchaudio.sox_effects`` to import."""
    import torchaudio  # noqa: F401  (find_spec of a submodule needs its parent)

    return importlib.util.find_spec("torchaudio.sox_effects") is None


def apply_sox_effects() -> None:
    """A ``torchaudio.sox_effects`` of the effects that s3prl's tasks call."""
    import torchaudio

    from s3prl_ekd.compat import sox_effects

    module: Any = stand_in("torchaudio.sox_effects", "Stands in for what torchaudio 2.9 removed.")
    for name in ("apply_effects_tensor", "apply_effects_file", "effect_names"):
        setattr(module, name, getattr(sox_effects, name))
    torchaudio.sox_effects = module


def load_broken() -> bool:
    """Whether torchaudio.load fails on a 0.01 s WAV file, whatever the reason (no torchcodec, no FFmpeg, no reader)."""
    import torchaudio

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.wav")
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(b"\0\0" * 160)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torchaudio.load(str(path))
        except Exception:  # ImportError, RuntimeError, OSError: each release fails in its own way
            return True
    return False


def apply_load() -> None:
    """Let ``torchaudio.load`` read by soundfile."""
    import torchaudio

    from s3prl_ekd.compat import torchaudio_io

    torchaudio.load = torchaudio_io.load


def apply_info() -> None:
    """Let ``torchaudio.info`` read headers by soundfile."""
    import torchaudio

    from s3prl_ekd.compat import torchaudio_io

    torchaudio.info = torchaudio_io.info
