"""The PR corpus: labels, links, lexicons and buckets as s3prl's own; what is missing is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import bridge_corpora
import pytest

from s3prl_ekd.errors import EkdError
from s3prl_ekd.shipped import shipped


class Words:
    """s3prl's word tokenizer, written again: <pad> 0, <eos> 1, <unk> 2, then the list; <eos> ends a sequence."""

    def __init__(self, symbols: list[str]) -> None:
        self._vocab2idx = {symbol: index for index, symbol in enumerate(["<pad>", "<eos>", "<unk>", *symbols])}

    def encode(self, text: str) -> list[int]:
        return [self._vocab2idx.get(word, 2) for word in text.split(" ")] + [1]


@pytest.fixture(scope="module")
def libri(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return bridge_corpora.librispeech(tmp_path_factory.mktemp("libri"))


def phones() -> list[str]:
    return shipped("resources/phoneme.txt").read_text().split()


def dataset(libri: dict[str, Path], bucket: int = 1, **changed: object) -> object:
    from s3prl_ekd.compat.libriphone import LibriPhoneDataset

    given = {"path": str(libri["root"]), "lexicon": [str(libri["lexicon"])], "train": [], "num_workers": 0} | changed
    return LibriPhoneDataset(["train-clean-100"], Words(phones()), bucket, **given)


def test_phone_labels_equal_a_naive_reading(libri: dict[str, Path]) -> None:
    tokenizer, expected = Words(phones()), {}
    for table in libri["root"].rglob("train-clean-100/**/*.trans.txt"):
        for line in table.read_text().splitlines():
            name, *words = line.split()
            spelled = " ".join(bridge_corpora.LEXICON[word] for word in words)  # "ONE" has a second line, left aside
            expected[name] = tokenizer.encode(spelled)
    found = dataset(libri)
    assert {file.stem: text for file, text in (found[i] for i in range(len(found)))} == expected
    lengths = [len(found[i][1]) for i in range(len(found))]
    assert lengths == sorted(lengths, reverse=True)


def test_speakers_behind_links_are_trained_on(libri: dict[str, Path], tmp_path: Path) -> None:
    """`prepare` counts them, and so must training. Neither takes hidden folders, nor .FLAC for PR."""
    expected = {file.name: text for file, text in (dataset(libri)[i] for i in range(6))}
    split = tmp_path / "LibriSpeech" / "train-clean-100"
    split.mkdir(parents=True)
    whole = libri["root"] / split.name
    (split / "10").symlink_to(whole / "10")
    (split / "again").symlink_to(whole / "10")  # a second way to the same clips
    (split / ".snapshot").symlink_to(whole)
    shutil.copytree(whole / "10", split / "11")
    for file in (split / "11").rglob("*.flac"):
        file.rename(file.with_suffix(".FLAC"))
    found = dataset(libri | {"root": split.parent})
    assert {file.name: text for file, text in (found[i] for i in range(len(found)))} == expected
    assert len(found) == 6
    (split / "10").unlink()
    (split / "again").unlink()
    with pytest.raises(EkdError, match=r"train-clean-100: no \*\.flac file below this folder"):
        dataset(libri | {"root": split.parent})
    with pytest.raises(EkdError, match="corpus: .*train-clean-100: no such folder"):
        dataset(libri | {"root": tmp_path})


def test_a_lexicon_may_begin_with_a_byte_order_mark(libri: dict[str, Path], tmp_path: Path) -> None:
    marked = tmp_path / "lexicon.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + libri["lexicon"].read_bytes())
    assert [dataset(libri | {"lexicon": marked})[i] for i in range(6)] == [dataset(libri)[i] for i in range(6)]


def test_buckets_are_neighbours_and_never_run_over_the_end(libri: dict[str, Path]) -> None:
    single = [dataset(libri)[i] for i in range(6)]
    pairs = dataset(libri, bucket=2)
    assert [pairs[i] for i in (0, 3, 5)] == [single[0:2], single[3:5], single[4:6]]
    for size in (7, 16):
        assert all(dataset(libri, bucket=size)[i] == single for i in range(6))


def test_missing_words_phones_and_transcripts_are_named(libri: dict[str, Path], tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("ONE\tW AH1 N\n")
    with pytest.raises(EkdError, match="trans.txt: .*the word 'TWO' is in no lexicon"):
        dataset(libri, lexicon=[str(short)])
    short.write_text("ONE\tW XX N\nTWO\tT\nTHREE\tR\nFOUR\tF\n")
    with pytest.raises(EkdError, match="'ONE': the phone 'XX' is not in the vocabulary"):
        dataset(libri, lexicon=[str(short)])
    with pytest.raises(EkdError, match="nowhere.txt: cannot be read"):
        dataset(libri, lexicon=[str(tmp_path / "nowhere.txt")])
    bridge_corpora.tone(tmp_path / "train-clean-100/1/1/1-1-0000.flac", 0)
    with pytest.raises(EkdError, match="1-1.trans.txt: cannot be read"):
        dataset(libri, path=str(tmp_path))
    (tmp_path / "train-clean-100/1/1/1-1.trans.txt").write_text("1-1-0001 ONE\n")
    with pytest.raises(EkdError, match="no line for 1-1-0000.flac"):
        dataset(libri, path=str(tmp_path))
