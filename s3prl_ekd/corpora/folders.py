"""The output folder: replaced as a whole or not at all, audio linked or converted, one config beside each task.

What goes where inside a task's folder is the business of ``layout_*.py``.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import yaml

from s3prl_ekd.audio import SAMPLE_RATE, read_audio
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.corpora.probe import Clip, in_parallel
from s3prl_ekd.errors import EkdError
from s3prl_ekd.shipped import shipped
from s3prl_ekd.whole_file import write_whole

logger = logging.getLogger(__name__)

MARKER = ".s3prl-ekd.json"  # says that prepare made this folder, so that prepare may replace it


@dataclass(frozen=True)
class Prepared:
    """What was made for one task, for the closing table.

    ``utterances`` are in the order of ``splits``; ``samples``: of all splits at 16 kHz; ``notes``: what the user should
    know, a line each.
    """

    task: str
    config: Path
    splits: tuple[str, ...]
    utterances: tuple[int, ...]
    samples: int
    speakers: int
    notes: tuple[str, ...]
    ready: bool = True
    """Whether it can be trained on already."""

    @classmethod
    def of(cls, task: str, config: Path, clips: Mapping[str, Sequence[Clip]], notes: Sequence[str]) -> Prepared:
        """What was made of ``clips``, which are given by split."""
        every = [clip for part in clips.values() for clip in part]
        return cls(
            task=task,
            config=config,
            splits=tuple(clips),
            utterances=tuple(map(len, clips.values())),
            samples=sum(clip.samples for clip in every),
            speakers=len({clip.row.speaker for clip in every} - {""}),
            notes=tuple(notes),
        )

    @property
    def minutes(self) -> float:
        """Of audio, in all."""
        return self.samples / SAMPLE_RATE / 60


def check_replaceable(folder: Path) -> None:
    """Raise unless ``folder`` is absent, empty, or was made by prepare: a user's own corpus must never be replaced."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise EkdError(f"{folder}: exists and was not made by prepare; choose another --out")
    if folder.exists() and not folder.is_dir():
        raise EkdError(f"{folder}: exists and is not a folder; choose another --out")


def check_apart(folders: Iterable[Path], sources: Iterable[tuple[object, Path]]) -> None:
    """Raise where a source is in a folder that will be replaced: its only copy may be there, and would be gone.

    Args:
        folders: of the tasks.
        sources: what begins the message, and audio or a corpus.
    """
    homes = {os.path.join(os.path.realpath(folder), ""): folder for folder in folders}
    for where, source in sources:
        real = os.path.join(os.path.realpath(source), "")
        home = next((folder for start, folder in homes.items() if real.startswith(start)), None)
        if home is not None:
            raise EkdError(f"{where}: is in {home}, which this call replaces; choose another --out")


@contextmanager
def turn_in(out: Path) -> Iterator[None]:
    """Make the data folder and keep other calls waiting while the block writes there.

    Two at a time would fill one folder aside, and one of two pretraining sets would be missing from the configuration.
    Locked is the folder itself, which leaves no file; a file system that locks none (NFS) keeps nobody waiting.
    """
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s: another call of prepare is at work there; waiting for it", out)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


@contextmanager
def fresh_folder(folder: Path, source: Path) -> Iterator[Path]:
    """Build a task's folder aside and put it in place at the end, so that a failed run leaves the old one as it was.

    Yields the folder to fill; inside it only absolute links, or paths that hold after it was renamed to ``folder``. The
    old one is removed last: whatever a kill leaves behind, the next call finds it, old or new.
    """
    check_replaceable(folder)
    folder = folder.resolve()  # a link to another disk stays one
    partial, before = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.before")
    _settle(folder, before)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        origin = json.dumps({"made_by": "s3prl-ekd prepare", "source": str(source)})
        (partial / MARKER).write_text(f"{origin}\n", encoding="utf-8")
        yield partial
        if folder.exists():
            folder.rename(before)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _settle(folder, before)


def _settle(folder: Path, before: Path) -> None:
    """Remove what was replaced, or bring it back where nothing has taken its place."""
    if before.is_dir() and folder.exists():
        shutil.rmtree(before, ignore_errors=True)
    elif before.is_dir():
        before.rename(folder)


def converted_note(count: int, form: str = "FLAC") -> list[str]:
    """What there is to say of so many converted files."""
    return [f"{count} files converted to 16 kHz mono {form}"] if count else []


def place(clips: Sequence[Clip], targets: Sequence[Path], only: str | None = None) -> int:
    """Put each clip at its target: a link where the file can stay as it is, else a 16 kHz mono file.

    Args:
        clips: what to place.
        targets: where, without the suffix (:func:`placed_suffix`).
        only: FLAC or WAV, where s3prl looks for files of that ending alone; else what is converted becomes FLAC.

    Returns:
        How many were converted.
    """
    for folder in {target.parent for target in targets}:
        folder.mkdir(parents=True, exist_ok=True)

    def put(pair: tuple[Clip, Path]) -> bool:
        clip, target = pair
        file = Path(f"{target}{placed_suffix(clip, only)}")
        if not must_convert(clip, only):
            file.symlink_to(clip.row.audio.resolve())
            return False
        wave = read_audio(clip.row.audio)
        try:
            soundfile.write(os.fsencode(file), wave, SAMPLE_RATE, format=only or "FLAC", subtype="PCM_16")
        except soundfile.LibsndfileError as error:
            raise EkdError(f"{file}: cannot be written ({error})") from error
        return True

    return sum(in_parallel(put, zip(clips, targets, strict=True)))


def must_convert(clip: Clip, only: str | None = None) -> bool:
    return not clip.plain or (only is not None and clip.form != only)


def placed_suffix(clip: Clip, only: str | None = None) -> str:
    """The suffix, with its dot, that :func:`place` gives a clip."""
    if only is not None or clip.form == "FLAC" or must_convert(clip):
        return f".{(only or 'FLAC').lower()}"
    return clip.row.audio.suffix.lower()


def safe_name(text: str) -> str:
    """``text`` with everything but letters, digits and ``_`` turned into ``_``: no ``-``, ``.`` or glob character."""
    return re.sub(r"\W", "_", text, flags=re.ASCII) or "_"


def unique_names(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Names that several paths would share get a hash of their path behind them: stable when rows come or go."""
    counts = Counter(names)
    marked = [
        name if counts[name] == 1 else f"{name}_{zlib.crc32(path.encode()):08x}"
        for name, path in zip(names, paths, strict=True)
    ]
    if len(set(marked)) < len(marked):  # a hash collision, about 1 in 4 billion per pair
        marked = [f"{name}_{index}" for index, name in enumerate(marked)]
    return marked


def clip_names(clips: Sequence[Clip]) -> list[str]:
    """A name for each clip, no two alike: its speaker, where it has one, and its file's name."""
    parts = [(clip.row.speaker, clip.row.audio.stem) for clip in clips]
    names = ["_".join(safe_name(part) for part in pair if part) for pair in parts]
    return unique_names(names, [clip.row.path for clip in clips])


def write_ids(file: Path, ids: Sequence[str], clips: Sequence[Clip]) -> None:
    """``id<TAB>path`` for every utterance: leads from an id in s3prl's predictions back to the manifest's path."""
    lines = [
        f"{key}\t{clip.row.path}\n" for key, clip in sorted(zip(ids, clips, strict=True), key=lambda pair: pair[0])
    ]
    file.write_text("id\tpath\n" + "".join(lines), encoding="utf-8")


@contextmanager
def filled_config(file: Path, template: str) -> Iterator[dict[str, Any]]:
    """A configuration of this package's to fill in, which is ``file`` at the end of the block.

    Args:
        file: what is written.
        template: such as ``downstream_configs/pr.yaml``.
    """
    config = read_yaml(shipped(template))
    yield config
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
    write_whole(file, f"# {template} with the paths of this folder, written by s3prl-ekd prepare\n{text}")
