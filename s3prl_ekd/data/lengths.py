"""Length tables: s3prl's CSVs of (file_path, length), read and checked before any training starts.

`s3prl-ekd prepare` writes them, s3prl's preprocess/generate_len_for_bucket.py does too.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.config import MIN_SAMPLES, DataConfig
from s3prl_ekd.crops import little_heard
from s3prl_ekd.errors import EkdError
from s3prl_ekd.user_paths import expanded

if TYPE_CHECKING:
    from pandas import DataFrame

logger = logging.getLogger(__name__)

_CHECKED_FILES = 8  # how many audio files are looked for before training; one stat each


@dataclass(frozen=True)
class LengthTable:
    """All utterances of a run."""

    paths: list[str]
    """Audio files, each a full path."""
    samples: np.ndarray
    """int64 (n,) length of each at 16 kHz."""
    sets: list[str] = field(default_factory=list)
    """Name of the length CSV that each is of."""

    @property
    def hours(self) -> float:
        return float(self.samples.sum()) / SAMPLE_RATE / 3600


def read_lengths(
    config: DataConfig, file: str = "config_runner.yaml", key: Literal["sets", "valid_sets"] = "sets"
) -> LengthTable:
    """Read the CSVs that ``config.sets`` names and apply s3prl's length filter (``max_timestep``).

    Args:
        config: what the file says of the data.
        file: that file, for messages.
        key: which of the configuration's lists of CSVs.

    Raises:
        EkdError: a folder, CSV or column is missing, no utterance is left, or the audio is not where the CSVs say.
    """
    import pandas  # here: downstream runs import this module too, and most of them do without

    keys = f"{file}: pretrain_expert.datarc"
    root, folder = expanded(config.libri_root), expanded(config.file_path)
    if not folder.is_dir():
        raise EkdError(f"{keys}.file_path: no folder {folder} (`s3prl-ekd prepare` writes the length CSVs)")
    if not root.is_dir():
        raise EkdError(f"{keys}.libri_root: no folder {root}")
    names: list[str] = getattr(config, key)
    tables = [read_table(folder / f"{name}.csv", f"{keys}.{key}").assign(name=name) for name in names]
    table = pandas.concat(tables, ignore_index=True)
    found = len(table)
    if config.max_timestep > 0:
        table = table[table.length < config.max_timestep]
    elif config.max_timestep < 0:
        table = table[table.length > -config.max_timestep]
    table = table[table.length >= MIN_SAMPLES]
    if table.empty:
        raise EkdError(
            f"{keys}.{key}: all {found} utterances of {', '.join(names)} are left out: under 0.25 s, or excluded by "
            f"max_timestep ({config.max_timestep})"
        )
    if len(table) < found:
        logger.info("[data] %d of %d utterances left out (max_timestep, or under 0.25 s)", found - len(table), found)
    paths = [str(root / path) for path in table.file_path]
    for index in np.linspace(0, len(paths) - 1, min(_CHECKED_FILES, len(paths))).astype(int):
        if not Path(paths[index]).is_file():
            raise EkdError(f"{keys}.libri_root: no file {paths[index]}, though the CSVs of {folder} name it")
    return LengthTable(paths, table.length.to_numpy(np.int64), table["name"].tolist())


def read_held_out(config: DataConfig, table: LengthTable, file: str = "config_runner.yaml") -> LengthTable | None:
    """:func:`read_lengths` of ``config.valid_sets``; None where nothing is held out.

    Of more than ``valid_minutes`` utterances at equal distances, together no longer than that, but one at least.

    Args:
        config, file: as there.
        table: what is trained on.

    Raises:
        EkdError: also where an utterance is in both.
    """
    if not config.valid_sets:
        return None
    held_out = read_lengths(config, file, "valid_sets")
    trained = sorted(set(table.paths) & set(held_out.paths))
    if trained:
        raise EkdError(
            f"{file}: pretrain_expert.datarc.valid_sets: {len(trained)} utterances are in sets too, and so "
            f"trained on; the first: {trained[0]}"
        )
    if config.valid_minutes is None or 60 * held_out.hours <= config.valid_minutes:
        return held_out
    chosen = _spread(held_out.samples, int(60 * config.valid_minutes * SAMPLE_RATE))
    paths, sets = ([column[row] for row in chosen] for column in (held_out.paths, held_out.sets))
    return LengthTable(paths, held_out.samples[chosen], sets)


def _spread(samples: np.ndarray, most: int) -> np.ndarray:
    """Rows at equal distances that have at most so many samples together, or a single row.

    None that has more than a tenth of them alone, if there are others: a long recording would push out all else.
    """
    rows = np.flatnonzero(samples <= most / 10)
    if not len(rows):
        rows = np.arange(len(samples))
    count = max(1, min(len(rows), int(most / samples[rows].mean())))
    while True:
        chosen = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
        if count == 1 or samples[chosen].sum() <= most:
            return chosen
        count -= 1


def tell_of_crops(table: LengthTable, longest: int) -> None:
    """Warn of each set of which an epoch hears little, one crop of at most ``longest`` samples of each clip."""
    sets = np.array(table.sets)
    for name in dict.fromkeys(table.sets):
        said = little_heard(name, table.samples[sets == name], longest)
        if said is not None:
            logger.warning("[data] %s", said)


def read_table(file: Path, key: str) -> DataFrame:
    """A length CSV's columns ``file_path`` and ``length`` (samples, whole numbers).

    Args:
        key: what names the file, for messages.

    Raises:
        EkdError: there is no such file, it lacks a column, or a row a value.
    """
    import pandas

    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in file.parent.glob("*.csv"))) or "no CSV at all"
        raise EkdError(f"{key}: no {file} for {file.stem!r} (in that folder: {there})")
    try:
        table = pandas.read_csv(file, usecols=["file_path", "length"], dtype={"file_path": str})
    except ValueError as error:
        raise EkdError(f"{file}: not a length CSV with the columns file_path and length ({error})") from error
    lengths = pandas.to_numeric(table.length, errors="coerce").replace([np.inf, -np.inf], np.nan)
    if lengths.isna().any() or table.file_path.isna().any():
        row = int((lengths.isna() | table.file_path.isna()).to_numpy().argmax())
        raise EkdError(f"{file}: line {row + 2}: file_path or length is missing or no number")
    return table.assign(length=lengths.astype(np.int64))
