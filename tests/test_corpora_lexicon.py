"""The lexicon: agreement with given phones, splitting of unknown words, and clear errors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import editdistance
import numpy as np
import pytest

from s3prl_ekd.corpora import lexicon as module
from s3prl_ekd.corpora.layout_speech import lexicon_notes
from s3prl_ekd.corpora.lexicon import build_lexicon, phoneme_set, read_lexicon, split_phones
from s3prl_ekd.errors import EkdError


@pytest.fixture
def no_cmudict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cmudict", lambda: {})


def test_lexicon_file_wins_and_its_first_pronunciation_is_taken(tmp_path: Path, no_cmudict: None) -> None:
    file = tmp_path / "lexicon.txt"
    file.write_text(";;; a comment\nthe\tDH AH0\nTHE(2)\tDH IY0\nCAT  K AE1 T # an animal\n\n")
    lexicon = build_lexicon([("THE CAT", "DH IY0 K AE1 T"), ("'CAT'", "")], [file])
    assert lexicon.words == {"THE": ("DH", "AH0"), "CAT": ("K", "AE1", "T"), "'CAT'": ("K", "AE1", "T")}
    assert (lexicon.given, lexicon.equal, lexicon.learned) == (1, 0, ())
    lexicon.write(tmp_path / "out.txt")
    assert {word: found[0] for word, found in read_lexicon(tmp_path / "out.txt").items()} == lexicon.words


def test_comments_and_a_byte_order_mark_are_no_words(tmp_path: Path, no_cmudict: None) -> None:
    file = tmp_path / "lexicon.txt"
    file.write_bytes(b"\xef\xbb\xbfTHE\tDH AH0\n# a comment\n  # another\n#\n  ;;; as CMUdict has them\nCAT\tK AE1 T\n")
    assert read_lexicon(file) == {"THE": [("DH", "AH0")], "CAT": [("K", "AE1", "T")]}


def test_words_that_the_given_files_lack_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cmudict", lambda: {"THE": [("DH", "IY0")], "CAT": [("K", "AE1", "T")]})
    file = tmp_path / "lexicon.txt"
    file.write_text("THE\tDH AH0\n")
    utterances = [("THE CAT", ""), ("THE DOG", "DH AH0 D AO1 G")]
    lexicon = build_lexicon(utterances, [file])
    assert (lexicon.borrowed, lexicon.learned) == (("CAT",), ("DOG",))
    assert "1 words from CMUdict, which --lexicon lacks, first: CAT" in lexicon_notes(lexicon)
    assert build_lexicon(utterances).borrowed == ()  # nobody asked for another one


def test_random_languages_are_recovered_from_utterance_phones(tmp_path: Path, no_cmudict: None) -> None:
    """Words with hidden pronunciations, a tenth of them unknown: joined phones alone give the unknown ones back."""
    rng = np.random.default_rng(0)
    phones = sorted(phoneme_set() - {"SIL", "SPN"})
    letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(100)]
    truth = {word: tuple(rng.choice(phones, max(1, round(len(word) * 0.85)))) for word in words}
    known = tmp_path / "known.txt"
    known.write_text("".join(f"{word}\t{' '.join(truth[word])}\n" for word in words[10:]))
    texts = [rng.choice(words, rng.integers(3, 9)) for _ in range(150)]
    utterances = [(" ".join(text), " ".join(itertools.chain(*(truth[word] for word in text)))) for text in texts]
    lexicon = build_lexicon(utterances, [known])
    said = {word for text in texts for word in text}
    assert lexicon.words == {word: truth[word] for word in said}
    assert lexicon.equal == lexicon.given == 150
    assert set(lexicon.learned) == said & set(words[:10])


def test_the_majority_of_utterances_decides_between_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"READ": [("R", "EH1", "D"), ("R", "IY1", "D")], "IT": [("IH1", "T")]}
    monkeypatch.setattr(module, "_cmudict", lambda: entries)
    utterances = [("READ IT", "R IY1 D IH1 T")] * 2 + [("READ IT", "R EH1 D IH1 T")]
    lexicon = build_lexicon(utterances)
    assert lexicon.words["READ"] == ("R", "IY1", "D")
    assert (lexicon.given, lexicon.equal, lexicon.learned) == (3, 2, ())


def test_split_is_the_cheapest_of_all_splits() -> None:
    """Against brute force over every way to cut the phones."""
    candidates = {"A": [("EY1",), ("AH0",)], "DOG": [("D", "AO1", "G")], "ATE": [("EY1", "T"), ("EH1", "T")]}
    words = ["A", "DOG", "ATE"]
    phones = ("AH0", "D", "AO1", "K", "EY1", "T")

    def cost(pieces: Iterable[tuple[str, ...]]) -> int:
        return sum(
            min(editdistance.eval(piece, found) for found in candidates[word])
            for word, piece in zip(words, pieces, strict=True)
        )

    cuts = itertools.combinations(range(1, len(phones)), len(words) - 1)
    every = [(phones[:i], phones[i:j], phones[j:]) for i, j in cuts]
    assert cost(split_phones(words, phones, candidates)) == min(map(cost, every)) == 1
    assert split_phones(words, ("AH0", "D"), candidates) is None


def test_unknown_words_side_by_side_get_phones_by_their_letters() -> None:
    phones = tuple("abcdefghi")
    assert split_phones(["AB", "ABCDEFGH"], phones, {}) == [phones[:2], phones[2:]]
    assert split_phones(["ABCDEFGH", "A'B"], phones, {}) == [phones[:7], phones[7:]]


def test_missing_words_are_named_and_counted(tmp_path: Path, no_cmudict: None) -> None:
    file = tmp_path / "lexicon.txt"
    file.write_text("A\tAH0\n")
    text = " ".join(["A", *(f"ZZ{letter}" for letter in "ABCDEFGHIJKL")])
    with pytest.raises(EkdError, match=r"12 of 13 words have no pronunciation: ZZA, .*ZZJ, \.\.\.; .*--lexicon"):
        build_lexicon([(text, "")], [file])


@pytest.mark.parametrize(("text", "message"), [("A\n", ":1: 'A' has no phones"), ("A\tQQ\n", "'QQ', which is not in")])
def test_bad_lexicons_are_named(tmp_path: Path, no_cmudict: None, text: str, message: str) -> None:
    (tmp_path / "lexicon.txt").write_text(text)
    with pytest.raises(EkdError, match=message):
        build_lexicon([("A", "")], [tmp_path / "lexicon.txt"])
    with pytest.raises(EkdError, match="nowhere.txt"):
        build_lexicon([("A", "")], [tmp_path / "nowhere.txt"])


def test_phoneme_set_is_arpabet_with_stress() -> None:
    phones = phoneme_set()
    assert {"SIL", "SPN", "AA0", "AA1", "AA2", "ZH"} <= phones
    assert len(phones) == 71
