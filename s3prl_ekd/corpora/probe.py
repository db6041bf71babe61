"""Opening audio to learn its length and whether it is sound: in parallel, with every bad file named.

Reading samples for training is ``s3prl_ekd.audio``; linking and converting files is ``folders.py``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile

from s3prl_ekd.audio import SAMPLE_RATE, UNREADABLE, AudioError, AudioInfo, audio_info, decoder_reason
from s3prl_ekd.corpora.manifest import Manifest, Row
from s3prl_ekd.device import usable_cpus
from s3prl_ekd.errors import EkdError

logger = logging.getLogger(__name__)

MIN_SAMPLES = SAMPLE_RATE // 20  # 0.05 s: the shortest clip that s3prl's upstreams must accept
BLOCK = 1 << 20  # samples decoded at a time when a whole file is checked

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Clip:
    """A manifest row whose audio was opened.

    ``samples``: its length at 16 kHz; ``plain``: 16 kHz mono already; ``form``: FLAC, WAV, ..., as libsndfile calls it.
    """

    row: Row
    samples: int
    plain: bool
    form: str


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``[function(item) for item in items]`` by threads: libsndfile works outside Python's lock."""
    with ThreadPoolExecutor(max_workers=min(16, 2 * usable_cpus())) as pool:
        return list(pool.map(function, items))


def info_or_reason(path: Path) -> AudioInfo | str:
    """What a file's header says, or why the file cannot be trained on.

    The last tenth of a second is read as well: a copy that was cut short has a sound header, and would end a training
    hours later. (A quarter of a millisecond a file; :func:`probe` decodes all of it.)
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return f"{os.fsencode(path).decode(errors='replace')}: a name that is not UTF-8, as the tables are; rename it"
    try:
        info = audio_info(path)
        with soundfile.SoundFile(str(path)) as file:
            last = min(file.frames, file.samplerate // 10)
            file.seek(file.frames - last)
            whole = len(file.read(last, dtype="float32")) == last and not _wav_is_cut(path, file)
    except AudioError as error:
        return str(error)
    except UNREADABLE:
        whole = False
    if not whole:
        return f"{path}: the audio data is damaged (its end is missing)"
    return _too_short(path, info.samples) or info


def ready_lengths(files: Sequence[Path]) -> list[int]:
    """The length in samples of each file of a corpus that s3prl will read as it is.

    Raises:
        EkdError: a file that cannot be read, or that is not 16 kHz mono: s3prl neither resamples nor mixes channels.
    """
    infos = in_parallel(info_or_reason, files)
    bad = [reason for reason in infos if isinstance(reason, str)]
    if bad:
        raise EkdError(bad[0] + others_like(bad))
    good = [info for info in infos if isinstance(info, AudioInfo)]
    other = [(file, info) for file, info in zip(files, good, strict=True) if not info.is_16k_mono]
    if other:
        file, info = other[0]
        raise EkdError(
            f"{file}: {info.rate} Hz, {info.channels} channel{'s' * (info.channels > 1)}; {len(other)} of {len(files)} "
            "files are not 16 kHz mono, which s3prl needs; with a manifest (--manifest), prepare converts the audio"
        )
    return [info.samples for info in good]


def others_like(files: Sequence[object]) -> str:
    """Ends a message about the first of the files."""
    return f" (and {len(files) - 1} more files like it)" if len(files) > 1 else ""


def _wav_is_cut(path: Path, file: soundfile.SoundFile) -> bool:
    """Whether the file is shorter than its RIFF header says; libsndfile takes what is there. Streams say 0 or 4 GB."""
    if file.format not in ("WAV", "WAVEX"):
        return False
    with open(path, "rb") as stream:
        head = stream.read(8)
    said = int.from_bytes(head[4:8], "little")
    return head[:4] == b"RIFF" and 0 < said < 0xFFFF_FF00 and path.stat().st_size + 1 < said + 8


def _too_short(path: Path, samples: int) -> str | None:
    if samples >= MIN_SAMPLES:
        return None
    return f"{path}: only {samples / SAMPLE_RATE:.3f} s long; 0.05 s is the least"


def probe(manifest: Manifest, skip_bad: bool = False) -> list[Clip]:
    """Open and fully decode every row's audio.

    The whole file is decoded (about 4,000 times faster than real time), since a file with a sound header and broken
    data would otherwise end a training hours later.

    Args:
        manifest: rows to open.
        skip_bad: leave bad rows out, with one warning that counts them, instead of raising.

    Raises:
        EkdError: a file is missing, empty, unreadable, shorter than 0.05 s, listed twice or holds NaN (names the
            first, counts the others), or no row is left.
    """
    results = in_parallel(_open, manifest.rows)
    first: dict[str, Row] = {}  # by the file itself: another spelling of its path or a link to it is no other audio
    clips, bad = [], []
    for row, result in zip(manifest.rows, results, strict=True):
        if isinstance(result, str):
            bad.append(f"{manifest.where(row)}: {result}")
            continue
        other = first.setdefault(os.path.realpath(row.audio), row)
        if other is row:
            clips.append(result)
        else:
            again = "listed twice, first" if other.path == row.path else f"the same file as {other.path}"
            bad.append(f"{manifest.where(row)}: {row.path} is {again} in line {other.line}")
    if bad and not skip_bad:
        more = f" (and {len(bad) - 1} more rows like it; --skip-bad leaves them out)" if len(bad) > 1 else ""
        raise EkdError(bad[0] + (more or " (--skip-bad leaves it out)"))
    if bad:
        logger.warning("%d of %d rows left out, first: %s", len(bad), len(manifest.rows), bad[0])
    if not clips:
        raise EkdError(f"{manifest.file}: no readable audio in it")
    return clips


def _open(row: Row) -> Clip | str:
    try:
        info = audio_info(row.audio)
        with soundfile.SoundFile(os.fsencode(row.audio)) as file:
            form, frames, read, finite = file.format, file.frames, 0, True
            for block in file.blocks(BLOCK, dtype="float32"):
                read += len(block)
                finite = finite and bool(np.isfinite(block).all())
    except AudioError as error:
        return str(error)
    except UNREADABLE as error:
        return f"{row.audio}: the audio data is damaged ({decoder_reason(error)})"
    if read < frames:
        return f"{row.audio}: the audio data is damaged ({read} of {frames} samples can be decoded)"
    if not finite:
        return f"{row.audio}: the audio file holds NaN or infinite samples"
    short = _too_short(row.audio, info.samples)
    if short is not None:
        return short
    return Clip(row, info.samples, info.is_16k_mono, form)
