"""What a run reads, by content: a path stays the same when another training or ``prepare`` puts other things there.

Audio is not looked at: it is large, and who changes it changes the tables too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from s3prl_ekd.checked import read_yaml
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.plan import Run

TABLES = {"meta_data": "**/*_meta_data.json", "bucket_file": "*.csv"}
"""Configuration key of a folder of tables -> the tables in it (ER, ASR)."""


def inputs(run: Run) -> dict[str, str]:
    """Path -> SHA-256 of everything but audio that the run's numbers come from: model, task's configuration, tables.

    Raises:
        EkdError: a file cannot be read.
    """
    config = read_yaml(run.config)
    found = {str(run.config): _configuration(run.config)}
    paths = [Path(path) for path in (run.upstream.checkpoint, run.upstream.model_config) if path is not None]
    for path in [*paths, *_tables(config.get("downstream_expert"))]:
        digest = content(path)
        if digest is not None:
            found[str(path)] = digest
    return found


def changed_input(recorded: Mapping[str, str]) -> str | None:
    """The first path of :func:`inputs`, as a run kept it, that has another content now or is gone."""
    for name, digest in recorded.items():
        path = Path(name)
        if content(path) == digest:
            continue
        if path.suffix in (".yaml", ".yml") and path.is_file() and _configuration(path) == digest:
            continue
        return name
    return None


def _configuration(path: Path) -> str:
    """Of what a task's configuration says: its comments and order do not count."""
    text = json.dumps(read_yaml(path), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def content(path: Path) -> str | None:
    """SHA-256 of a file, or of the files of a folder; None where there is neither (a hub name).

    Raises:
        EkdError: it cannot be read.
    """
    if not path.exists():
        return None
    files = [file for file in sorted(path.iterdir()) if file.is_file()] if path.is_dir() else [path]
    digests = []
    for file in files:
        status = file.stat()
        digests.append(_digest(file, status.st_size, status.st_mtime_ns))
    return digests[0] if files == [path] else hashlib.sha256("".join(digests).encode()).hexdigest()


@cache
def _digest(file: Path, size: int, changed: int) -> str:
    """Once for all runs: a table of models has hundreds, and a checkpoint half a gigabyte."""
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise EkdError(f"{file}: cannot be read ({error.strerror})") from error


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
