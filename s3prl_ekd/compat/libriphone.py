"""Phone transcripts of a LibriSpeech tree for s3prl's ``ctc`` task, where the installed s3prl lacks that code.

Behaves as s3prl's dataset of the same name (s3prl/downstream/ctc/corpus/libriphone.py, left out of the registry's
wheel): first pronunciation wins, utterances sorted by phone length, a bucket is a run of neighbours. Three differences:
files are listed in a fixed order, also behind links to folders, and a corpus smaller than a batch is one item (of which
s3prl may give a part only).
Only the dataset is here; batching and audio reading stay s3prl's (``s3prl.downstream.ctc.data``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from s3prl_ekd.audio import find_audio
from s3prl_ekd.errors import EkdError

log = logging.getLogger(__name__)

Item = tuple[Path, list[int]]


class LibriPhoneDataset(Dataset[Item | list[Item]]):
    """Utterances of some split folders with their phone indices.

    Args:
        split: split folders below ``path``, e.g. ``["train-clean-100"]``.
        tokenizer: s3prl's word tokenizer over the phone list (``encode`` ends a sequence with <eos>).
        bucket_size: above 1, an item is a list of this many neighbours in length; else an item is one utterance.
        path: folder of a LibriSpeech tree (SPLIT/SPK/CHAP/SPK-CHAP-NNNN.flac beside SPK-CHAP.trans.txt).
        lexicon: files of lines WORD, white space, phones; of several lines for a word the first counts.
        ascending: sort by rising phone count; s3prl's default is falling.

    Raises:
        EkdError: a missing folder or file, an utterance without a transcript, a word that no lexicon has, a phone that
            the vocabulary lacks.
    """

    def __init__(
        self,
        split: list[str],
        tokenizer: Any,
        bucket_size: int,
        path: str,
        lexicon: list[str],
        ascending: bool = False,
        **kwargs: Any,
    ) -> None:
        self.path = path
        self.bucket_size = bucket_size
        pronunciations = _read_lexicons(lexicon)
        phones = set(getattr(tokenizer, "_vocab2idx", ()))
        checked: set[str] = set()
        items: list[Item] = []
        for name in split:
            folder = Path(path, name)
            files = _flac_files(folder)
            transcripts: dict[Path, dict[str, str]] = {}
            for file in files:
                text_file = file.parent / f"{file.stem.rpartition('-')[0]}.trans.txt"
                if text_file not in transcripts:
                    transcripts[text_file] = _read_transcripts(text_file)
                if file.stem not in transcripts[text_file]:
                    raise EkdError(f"{text_file}: no line for {file.name}")
                words = transcripts[text_file][file.stem].split()
                sequence: list[str] = []
                for word in words:
                    if word not in pronunciations:
                        raise EkdError(f"{text_file}: {file.stem}: the word {word!r} is in no lexicon of {lexicon}")
                    if word not in checked:
                        _check_phones(word, pronunciations[word], phones)
                        checked.add(word)
                    sequence += pronunciations[word]
                items.append((file, tokenizer.encode(" ".join(sequence))))
        items.sort(key=lambda item: len(item[1]), reverse=not ascending)
        self.file_list = [file for file, _ in items]
        self.text = [labels for _, labels in items]
        log.info("LibriPhone: %d utterances of %s", len(items), ", ".join(split))

    def __getitem__(self, index: int) -> Item | list[Item]:
        if self.bucket_size <= 1:
            return self.file_list[index], self.text[index]
        start = max(0, min(len(self.file_list) - self.bucket_size, index))
        stop = start + self.bucket_size
        return list(zip(self.file_list[start:stop], self.text[start:stop], strict=True))

    def __len__(self) -> int:
        return len(self.file_list)


def _flac_files(folder: Path) -> list[Path]:
    """Files that end in ``.flac``, as ``prepare`` counts them; s3prl's own list has none in upper case either."""
    try:
        files = [file for file in find_audio(folder, {".flac"}) if file.suffix == ".flac"]
    except EkdError as error:
        raise EkdError(f"config downstream_expert.corpus: {error}") from error
    if not files:
        raise EkdError(f"config downstream_expert.corpus: {folder}: no *.flac file below this folder (*.FLAC only)")
    return files


def _read_lexicons(files: Iterable[str]) -> dict[str, list[str]]:
    if isinstance(files, str):
        raise EkdError(f"config downstream_expert.corpus.lexicon: {files!r}: expected a list of files")
    pronunciations: dict[str, list[str]] = {}
    several = 0
    for name in files:
        for line in _lines(Path(name), "config downstream_expert.corpus.lexicon: "):
            word, *phones = line.split()
            if word in pronunciations:
                several += 1
            else:
                pronunciations[word] = phones
    if several:
        log.info("LibriPhone: %d further pronunciations left aside: the first of each word counts", several)
    return pronunciations


def _read_transcripts(file: Path) -> dict[str, str]:
    rows = (line.partition(" ") for line in _lines(file))
    return {key: text for key, _, text in rows}


def _lines(file: Path, key: str = "") -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")  # Windows editors begin a file with a byte order mark
    except OSError as error:
        raise EkdError(f"{key}{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise EkdError(f"{key}{file}: is not a UTF-8 text file") from error
    return [line for line in (raw.strip() for raw in text.splitlines()) if line]


def _check_phones(word: str, sequence: list[str], known: set[str]) -> None:
    if not sequence:
        raise EkdError(f"lexicon: the word {word!r} has no phones")
    for phone in sequence:
        if known and phone not in known:
            raise EkdError(f"lexicon: {word!r}: the phone {phone!r} is not in the vocabulary file")
