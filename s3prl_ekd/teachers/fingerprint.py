"""What cached targets depend on, as a few short strings: a cache made from anything else is refused.

Each part has a name for a message and a value that is equal exactly where the targets are. Paths and names of sources
count only while the weights are not here to be compared: the same weights from another place give the same targets. Nor
are mode, normalisation, batch size and seed a part: they act on what the cache holds, so one cache serves many runs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from s3prl_ekd.config import DataConfig
from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.errors import EkdError, naming
from s3prl_ekd.file_digest import file_digest
from s3prl_ekd.teachers import adapter, sources
from s3prl_ekd.teachers.build import TeacherPlan
from s3prl_ekd.teachers.files import CONFIG, model_files
from s3prl_ekd.user_paths import expanded

Fingerprint = dict[str, str | None]
"""Name of a part -> value; None where it cannot be known: weights that are not downloaded yet."""
NAMES, LAYERS = "ekd.teachers (names)", "the layers of "  # lists with ", " between
WEIGHTS, SOURCE = "the weights of ", "the source of "


def fingerprint(plan: TeacherPlan, table: LengthTable, data: DataConfig, download: bool) -> Fingerprint:
    """The fingerprint of a run's targets. Reads every weight file once (about a second a gigabyte).

    Args:
        download: fetch the weights of hub names that are not here yet; without it their value is None.

    Raises:
        EkdError: a download failed or a weight file cannot be read.
    """
    config = plan.config
    parts: Fingerprint = {
        "ekd.cache_precision": config.ekd.cache_precision,
        "ekd.teacher_precision": config.ekd.teacher_precision,
        "ekd.targets.tap": config.ekd.targets.tap,
        "task.sequence_length": str(config.task.sequence_length),
        "the data (length CSVs)": data_digest(table, data.libri_root),
        NAMES: ", ".join(plan.sources),
    }
    for teacher in plan.layers:
        source = plan.sources[teacher.name]
        parts[LAYERS + teacher.name] = ", ".join(map(str, teacher.layers))
        parts[SOURCE + teacher.name] = source.pinned
        parts[WEIGHTS + teacher.name] = weights_digest(source, plan.where(teacher.name), download)
    return parts


def difference(there: Mapping[str, str | None], ours: Fingerprint, some: bool = False) -> str | None:
    """What makes a cache another's: "part (value there, value now)"; None where nothing does.

    ``some``: it may hold more teachers and layers than are ours.
    """
    for part in {**ours, **there}:
        if not _agrees(part, there, ours, some):
            return f"{part} ({_short(there.get(part))} there, {_short(ours.get(part))} now)"
    return None


def _agrees(part: str, there: Mapping[str, str | None], ours: Fingerprint, some: bool) -> bool:
    old, new = there.get(part), ours.get(part)
    if part.startswith(SOURCE) and ours.get(WEIGHTS + part.removeprefix(SOURCE)) is not None:
        return True  # the weights themselves are compared
    if part not in ours:
        return old is None or some and part.startswith((LAYERS, WEIGHTS, SOURCE))  # of a teacher that is not ours
    if new is None:
        return True  # what we cannot know, we cannot hold against it
    if some and old is not None and part.startswith((NAMES, LAYERS)):
        return set(new.split(", ")) <= set(old.split(", "))
    return old == new


def add_weights(digest: hashlib._Hash, module: nn.Module) -> None:
    """Feed a module's parameters and buffers, with their names, types and shapes, to a hash."""
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def weights_digest(source: sources.TeacherSource, where: str, download: bool) -> str | None:
    """SHA-256 over all files that make a teacher; of an s3prl upstream, which is loaded already, over its tensors.

    Raises:
        EkdError: a file cannot be read, or the download failed.
    """
    if source.kind == "random":  # the name is the seed; what it names may have got another shape since
        return hashlib.sha256(f"{source.source} {source.shape}".encode()).hexdigest()
    if source.kind == "s3prl":
        digest = hashlib.sha256()
        digest.update(source.family.encode())
        add_weights(digest, adapter.built_upstream(source.source, where))
        return digest.hexdigest()
    path = sources.weights_path(source, where, download)
    return None if path is None else files_digest(path, where)


def files_digest(path: Path, where: str) -> str:
    """SHA-256 over a file, or over all files of a folder that make a teacher.

    Raises:
        EkdError: a file cannot be read, or is missing.
    """
    digest = hashlib.sha256()
    with naming(where):
        files = _files(path)
    for file in files:
        try:
            digest.update(bytes.fromhex(file_digest(file)))
        except OSError as error:
            raise EkdError(f"{where}: {file}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / CONFIG).is_file():
        return model_files(path)
    return [file for kind in ("json", "safetensors", "bin") for file in sorted(path.glob(f"*.{kind}"))]  # of s3prl's


def data_digest(table: LengthTable, root: str) -> str:
    """SHA-256 over path below ``libri_root`` and length of every utterance."""
    base = expanded(root)
    digest = hashlib.sha256()
    for path, samples in zip(table.paths, table.samples.tolist(), strict=True):
        digest.update(f"{os.path.relpath(path, base)}\t{samples}\n".encode())
    return digest.hexdigest()


def _short(value: str | None) -> str:
    """A digest by its first characters, anything else whole."""
    if value is None:
        return "none"
    return value[:12] if len(value) == 64 else value
