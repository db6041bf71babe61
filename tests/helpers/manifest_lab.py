"""A corpus with a manifest per task, and what `prepare` made of it; the fixture ``manifests`` of conftest.py."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from s3prl_ekd.corpora import lexicon
from s3prl_ekd.corpora.folders import Prepared
from s3prl_ekd.corpora.prepare import lay_out, plan_manifest

WORDS = {"A": "AH0", "DOG": "D AO1 G", "RUNS": "R AH1 N Z", "HOME": "HH OW1 M", "I'LL": "AY1 L"}
FORMATS = [("flac", 16000, 1), ("wav", 16000, 1), ("wav", 44100, 2), ("flac", 8000, 1), ("ogg", 16000, 1)]


def use_small_cmudict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The corpus's words in place of the CMU dictionary."""
    entries = {word: [tuple(phones.split())] for word, phones in WORDS.items()}
    monkeypatch.setattr(lexicon, "_cmudict", lambda: entries)


def write_manifests(folder: Path) -> Path:
    """One manifest per task over the same 30 files of five formats, three speakers."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(30):
        suffix, rate, channels = FORMATS[index % len(FORMATS)]
        wave = 0.1 * rng.standard_normal((int(rate * rng.uniform(0.2, 0.6)), channels))
        path = f"audio/part.{index % 2}/clip-{index} x.{suffix}"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / path, wave, rate)
        speaker = ["ann", "bob-1", "bob.1"][index % 3]
        split = ["train", "dev", "test"][(index // 3) % 3]
        text = ["A dog runs home", "I’ll run-- A DOG".replace("run", "dog"), '"Home," I\'ll'][index % 3]
        emotion = ["angry", "happy", "neutral", "sad"][index % 4]
        fold = str(index // 3 % 3 + 1)
        rows.append({"path": path, "split": split, "speaker": speaker, "text": text, "fold": fold, "emotion": emotion})
    for task, columns in {
        "asr": ["path", "split", "speaker", "text"],
        "sid": ["path", "split", "speaker"],
        "er": ["path", "fold", "speaker", "emotion"],
        "pretrain": ["path", "speaker"],
    }.items():
        lines = ["\t".join(columns)] + ["\t".join(row[name] for name in columns) for row in rows]
        (folder / f"{task}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder: a link's target, or a file's hash."""
    found = {}
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base, name)
            content = os.readlink(path) if path.is_symlink() else hashlib.sha1(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = content
    return found


def ids(folder: Path) -> dict[str, str]:
    """The task's utterance ids -> the paths of its manifest."""
    with (folder / "ids.tsv").open(encoding="utf-8") as stream:
        return {row["id"]: row["path"] for row in csv.DictReader(stream, delimiter="\t")}


def manifest_rows(file: Path) -> dict[str, dict[str, str]]:
    """A manifest's rows by their paths."""
    with file.open(encoding="utf-8") as stream:
        return {row["path"]: row for row in csv.DictReader(stream, delimiter="\t")}


def prepare_manifest(manifest: Path, out: Path, tasks: Sequence[str] | None = None, **more: Any) -> list[Prepared]:
    """What ``s3prl-ekd prepare --manifest`` does with one manifest."""
    return lay_out(*plan_manifest(manifest, tasks), out, **more)
