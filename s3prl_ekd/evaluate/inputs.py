"""The inputs of a run by content: a path stays the same when another training or ``prepare`` puts other things there.

Audio is not hashed: it is large, and who changes it changes the tables too. An input that is no file of its own has a
name that begins with :data:`TRANSCRIPTS`, :data:`CLIPS`, :data:`WEIGHTS`, :data:`UNTRAINED` or :data:`LISTED`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from s3prl_ekd.audio import audio_below
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.ensemble_file import ENSEMBLE, Member, read_members
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.models import Upstream
from s3prl_ekd.evaluate.plan import Run
from s3prl_ekd.file_digest import file_digest
from s3prl_ekd.source_names import HF, split_hub_model

TABLES = {"meta_data": "**/*_meta_data.json", "bucket_file": "*.csv", "file_path": "data/*_data.csv"}
"""Configuration key of a folder of tables -> the tables in it (ER, ASR, IC)."""
FOLDERS = ("speech_commands_root", "speech_commands_test_root")
"""Configuration keys of folders whose clips' names are what a table is elsewhere (KS)."""
TRANSCRIPTS = "the transcripts below "
CLIPS = "the clips below "
WEIGHTS = "the weights of "
UNTRAINED = "the student of "
LISTED = "the models of "
"""Prefixes of inputs that are no file themselves.

They stand before a folder (its transcripts, its clips), a teacher's source (its weights), a config_model.yaml (its
student), an ensemble's list (which models, in which order).
"""


def inputs(run: Run) -> dict[str, str]:
    """Name -> SHA-256 of everything but audio that the run's numbers come from: model, configuration, tables, texts.

    A name is a path, or one of the prefixes above and what it is for.

    Raises:
        EkdError: a file cannot be read.
    """
    section = run.effective_config()["downstream_expert"]
    found = {str(run.config): _configuration(run.config)}
    names = [*map(str, _tables(section)), *(f"{TRANSCRIPTS}{folder}" for folder in _text_folders(section))]
    data = section.get("datarc")
    names += [f"{CLIPS}{data[key]}" for key in FOLDERS if isinstance(data, dict) and data.get(key)]
    for name in [*_model(run.upstream), *names]:
        digest = _digest_of(name)
        if digest is not None:
            found[name] = digest
    return found


def data_digest(run: Run) -> str:
    """One SHA-256 of what a run reads beside its model: configuration, tables, texts."""
    model = _model(run.upstream)
    return values_digest({name: digest for name, digest in inputs(run).items() if name not in model})


def changed_input(recorded: Mapping[str, str], or_gone: bool = True) -> str | None:
    """The first of a run's recorded :func:`inputs` whose content has changed (or is gone); None where none has.

    A hub name's weights are never gone: they are downloaded again.
    """
    for name, digest in recorded.items():
        now = _digest_of(name)
        if now == digest or (now is None and (not or_gone or name.startswith(WEIGHTS))):
            continue
        path = Path(name)
        if path.suffix in (".yaml", ".yml") and path.is_file() and _configuration(path) == digest:
            continue
        return name
    return None


def model_digest(upstream: Upstream) -> str | None:
    """SHA-256 of an upstream's weights; None where it has no checkpoint, or one that is not here."""
    if upstream.name == ENSEMBLE:
        return values_digest([(member.kind, _digest_of(_weights_name(member))) for member in _members(upstream)])
    return None if upstream.checkpoint is None else _digest_of(_model(upstream)[0])


def _model(upstream: Upstream) -> list[str]:
    if upstream.name == ENSEMBLE:
        return [*map(_weights_name, _members(upstream)), f"{LISTED}{upstream.checkpoint}"]
    names = []
    if upstream.checkpoint is not None:
        here = not isinstance(upstream.checkpoint, str) or Path(upstream.checkpoint).exists()
        names.append(str(upstream.checkpoint) if here else f"{WEIGHTS}{upstream.checkpoint}")
    if upstream.model_config is not None:
        names.append(f"{UNTRAINED}{upstream.model_config}")  # the file may stand on others (base:)
    return names


def _members(upstream: Upstream) -> list[Member]:
    return read_members(Path(str(upstream.checkpoint)))


def _weights_name(member: Member) -> str:
    """The input that the weights of one of several models are."""
    path = Path(member.source)
    if not path.exists():
        return f"{WEIGHTS}{member.source}"
    if member.kind == "teacher":
        return member.source
    from s3prl_ekd.student_checkpoint import newest_checkpoint  # torch: not needed for a plan or a table

    return str(newest_checkpoint(path))


def _digest_of(name: str) -> str | None:
    """The digest of an input by its name; None where it does not exist."""
    if name.startswith(TRANSCRIPTS):
        return _texts(Path(name.removeprefix(TRANSCRIPTS)))
    if name.startswith(CLIPS):
        return _clips(Path(name.removeprefix(CLIPS)))
    if name.startswith(WEIGHTS):
        with suppress(EkdError):
            return _weights(name.removeprefix(WEIGHTS))
        return None
    if name.startswith(UNTRAINED):
        return _student(Path(name.removeprefix(UNTRAINED)))
    if name.startswith(LISTED):
        return _listed(Path(name.removeprefix(LISTED)))
    return content(Path(name))


@cache
def _texts(folder: Path) -> str | None:
    """The digest of all ``*.trans.txt`` below a folder, read once for all runs: LibriSpeech's splits have thousands."""
    files = [file for file in audio_below(folder, {".txt"}) if file.name.endswith(".trans.txt")]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest() if files else None


@cache
def _clips(folder: Path) -> str | None:
    """The digest of the names of all clips below a folder: they hold the words, and train or dev."""
    names = [str(file.relative_to(folder)) for file in audio_below(folder)]
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest() if names else None


@cache
def _weights(source: str) -> str:
    """The digest of a teacher's weights, read once for all runs.

    Raises:
        EkdError: they are gone, or not here yet: the first run of a hub name downloads them, so that nothing is cached.
    """
    from s3prl_ekd.teachers import fingerprint, huggingface, sources  # torch: not needed for a plan or a table

    if source.startswith(HF) and split_hub_model(source).file is not None:  # perhaps a student's checkpoint
        here = huggingface.is_here(source)
        digest = fingerprint.files_digest(huggingface.locate(source, "--ckpt"), "--ckpt") if here else None
    else:
        digest = fingerprint.weights_digest(sources.describe(source, "--teacher"), "--teacher", download=False)
    if digest is None:
        raise EkdError(f"--teacher {source}: not downloaded")
    return digest


def _student(file: Path) -> str | None:
    from s3prl_ekd.config import load_model_config

    return values_digest(load_model_config(file).student.model_dump(mode="json")) if file.is_file() else None


def _listed(file: Path) -> str | None:
    """The digest of which models an ensemble's list names; None where it, or one of them, is not there."""
    with suppress(EkdError):
        return values_digest([(member.kind, _weights_name(member)) for member in read_members(file)])
    return None


def _configuration(path: Path) -> str:
    """The digest of a task's configuration, whose comments and order do not count."""
    return values_digest(read_yaml(path))


def values_digest(values: Any) -> str:
    """SHA-256 of values as JSON, whose keys' order does not count."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def content(path: Path) -> str | None:
    """SHA-256 of a file, or of the files of a folder; None where there is neither (a hub name).

    Of a transformers folder its configuration and weights count: a card may be written after the scores are known.

    Raises:
        EkdError: it cannot be read.
    """
    if not path.exists():
        return None
    files = [file for file in sorted(path.iterdir()) if file.is_file()] if path.is_dir() else [path]
    if (path / "config.json").is_file():
        files = [file for file in files if file.suffix in (".json", ".safetensors", ".bin")]
    digests = []
    for file in files:
        try:
            digests.append(file_digest(file))
        except OSError as error:
            raise EkdError(f"{file}: cannot be read ({error.strerror})") from error
    return digests[0] if files == [path] else hashlib.sha256("".join(digests).encode()).hexdigest()


def _tables(section: Any, key: str = "") -> Iterator[Path]:
    """The files that a section names, and those of its folders of tables."""
    if isinstance(section, dict):
        for name, value in section.items():
            yield from _tables(value, str(name))
    elif isinstance(section, list):
        for value in section:
            yield from _tables(value, key)
    elif isinstance(section, str) and "/" in section:
        path = Path(section)
        if path.is_file():
            yield path
        elif key in TABLES and path.is_dir():
            yield from sorted(path.glob(TABLES[key]))


def _text_folders(section: Mapping[str, Any]) -> Iterator[Path]:
    """The split folders whose transcripts PR (``corpus``) and ASR (``datarc``) read."""
    for part, root in (("corpus", "path"), ("datarc", "libri_root")):
        data = section.get(part)
        if isinstance(data, dict) and isinstance(data.get(root), str):
            splits = [value for key, value in data.items() if str(key).startswith(("train", "dev", "test"))]
            for name in dict.fromkeys(name for value in splits if isinstance(value, list) for name in value):
                yield Path(data[root], str(name))
