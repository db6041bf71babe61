"""PR and ASR: a manifest as a LibriSpeech tree with transcripts, a lexicon, length CSVs and s3prl's two configs.

s3prl's PR corpus looks for ``*.flac`` below each split and reads ``SPK-CHAP.trans.txt`` beside them; its ASR corpus
reads ``len_for_bucket/<split>.csv`` and the same transcripts. Each task gets a tree of its own, so that each can be
replaced alone. The real LibriSpeech, which needs no tree, is ``librispeech.py``.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from s3prl_ekd.corpora.folders import (
    Prepared,
    converted_note,
    filled_config,
    fresh_folder,
    must_convert,
    place,
    safe_name,
    unique_names,
    write_ids,
)
from s3prl_ekd.corpora.length_csv import write_lengths
from s3prl_ekd.corpora.lexicon import Lexicon, build_lexicon
from s3prl_ekd.corpora.manifest import SPLITS, Manifest
from s3prl_ekd.corpora.probe import Clip
from s3prl_ekd.errors import EkdError
from s3prl_ekd.shipped import shipped

logger = logging.getLogger(__name__)

TREE = "LibriSpeech"
QUOTES = set('"\N{DOUBLE LOW-9 QUOTATION MARK}\N{SINGLE LOW-9 QUOTATION MARK}')  # besides the categories Pi and Pf
APOSTROPHES = "[\N{RIGHT SINGLE QUOTATION MARK}\N{ACUTE ACCENT}\N{PRIME}]"  # as they are typed
INITIALISM = re.compile(r"(?<![A-Z'])[A-Z](?:\.[A-Z](?![A-Z]))+(?:\.(?![A-Z]))?")  # U.S.A. and J.K; not A.Smith
SPEAKABLE = set("%&@#*")  # punctuation that is read out: dropping it would change the transcript


@dataclass(frozen=True)
class Utterance:
    """A clip with its id (``SPK-CHAP-UTT``), its transcript (upper-case A-Z and ')."""

    key: str
    clip: Clip
    text: str

    @property
    def folder(self) -> Path:
        """``split/SPK/CHAP``, where LibriSpeech keeps it."""
        speaker, chapter, _ = self.key.split("-")
        return Path(self.clip.row.split, speaker, chapter)

    @property
    def file(self) -> Path:
        """Its audio, below the tree."""
        return self.folder / f"{self.key}.flac"


def normalise(text: str) -> str | None:
    """A transcript in the 27 letters of s3prl's ASR dictionary (A-Z and '), or None where it cannot be.

    Accents are stripped. Hyphens split words, as does other punctuation between two letters ("and/or", "wait…what"),
    except quotation marks and the dots of initialisms ("U.S.A." is USA). Punctuation elsewhere is dropped. Digits and
    signs that are read out as words have no letters of their own.
    """
    text = unicodedata.normalize("NFKD", re.sub(APOSTROPHES, "'", text).upper())
    kept = []
    for char in text:
        category = unicodedata.category(char)
        if "A" <= char <= "Z" or char == "'":
            kept.append(char)
        elif category in ("Pd", "Pc") or char.isspace():
            kept.append(" ")
        elif category == "Mn" or char in QUOTES or category in ("Pi", "Pf"):
            continue
        elif category[0] == "P" and char not in SPEAKABLE:
            kept.append("." if char == "." else ",")
        else:
            return None
    text = INITIALISM.sub(lambda found: found[0].replace(".", ""), "".join(kept))
    text = re.sub(r"(?<=[A-Z'])[.,]+(?='?[A-Z])", " ", text)
    words = [word for word in re.sub("[.,]", "", text).split() if word.strip("'")]
    return " ".join(words) or None


def utterances(manifest: Manifest, clips: Sequence[Clip]) -> list[Utterance]:
    """Clips with their ids and transcripts; those whose text cannot be spelled are left out with a warning.

    Raises:
        EkdError: a split has no utterance left.
    """
    texts = [normalise(clip.row.text) for clip in clips]
    kept = [(clip, text) for clip, text in zip(clips, texts, strict=True) if text]
    dropped = [clip.row for clip, text in zip(clips, texts, strict=True) if not text]
    if dropped:
        logger.warning(
            "%d utterances left out: their text is empty or has signs other than letters and ' (first: %s: %r)",
            len(dropped),
            manifest.where(dropped[0]),
            dropped[0].text,
        )
    empty = [split for split in SPLITS if not any(clip.row.split == split for clip, _ in kept)]
    if empty:
        raise EkdError(f"{manifest.file}: no usable utterance in split {', '.join(empty)}")
    keys = utterance_ids([clip for clip, _ in kept])
    return [Utterance(key, clip, text) for key, (clip, text) in zip(keys, kept, strict=True)]


def utterance_ids(clips: Sequence[Clip]) -> list[str]:
    """``SPK-CHAP-UTT`` for each clip: the file's own name where it is one, else speaker, chapter 0, file name."""
    names = []
    for clip in clips:
        stem = clip.row.audio.stem
        own = re.fullmatch(r"(\w+)-(\w+)-(\w+)", stem, flags=re.ASCII)
        names.append(stem if own else f"{safe_name(clip.row.speaker)}-0-{safe_name(stem)}")
    return unique_names(names, [clip.row.path for clip in clips])


def prepare_speech(
    manifest: Manifest, clips: Sequence[Clip], out: Path, tasks: Sequence[str], lexicons: Sequence[str | Path]
) -> list[Prepared]:
    """Lay out a manifest for PR, ASR or both under ``out``; returns what was made.

    Raises:
        EkdError: words without pronunciation (PR), a split without utterances, a folder that is not ours.
    """
    spoken = utterances(manifest, clips)
    lexicon = None
    if "pr" in tasks:  # before any file is written: this is where a user's corpus fails
        pairs = [(utterance.text, utterance.clip.row.phones) for utterance in spoken]
        lexicon = build_lexicon(pairs, lexicons, manifest.file)
    results = []
    trees: list[Path] = []
    for task in tasks:
        with fresh_folder(out / task, manifest.file) as folder:
            converted = _tree(spoken, folder / TREE, trees[0] if trees else None)
            write_ids(folder / "ids.tsv", [item.key for item in spoken], [item.clip for item in spoken])
            write_speech_files(task, folder, lexicon, _lengths(spoken))
        trees.append(out / task / TREE)
        config = write_speech_config(task, out, (out / task / TREE).absolute(), {split: [split] for split in SPLITS})
        results.append(_summary(task, config, spoken, converted, lexicon if task == "pr" else None))
    return results


def _tree(spoken: Sequence[Utterance], tree: Path, other: Path | None) -> int:
    """Audio and transcripts; what the other task's tree already converted is taken from there."""
    converted = [item for item in spoken if must_convert(item.clip, only="FLAC")]
    there = {item.key for item in converted} if other else set()
    fresh = [item for item in spoken if item.key not in there]
    place([item.clip for item in fresh], [tree / item.folder / item.key for item in fresh], only="FLAC")
    if other:
        for item in converted:
            (tree / item.folder).mkdir(parents=True, exist_ok=True)
            _share(other / item.file, tree / item.file)
    transcripts: dict[Path, list[str]] = {}
    for item in sorted(spoken, key=lambda item: item.key):
        name = "-".join(item.key.split("-")[:2])
        transcripts.setdefault(tree / item.folder / f"{name}.trans.txt", []).append(f"{item.key} {item.text}\n")
    for file, lines in transcripts.items():
        file.write_text("".join(lines), encoding="utf-8")
    return len(converted)


def _share(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # one copy on disk that outlives either task's folder
    except OSError:
        shutil.copyfile(source, target)


def _lengths(spoken: Sequence[Utterance]) -> dict[str, list[tuple[str, int]]]:
    """Split -> (path below the tree, samples) of each utterance."""
    lengths: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for item in spoken:
        lengths[item.clip.row.split].append((item.file.as_posix(), item.clip.samples))
    return lengths


def write_speech_files(
    task: str, folder: Path, lexicon: Lexicon | None, lengths: Mapping[str, Sequence[tuple[str, int]]]
) -> None:
    """What s3prl needs beside the audio: lexicon and phones for PR, length CSVs and letters for ASR.

    Args:
        task: "pr" or "asr".
        folder: the task's folder.
        lexicon: for PR.
        lengths: split -> (path below the tree, samples) of each utterance.
    """
    if task == "pr":
        assert lexicon is not None
        lexicon.write(folder / "lexicon.txt")
        shutil.copyfile(shipped("resources/phoneme.txt"), folder / "phoneme.txt")
        return
    shutil.copyfile(shipped("resources/char.dict"), folder / "char.dict")
    for split, entries in lengths.items():
        write_lengths(folder / "len_for_bucket" / f"{split}.csv", entries)


def write_speech_config(task: str, out: Path, tree: Path, splits: dict[str, list[str]]) -> Path:
    """The configuration ``OUT/TASK.yaml`` of what :func:`write_speech_files` wrote into ``OUT/TASK``.

    Args:
        task: "pr" or "asr".
        out: the data folder.
        tree: audio and transcripts.
        splits: for each of train, dev, test the folders of ``tree`` that belong to it.
    """
    file, home = out / f"{task}.yaml", (out / task).absolute()
    with filled_config(file, f"downstream_configs/{task}.yaml") as config:
        expert = config["downstream_expert"]
        if task == "pr":
            expert["corpus"].update(path=str(tree), lexicon=[str(home / "lexicon.txt")], **splits)
            expert["text"]["vocab_file"] = str(home / "phoneme.txt")
            return file
        data = expert["datarc"]
        for other in ("dev-other", "test-other"):
            data.pop(other, None)
        data.update(train=splits["train"], libri_root=str(tree))
        data.update(bucket_file=str(home / "len_for_bucket"), dict_path=str(home / "char.dict"))
        # s3prl calls the last two splits so whatever they hold
        data.update({"dev-clean": splits["dev"], "test-clean": splits["test"]})
    return file


def _summary(task: str, config: Path, spoken: Sequence[Utterance], converted: int, lexicon: Lexicon | None) -> Prepared:
    notes = converted_note(converted)
    respelled = [item for item in spoken if item.text != item.clip.row.text]
    if respelled:
        first = respelled[0]
        notes.append(
            f"{len(respelled)} of {len(spoken)} transcripts are respelled in A-Z and ' under {config.stem}/{TREE}, "
            f"first: {first.clip.row.text!r} as {first.text!r}"
        )
    parts = {split: [item.clip for item in spoken if item.clip.row.split == split] for split in SPLITS}
    train, test = ({clip.row.speaker for clip in parts[split]} for split in ("train", "test"))
    if train & test:
        notes.append(f"{len(train & test)} of {len(test)} test speakers are also in train")
    if lexicon:
        notes.extend(lexicon_notes(lexicon))
    return Prepared.of(task, config, parts, notes)


def lexicon_notes(lexicon: Lexicon) -> list[str]:
    notes = [f"lexicon: {len(lexicon.words)} words"]
    if lexicon.given:
        notes[0] += f"; its phones equal the manifest's for {lexicon.equal} of {lexicon.given} utterances"
    if lexicon.borrowed:
        notes.append(f"{len(lexicon.borrowed)} words from CMUdict, which --lexicon lacks, first: {lexicon.borrowed[0]}")
    if lexicon.learned:
        notes.append(
            f"{len(lexicon.learned)} words pronounced as the manifest's phones say, first: {lexicon.learned[0]}"
        )
    return notes
