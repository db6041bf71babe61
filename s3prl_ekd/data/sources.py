"""Where noise and room responses come from: folders and tables listed once, files decoded when they are drawn.

Knows the layouts of MUSAN (music/noise/speech), WHAM! (tr/cv/tt) and RIRS_NOISES (simulated_rirs, pointsource_noises,
real_rirs_isotropic_noises), tables with a path column (and a ``kind`` column: noise or rir), and plain folders. What is
done with the audio is in noise.py and filters.py.
"""

from __future__ import annotations

import csv
import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from s3prl_ekd.audio import AUDIO_SUFFIXES, SAMPLE_RATE, AudioError, audio_below, audio_info, read_audio
from s3prl_ekd.errors import EkdError
from s3prl_ekd.user_paths import expanded

logger = logging.getLogger(__name__)

Kind = Literal["noise", "rir"]

_TABLES = {".csv": ",", ".tsv": "\t"}
_CHECKED_FILES = 5_000  # headers read before training, evenly spread over a source; about 40 us each on a local disk
_CACHE_SAMPLES = 32 * 2**20  # decoded audio kept by each worker and source: 128 MiB of float32, 35 minutes


def list_files(source: str, kind: Kind, key: str) -> list[str]:
    """Audio files of one source, sorted by path, so that the same draw finds the same file on every machine.

    Args:
        source: a folder (all audio below it, or what its ``manifest.tsv`` lists), a .csv/.tsv table, or one audio file.
        kind: which rows or subfolders to take where the source holds noise and room responses side by side.
        key: the configuration key that named the source, for messages.

    Raises:
        EkdError: there is no such folder or file, or no audio of this kind in it.
    """
    path = expanded(source)
    if path.is_file():
        files = _from_table(path, kind, key) if path.suffix.lower() in _TABLES else [path]
    elif path.is_dir():
        table = path / "manifest.tsv"
        files = _from_table(table, kind, key) if table.is_file() else _from_folder(path, kind)
    else:
        raise EkdError(f"{key}: no folder, table or audio file {path}")
    if not files:
        what = "noise" if kind == "noise" else "room response"
        raise EkdError(f"{key}: not one {what} in {path} (audio is {', '.join(sorted(AUDIO_SUFFIXES))})")
    return sorted(str(file) for file in files)


def _from_folder(folder: Path, kind: Kind) -> list[Path]:
    if (folder / "tr").is_dir() and ((folder / "cv").is_dir() or (folder / "tt").is_dir()):
        logger.info("[distortion] %s has the layout of WHAM!: only its training part tr is used", folder)
        folder = folder / "tr"
    if (folder / "simulated_rirs").is_dir() or (folder / "real_rirs_isotropic_noises").is_dir():  # RIRS_NOISES
        real = audio_below(folder / "real_rirs_isotropic_noises")
        if kind == "noise":
            return audio_below(folder / "pointsource_noises") + [file for file in real if "_noise_" in file.name]
        return audio_below(folder / "simulated_rirs") + [file for file in real if "_noise_" not in file.name]
    return audio_below(folder)


def _from_table(table: Path, kind: Kind, key: str) -> list[Path]:
    """Files that a table names, relative to its folder or to the folder above it."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter=_TABLES[table.suffix.lower()]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EkdError(f"{key}: {table} cannot be read as a table ({error})") from error
    column = next((name for name in ("path", "file_path") if rows and name in rows[0]), None)
    if column is None:
        raise EkdError(f"{key}: {table} has no rows with a column path or file_path")
    files = []
    for line, row in enumerate(rows, start=2):
        if "kind" in row and row["kind"] != kind:
            continue
        found = next((root / row[column] for root in (table.parent, table.parent.parent)
                      if row[column] and (root / row[column]).is_file()), None)  # fmt: skip
        if found is None:
            raise EkdError(f"{key}: {table} line {line}: no file {row[column]!r}")
        files.append(found)
    return files


@dataclass
class AudioPool:
    """The files of one choice (one noise folder, or all room responses) and a small cache of decoded ones.

    Files of a small pool are decoded whole and kept; of a pool larger than the cache only the part asked for is
    decoded. Which of the two holds depends on the files alone, so every worker hears the same samples.
    """

    name: str
    """As the configuration lists it."""
    files: list[str]
    """At least one."""
    key: str = "distortion"
    """Configuration key, for messages."""
    first_channel: bool = False
    """Take channel 0 instead of the mean: a mean of a microphone array's room responses would be a comb filter."""
    _lengths: dict[int, int] = field(default_factory=dict)
    _small: bool = False
    _cache: OrderedDict[int, np.ndarray] = field(default_factory=OrderedDict)
    _cached_samples: int = 0

    def check(self) -> AudioPool:
        """Read the headers (of 5,000 files at most, evenly spread).

        Raises:
            EkdError: a file that is empty or no audio.
        """
        chosen = np.unique(np.linspace(0, len(self.files) - 1, min(len(self.files), _CHECKED_FILES)).astype(int))
        other_rates: dict[int, str] = {}
        for index in chosen.tolist():
            try:
                info = audio_info(self.files[index])
            except AudioError as error:
                raise EkdError(f"{self.key}: {error}") from error
            self._lengths[index] = info.samples
            if info.rate != SAMPLE_RATE:
                other_rates.setdefault(info.rate, self.files[index])
        total = sum(self._lengths.values())
        self._small = len(chosen) == len(self.files) and total <= _CACHE_SAMPLES
        hours = total / len(chosen) * len(self.files) / SAMPLE_RATE / 3600
        logger.info("[distortion] %s: %d files, %.2f h", self.name, len(self.files), hours)
        for rate, file in sorted(other_rates.items()):
            logger.warning(
                "[distortion] %s: %s is at %d Hz; such files are converted to 16000 Hz as they are read",
                self.key, file, rate,
            )  # fmt: skip
        return self

    def index(self, share: float) -> int:
        """The file that a number in [0, 1) picks; every file is equally likely."""
        return min(int(share * len(self.files)), len(self.files) - 1)

    def whole(self, index: int) -> np.ndarray:
        """One file, (samples,) float32 at 16 kHz; not to be written to. Raises AudioError."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        wave = read_audio(self.files[index], first_channel=self.first_channel)
        self._cache[index] = wave
        self._cached_samples += len(wave)
        while self._cached_samples > _CACHE_SAMPLES and len(self._cache) > 1:
            self._cached_samples -= len(self._cache.popitem(last=False)[1])
        return wave

    def segment(self, index: int, samples: int, where: float) -> np.ndarray:
        """A part of one file: a crop of a longer file, a loop of a shorter one.

        Args:
            samples: length of the part.
            where: in [0, 1): position of the crop, or where in the file the loop starts.

        Returns:
            (samples,) float32.

        Raises:
            AudioError: the file cannot be read.
        """
        if index not in self._lengths:
            self._lengths[index] = audio_info(self.files[index]).samples
        length = self._lengths[index]
        if length <= samples:
            wave = self.whole(index)
            return np.resize(np.roll(wave, -int(where * len(wave))), samples)  # np.resize repeats
        start = int(where * (length - samples + 1))
        if self._small:
            part = self.whole(index)[start : start + samples]
        else:
            part = read_audio(self.files[index], start, samples, first_channel=self.first_channel)
        return part if len(part) == samples else np.resize(part, samples)  # resampling may end a sample early
