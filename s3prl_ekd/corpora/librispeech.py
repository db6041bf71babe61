"""LibriSpeech in its own layout: PR, ASR and pretraining.

Nothing is linked or copied: the configurations point at the corpus, and only what it lacks is written (a lexicon,
length CSVs). Three kinds of transcripts break s3prl: in lower case or with punctuation, no word is in its dictionary;
empty ones teach it silence; a blank line ends its ASR. Such a corpus is laid out like a manifest, with links to its
audio.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from s3prl_ekd.audio import find_audio
from s3prl_ekd.corpora.folders import Prepared, fresh_folder
from s3prl_ekd.corpora.layout_pretrain import prepare_pretrain
from s3prl_ekd.corpora.layout_speech import (
    lexicon_notes,
    prepare_speech,
    write_speech_config,
    write_speech_files,
)
from s3prl_ekd.corpora.lexicon import build_lexicon
from s3prl_ekd.corpora.manifest import Manifest, Row
from s3prl_ekd.corpora.probe import Clip, others_like, ready_lengths
from s3prl_ekd.errors import EkdError

SPLITS = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}  # SUPERB's
PRETRAIN_SPLITS = ("train-clean-100", "train-clean-360", "train-other-500")
HELD_OUT = "dev-clean"  # of pretraining


def prepare_librispeech(root: Path, out: Path, tasks: Sequence[str], lexicons: Sequence[str | Path]) -> list[Prepared]:
    """SUPERB's splits of LibriSpeech for PR and ASR; for pretraining all for training, and dev-clean for validation.

    Raises:
        EkdError: a split is missing, a word has no pronunciation, or a file cannot be read as it is.
    """
    root = root.absolute()
    splits = (*SPLITS.values(), *PRETRAIN_SPLITS)
    if not any((root / split).is_dir() for split in splits):
        if not any((root / "LibriSpeech" / split).is_dir() for split in splits):
            raise EkdError(f"{root}: no LibriSpeech split in it; expected {', '.join(SPLITS.values())}")
        root = root / "LibriSpeech"
    results = []
    speech = [task for task in ("asr", "pr") if task in tasks]
    if speech:
        missing = [split for split in SPLITS.values() if not (root / split).is_dir()]
        if missing:
            raise EkdError(f"{root}: LibriSpeech split {', '.join(missing)} is missing; {' and '.join(speech)} need it")
        results.extend(_prepare_speech(root, out, speech, lexicons))
    if "pretrain" in tasks:
        present = [split for split in PRETRAIN_SPLITS if (root / split).is_dir()]
        absent = [split for split in PRETRAIN_SPLITS if split not in present]
        if not present:
            raise EkdError(f"{root}: no LibriSpeech training split in it; expected {', '.join(PRETRAIN_SPLITS)}")
        notes = [f"pretrain uses {', '.join(present)}; {', '.join(absent)} is not there"] if absent else []
        held_out = [HELD_OUT] if (root / HELD_OUT).is_dir() else []
        used = [*present, *held_out]
        sets = {split: find_audio(root / split) for split in used}
        speakers = sum(sum(1 for entry in (root / split).iterdir() if entry.is_dir()) for split in used)
        results.append(prepare_pretrain(sets, out, root, speakers, notes, held_out))
    return results


@dataclass
class _Speech:
    """What PR and ASR read of the corpus."""

    texts: dict[str, str] = field(default_factory=dict)
    """Utterance, by its audio's path below the corpus without the suffix -> transcript."""
    lengths: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """Split -> (path below the corpus, samples) of each utterance."""
    blank_lines: int = 0
    """Of transcripts."""
    upper_case: int = 0
    """Files left out, since their names end in .FLAC."""
    behind_links: int = 0
    """Files in folders that are reached through a link."""


def _prepare_speech(root: Path, out: Path, tasks: Sequence[str], lexicons: Sequence[str | Path]) -> list[Prepared]:
    speech = _Speech()
    for split in SPLITS.values():
        _read_split(root, split, speech)
    left_out = f"{speech.upper_case} files left out: they end in .FLAC, and s3prl's PR and ASR look for .flac"
    common = [left_out] if speech.upper_case else []
    if speech.blank_lines:
        common.append(
            "blank lines in transcripts would stop s3prl's ASR: written without them, with links to the audio"
        )
    clips = _clips(root, speech)
    if speech.blank_lines or not all(re.fullmatch("[A-Z' ]*[A-Z'][A-Z' ]*", clip.row.text) for clip in clips):
        prepared = prepare_speech(Manifest(root, (), tuple(clip.row for clip in clips)), clips, out, tasks, lexicons)
        return [replace(one, notes=(*common, *one.notes)) for one in prepared]
    lexicon = None
    if "pr" in tasks:
        lexicon = build_lexicon([(clip.row.text, "") for clip in clips], lexicons, root)
    notes = {"asr": common, "pr": [*common, *(lexicon_notes(lexicon) if lexicon else ())]}
    if speech.behind_links:
        notes["pr"].append(
            f"{speech.behind_links} files lie behind links to folders: read here, but not by the PR code of a git "
            "checkout of s3prl"
        )
    parts = {split: [clip for clip in clips if clip.row.split == role] for role, split in SPLITS.items()}
    results = []
    for task in tasks:
        with fresh_folder(out / task, root) as folder:
            write_speech_files(task, folder, lexicon, speech.lengths)
        config = write_speech_config(task, out, root, {role: [split] for role, split in SPLITS.items()})
        results.append(Prepared.of(task, config, parts, notes[task]))
    return results


def _clips(root: Path, speech: _Speech) -> list[Clip]:
    """The corpus as the rows of a manifest would be."""
    return [
        Clip(
            Row(0, path, root / path, path.split("/")[1], role, speech.texts[path.removesuffix(".flac")]),
            samples, plain=True, form="FLAC",
        )
        for role, split in SPLITS.items()
        for path, samples in speech.lengths[split]
    ]  # fmt: skip


def _read_split(root: Path, split: str, speech: _Speech) -> None:
    """Add a split's transcripts and lengths to ``speech``.

    Raises:
        EkdError: no audio that s3prl would find, a transcript is missing, or a file cannot be read as it is.
    """
    found = find_audio(root / split)
    audio = [file for file in found if file.suffix == ".flac"]
    if not audio:
        raise EkdError(
            f"{root / split}: no .flac file in it, which is what s3prl's PR and ASR read; for other audio give a "
            "manifest (--manifest), which converts it"
        )
    for folder in sorted({file.parent for file in audio}):
        file = folder / f"{folder.parent.name}-{folder.name}.trans.txt"
        if not file.is_file():
            raise EkdError(f"{file}: no such transcript file; expected LibriSpeech's SPLIT/SPK/CHAP/SPK-CHAP.trans.txt")
        for line in _transcripts(file):
            key, _, text = line.partition(" ")
            speech.texts[f"{folder.relative_to(root).as_posix()}/{key}"] = text
            speech.blank_lines += not line.strip()
    silent = [file for file in audio if file.relative_to(root).with_suffix("").as_posix() not in speech.texts]
    if silent:
        raise EkdError(f"{silent[0]}: no transcript for it in its .trans.txt{others_like(silent)}")
    samples = ready_lengths(audio)
    speech.lengths[split] = [(file.relative_to(root).as_posix(), n) for file, n in zip(audio, samples, strict=True)]
    speech.upper_case += sum(file.suffix.lower() == ".flac" for file in found) - len(audio)
    speech.behind_links += _behind_links(audio, root / split)


def _transcripts(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise EkdError(f"{file}: not UTF-8 text ({error.reason}); expected lines SPK-CHAP-UTT TRANSCRIPT") from error


def _behind_links(files: Iterable[Path], top: Path) -> int:
    """How many of the files are below a link to a folder that is itself below ``top``."""

    @cache
    def is_linked(folder: Path) -> bool:
        return folder != top and (folder.is_symlink() or is_linked(folder.parent))

    return sum(is_linked(file.parent) for file in files)
