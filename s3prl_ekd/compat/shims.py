"""What s3prl 0.4.18 needs and the installed stack no longer has: one entry a shim, each with its reason.

A shim is applied only where the thing is really missing or broken in this process, so a stack that still has it (or an
s3prl that no longer asks for it) is left alone. ``tests/test_shims.py`` fails for an entry that has become needless.
Here is the registry, with the shims of torch, Python, numpy, matplotlib and of s3prl's wheel; those of torchaudio,
huggingface_hub and of packages that are not installed have a file each, the soundfile reader is ``torchaudio_io.py``,
the effects ``sox_effects.py``, the PR corpus code ``libriphone.py``.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from s3prl_ekd.compat import shims_huggingface, shims_packages, shims_torchaudio
from s3prl_ekd.compat.modules import lacks, stand_in


@dataclass(frozen=True)
class Shim:
    """One shim.

    name: what is missing. removed_by: the software and version that removed it ("not installed": a package). reason:
    who in s3prl asks for it. needed: True where this process lacks it. apply: puts it in place. scope: "core" shims are
    applied always, "pretrain" ones (they import matplotlib) only for s3prl's own pretraining tasks.
    """

    name: str
    removed_by: str
    reason: str
    needed: Callable[[], bool]
    apply: Callable[[], None]
    scope: str = "core"


_applied: list[Shim] = []


def apply_shims(scope: str = "core") -> None:
    """Apply every needed shim of ``scope``: "core", "pretrain" or "all" (repeatable)."""
    for shim in SHIMS:
        if shim not in _applied and scope in (shim.scope, "all") and shim.needed():
            shim.apply()
            _applied.append(shim)


def active_shims() -> list[Shim]:
    """The shims in force in this process, in the order of application."""
    return list(_applied)


# ---------------------------------------------------------------------------------------------------- torch.load


def _weights_only_needed() -> bool:
    """Whether torch.load refuses the argparse.Namespace that every checkpoint of s3prl's runners holds."""
    import pickle
    from argparse import Namespace

    import torch

    buffer = io.BytesIO()
    torch.save(Namespace(), buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=True)
    except pickle.UnpicklingError:
        return True
    return False


def _apply_safe_globals() -> None:
    from argparse import Namespace
    from collections import OrderedDict, defaultdict

    import torch

    # Classes without side effects when built; everything else in a user's file is still refused by torch.
    allowed: list[Any] = [Namespace, defaultdict, OrderedDict, list, dict, set]
    optimizers = importlib.import_module("s3prl.optimizers")
    for name, value in vars(optimizers).items():
        # Lamb, BertAdam and AdamW_with_schedule put their schedule object into the parameter groups. Pretraining
        # imports the module as plain `optimizers`, downstream training as `s3prl.optimizers`.
        if isinstance(value, type) and issubclass(value, optimizers._LRSchedule):
            allowed += [(value, f"optimizers.{name}"), (value, f"s3prl.optimizers.{name}")]
    required = getattr(optimizers, "required", None)  # torch's marker, left in param groups as `lr`
    if required is not None:
        allowed.append(type(required))
    torch.serialization.add_safe_globals(allowed)


# ------------------------------------------------------------------------------------- Python, numpy, matplotlib


def _distutils_needed() -> bool:
    return importlib.util.find_spec("distutils") is None


def _apply_distutils() -> None:
    def strtobool(value: str) -> int:
        text = value.lower()
        if text in ("y", "yes", "t", "true", "on", "1"):
            return 1
        if text in ("n", "no", "f", "false", "off", "0"):
            return 0
        raise ValueError(f"invalid truth value {value!r}")

    package: Any = stand_in("distutils", "Holds the one module that s3prl asks of distutils.", package=True)
    package.util = stand_in("distutils.util", "The one function that s3prl asks of distutils.")
    package.util.strtobool = strtobool


def _apply_tostring_rgb() -> None:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    def tostring_rgb(self: Any) -> bytes:
        return np.asarray(self.buffer_rgba())[..., :3].tobytes()

    FigureCanvasAgg.tostring_rgb = tostring_rgb  # type: ignore[attr-defined]


def _fromstring_needed() -> bool:
    import numpy as np

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.fromstring(b"\0", dtype=np.uint8, sep="")
    except ValueError:
        return True
    return False


def _apply_fromstring() -> None:
    import numpy as np

    original = np.fromstring

    def fromstring(string: Any, dtype: Any = float, count: int = -1, *, sep: str = "", **kwargs: Any) -> np.ndarray:
        if sep == "" and isinstance(string, (bytes, bytearray, memoryview)):
            return np.frombuffer(string, dtype=dtype, count=count).copy()
        return original(string, dtype=dtype, count=count, sep=sep, **kwargs)

    np.fromstring = fromstring  # type: ignore[assignment]


# --------------------------------------------------------------------------------------------------- s3prl's wheel


def _libriphone_needed() -> bool:
    # find_spec imports the parent packages; where `corpus` itself is absent it raises instead of returning None.
    try:
        return importlib.util.find_spec("s3prl.downstream.ctc.corpus.libriphone") is None
    except ModuleNotFoundError:
        return True


def _apply_libriphone() -> None:
    from s3prl_ekd.compat import libriphone

    package = "s3prl.downstream.ctc.corpus"
    if package not in sys.modules:
        stand_in(package, "Stands in for the folder that s3prl's wheel leaves out.", package=True)
    sys.modules[package].libriphone = libriphone  # type: ignore[attr-defined]
    sys.modules[f"{package}.libriphone"] = libriphone


SHIMS: tuple[Shim, ...] = (
    Shim(  # the first: the others import torchaudio
        "import torchaudio",
        "torch 2.15",
        "s3prl imports it everywhere; torchaudio 2.11.0 refuses a torch of another CUDA version",
        shims_torchaudio.import_refused,
        shims_torchaudio.apply_import,
    ),
    Shim(
        "torchaudio.set_audio_backend",
        "torchaudio 2.9",
        "s3prl.hub (byol_s) and run_downstream call it",
        lacks("torchaudio", "set_audio_backend"),
        shims_torchaudio.apply_set_audio_backend,
    ),
    Shim(
        "torchaudio.sox_effects",
        "torchaudio 2.9",
        "s3prl.hub (mos_prediction) imports it, and the datasets of KS, ASV and QbE read by it",
        shims_torchaudio.sox_needed,
        shims_torchaudio.apply_sox_effects,
    ),
    Shim(
        "torchaudio.info",
        "torchaudio 2.9",
        "s3prl's length tools call it",
        lacks("torchaudio", "info"),
        shims_torchaudio.apply_info,
    ),
    Shim(
        "torchaudio.load",
        "torchaudio 2.9",
        "every dataset of s3prl reads through it; without torchcodec and FFmpeg it cannot read",
        shims_torchaudio.load_broken,
        shims_torchaudio.apply_load,
    ),
    Shim(
        "huggingface_hub.HfFolder",
        "huggingface_hub 1.0",
        "s3prl's downstream runner imports it",
        lacks("huggingface_hub", "HfFolder"),
        shims_huggingface.apply_hf_folder,
    ),
    Shim(
        "huggingface_hub.Repository",
        "huggingface_hub 1.0",
        "s3prl's downstream runner imports it",
        lacks("huggingface_hub", "Repository"),
        shims_huggingface.apply_repository,
    ),
    Shim(
        "huggingface_hub.HfApi.login",
        "huggingface_hub 0.9",
        "run_downstream --hub huggingface calls it",
        lacks("huggingface_hub", "HfApi.login"),
        shims_huggingface.apply_login,
    ),
    Shim(
        "huggingface_hub.snapshot_download",
        "huggingface_hub 1.0",
        "run_downstream --hub huggingface passes the revision by position and use_auth_token",
        shims_huggingface.snapshot_needed,
        shims_huggingface.apply_snapshot,
    ),
    Shim(
        "torch.load of s3prl checkpoints",
        "torch 2.6",
        "weights_only refuses the Namespace and the schedule objects of s3prl's checkpoints",
        _weights_only_needed,
        _apply_safe_globals,
    ),
    Shim(
        "distutils",
        "Python 3.12",
        "s3prl's mockingjay and distiller upstreams import strtobool",
        _distutils_needed,
        _apply_distutils,
    ),
    Shim(
        "s3prl.downstream.ctc.corpus.libriphone",
        "s3prl's wheel",
        "the registry's s3prl lacks the corpus code of phone recognition",
        _libriphone_needed,
        _apply_libriphone,
    ),
    Shim(
        "catalyst.data.sampler",
        "not installed",
        "s3prl's speech_commands imports it; training in one process does not use it",
        shims_packages.not_installed("catalyst"),
        shims_packages.apply_catalyst,
    ),
    Shim(
        "sox.Transformer",
        "not installed",
        "s3prl's sv_voxceleb1 imports it and does not use it",
        shims_packages.not_installed("sox"),
        shims_packages.apply_sox,
    ),
    Shim(
        "FigureCanvasAgg.tostring_rgb",
        "matplotlib 3.10",
        "s3prl's spectrogram plots (log step of tera, mockingjay, apc, npc)",
        lacks("matplotlib.backends.backend_agg", "FigureCanvasAgg.tostring_rgb"),
        _apply_tostring_rgb,
        scope="pretrain",
    ),
    Shim(
        "numpy.fromstring of bytes",
        "numpy 2.3",
        "s3prl's spectrogram plots (log step of tera, mockingjay, apc, npc)",
        _fromstring_needed,
        _apply_fromstring,
        scope="pretrain",
    ),
)
