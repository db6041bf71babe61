"""Speech Commands as s3prl reads it for KS: a folder a word, train and dev by a hash of the name, the test set apart.

Read here for everybody: ``prepare`` and the launcher before s3prl.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from s3prl_ekd.audio import SAMPLE_RATE, audio_info
from s3prl_ekd.errors import EkdError

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = "_unknown_", "_silence_"
CLASSES = (*WORDS, UNKNOWN, SILENCE)
NOISE = "_background_noise_"
"""Folder of the training set whose files, cut to a second each time, are the class silence of train and of dev."""
_BUCKETS = 2**27 - 1  # Speech Commands' own rule (s3prl's speech_commands/expert.py: split_dataset)


def speaker_of(name: str) -> str:
    """The speaker in a clip's file name: what precedes ``_nohash_``."""
    return re.sub(r"_nohash_.*$", "", name)


def split_of(name: str) -> str | None:
    """The split that a clip of the training folder is in by its file's name, of which the speaker is hashed.

    None for a tenth of all names: an older test set, which s3prl leaves out.
    """
    percent = int(hashlib.sha1(speaker_of(name).encode()).hexdigest(), 16) % (_BUCKETS + 1) * (100.0 / _BUCKETS)
    if percent < 10:
        return "dev"
    return None if percent < 20 else "train"


def training_clips(root: Path) -> dict[str, list[Path]]:
    """The clips of the training folder by "train", "dev" and "noise", which is in both; sorted by folder and name.

    Raises:
        EkdError: no clip in it, or a noise that is shorter than the second which s3prl cuts out.
    """
    clips: dict[str, list[Path]] = {"train": [], "dev": [], "noise": sorted((root / NOISE).glob("*.wav"))}
    for file in (file for folder in _folders(root) if folder.name != NOISE for file in sorted(folder.glob("*.wav"))):
        split = split_of(file.name)
        if split is not None:
            clips[split].append(file)
    if not any(clips.values()):
        raise EkdError(f"{root}: holds no FOLDER/*.wav")
    check_noises(clips["noise"])
    return clips


def test_clips(root: Path) -> list[Path]:
    """The clips of the test set's folder, sorted by folder and name.

    Raises:
        EkdError: no clip in it, one in a folder of another name than s3prl's classes, or with a blank in its name.
    """
    clips = [file for folder in _folders(root) for file in sorted(folder.glob("*.wav"))]
    for file in clips:
        if file.parent.name not in CLASSES:
            raise EkdError(f"{file.parent}: expected folders of the test set's classes, {', '.join(CLASSES)}")
        if len(file.name.split()) > 1:
            raise EkdError(f"{file}: s3prl's prediction file would cut this name at its blank; rename the clip")
    if not clips:
        raise EkdError(f"{root}: holds no FOLDER/*.wav")
    return clips


def check_noises(files: Iterable[Path]) -> None:
    """Raise an EkdError for the first file that is shorter than a second."""
    for file in files:
        samples = audio_info(file).samples
        if samples < SAMPLE_RATE:
            raise EkdError(f"{file}: {too_short(samples)}")


def too_short(samples: int) -> str:
    """What is wrong with a noise of so many samples at 16 kHz."""
    return f"{samples} samples long; s3prl cuts {SAMPLE_RATE}, a second, out of train's and dev's silences"


def _folders(root: Path) -> list[Path]:
    return sorted(folder for folder in root.iterdir() if folder.is_dir())
