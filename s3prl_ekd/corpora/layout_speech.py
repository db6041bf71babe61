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

from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.corpora.folders import (
    Prepared,
    fresh_folder,
    must_convert,
    place,
    safe_name,
    unique_names,
    write_config,
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


def normalise(text: str) -> str | None:
    """A transcript in the 27 letters of s3prl's ASR dictionary (A-Z and '), or None where it cannot be.

    Accents are stripped. Hyphens split words, as does other punctuation between two letters ("and/or", "wait…what"),
    except quotation marks and the dots of initialisms ("U.S.A." is USA). Punctuation elsewhere is dropped. Digits and
    signs that are read out as words have no letters of their own.
    """
    text = unicodedata.normalize("NFKD", text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").upper())
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
    manifest: Manifest, clips: Sequence[Clip], out: Path, tasks: Sequence[str], lexicons: Sequence[str | Path] = ()
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
    targets = [tree / item.folder / item.key for item in spoken]
    converted = [must_convert(item.clip, flac_only=True) for item in spoken]
    fresh = [
        pair for pair, redo in zip(zip(spoken, targets, strict=True), converted, strict=True) if not (redo and other)
    ]
    place([item.clip for item, _ in fresh], [target for _, target in fresh], flac_only=True)
    if other:
        for item, target, redo in zip(spoken, targets, converted, strict=True):
            if redo:
                target.parent.mkdir(parents=True, exist_ok=True)
                _share(other / item.folder / f"{item.key}.flac", target.with_name(f"{item.key}.flac"))
    transcripts: dict[Path, list[str]] = {}
    for item in sorted(spoken, key=lambda item: item.key):
        name = "-".join(item.key.split("-")[:2])
        transcripts.setdefault(tree / item.folder / f"{name}.trans.txt", []).append(f"{item.key} {item.text}\n")
    for file, lines in transcripts.items():
        file.write_text("".join(lines), encoding="utf-8")
    return sum(converted)


def _share(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # one copy on disk that outlives either task's folder
    except OSError:
        shutil.copyfile(source, target)


def _lengths(spoken: Sequence[Utterance]) -> dict[str, list[tuple[str, int]]]:
    """Split -> (path below the tree, samples) of each utterance."""
    lengths: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for item in spoken:
        path = (item.folder / f"{item.key}.flac").as_posix()
        lengths[item.clip.row.split].append((path, item.clip.samples))
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
    if task == "pr":
        _write_pr_config(file, tree, home / "lexicon.txt", home / "phoneme.txt", splits)
    else:
        _write_asr_config(file, tree, home / "len_for_bucket", home / "char.dict", splits)
    return file


def _write_pr_config(file: Path, tree: Path, lexicon: Path, vocab: Path, splits: dict[str, list[str]]) -> None:
    config = read_yaml(shipped("downstream_configs/pr.yaml"))
    expert = config["downstream_expert"]
    expert["corpus"].update(path=str(tree), lexicon=[str(lexicon)], **splits)
    expert["text"]["vocab_file"] = str(vocab)
    write_config(file, config, "downstream_configs/pr.yaml")


def _write_asr_config(file: Path, tree: Path, buckets: Path, letters: Path, splits: dict[str, list[str]]) -> None:
    """s3prl calls the last two splits dev-clean and test-clean whatever they hold."""
    config = read_yaml(shipped("downstream_configs/asr.yaml"))
    data = config["downstream_expert"]["datarc"]
    for other in ("dev-other", "test-other"):
        data.pop(other, None)
    data.update(train=splits["train"], libri_root=str(tree), bucket_file=str(buckets), dict_path=str(letters))
    data.update({"dev-clean": splits["dev"], "test-clean": splits["test"]})
    write_config(file, config, "downstream_configs/asr.yaml")


def _summary(task: str, config: Path, spoken: Sequence[Utterance], converted: int, lexicon: Lexicon | None) -> Prepared:
    notes = [f"{converted} files converted to 16 kHz mono FLAC"] if converted else []
    respelled = [item for item in spoken if item.text != item.clip.row.text]
    if respelled:
        first = respelled[0]
        notes.append(
            f"{len(respelled)} of {len(spoken)} transcripts are spelled anew in A-Z and ' under {config.stem}/{TREE}, "
            f"first: {first.clip.row.text!r} as {first.text!r}"
        )
    speakers = {split: {item.clip.row.speaker for item in spoken if item.clip.row.split == split} for split in SPLITS}
    shared = speakers["train"] & speakers["test"]
    if shared:
        notes.append(f"{len(shared)} of {len(speakers['test'])} test speakers are also in train")
    if lexicon:
        notes.extend(lexicon_notes(lexicon))
    return Prepared(
        task=task,
        config=config,
        splits=SPLITS,
        utterances=tuple(sum(item.clip.row.split == split for item in spoken) for split in SPLITS),
        minutes=sum(item.clip.samples for item in spoken) / SAMPLE_RATE / 60,
        speakers=len(set().union(*speakers.values())),
        notes=tuple(notes),
    )


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
