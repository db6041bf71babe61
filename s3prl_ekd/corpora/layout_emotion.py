"""ER: a manifest with folds as IEMOCAP's sessions: audio, ``meta_data/SessionK/{train,test}_meta_data.json``, config.

The test list of SessionK is fold K; its train list is every other fold, of which s3prl takes a fifth as dev. The real
IEMOCAP, whose labels are in its dialogue files, is ``iemocap.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from s3prl_ekd.corpora.folders import (
    Prepared,
    clip_names,
    converted_note,
    filled_config,
    fresh_folder,
    place,
    placed_suffix,
    write_ids,
)
from s3prl_ekd.corpora.manifest import Manifest
from s3prl_ekd.corpora.probe import Clip
from s3prl_ekd.errors import EkdError, naming

SUPERB_EMOTIONS = ("neu", "hap", "ang", "sad")  # in s3prl's order of labels
ALIASES = {
    **{"neutral": "neu", "happy": "hap", "happiness": "hap", "joy": "hap", "excited": "hap", "exc": "hap"},
    **{"angry": "ang", "anger": "ang", "sadness": "sad"},
}


def emotion_labels(emotions: Sequence[str]) -> dict[str, int]:
    """Label numbers: SUPERB's own order where the corpus has exactly its four emotions, else by name."""
    names = set(emotions)
    ordered = SUPERB_EMOTIONS if names == set(SUPERB_EMOTIONS) else sorted(names)
    return {name: index for index, name in enumerate(ordered)}


def session_numbers(folds: Sequence[str]) -> dict[str, int]:
    """Fold names to session numbers from 1: numbers keep their order, names are sorted.

    Raises:
        EkdError: two names are one number, as 1 and 01: speakers of one fold would be trained on for the other.
    """
    ordered = sorted(set(folds), key=lambda fold: (0, int(fold), fold) if fold.isdecimal() else (1, 0, fold))
    for one, other in pairwise(ordered):
        if one.isdecimal() and other.isdecimal() and int(one) == int(other):
            raise EkdError(f"fold {one!r} is also spelled {other!r}; expected one name for each fold")
    return {fold: index for index, fold in enumerate(ordered, start=1)}


def prepare_emotion(manifest: Manifest, clips: Sequence[Clip], out: Path) -> Prepared:
    """Lay out a manifest for ER under ``out``.

    Raises:
        EkdError: fewer than two folds or two emotions, a fold under two names, or a folder that is not ours.
    """
    emotions = [ALIASES.get(clip.row.emotion.lower(), clip.row.emotion.lower()) for clip in clips]
    labels = emotion_labels(emotions)
    with naming(manifest.file):
        sessions = session_numbers([clip.row.fold for clip in clips])
    if len(sessions) < 2 or len(labels) < 2:
        raise EkdError(
            f"{manifest.file}: {len(sessions)} folds and {len(labels)} emotions; task er needs two of each at least"
        )
    names = clip_names(clips)
    keys = [f"Session{sessions[clip.row.fold]}/{name}" for clip, name in zip(clips, names, strict=True)]
    items = [
        {"path": key + placed_suffix(clip), "label": emotion, "speaker": clip.row.speaker}
        for key, clip, emotion in zip(keys, clips, emotions, strict=True)
    ]
    with fresh_folder(out / "er", manifest.file) as folder:
        converted = place(clips, [folder / "audio" / key for key in keys])
        by_session = {
            number: [item for item, clip in zip(items, clips, strict=True) if sessions[clip.row.fold] == number]
            for number in sessions.values()
        }
        write_sessions(folder, by_session, labels)
        write_ids(folder / "ids.tsv", names, clips)
    home = (out / "er").absolute()
    write_er_config(out / "er.yaml", home / "audio", home / "meta_data")
    folds = {f"fold{number}": [c for c in clips if c.row.fold == fold] for fold, number in sessions.items()}
    notes = [emotion_note(emotions, labels), *converted_note(converted), *_shared_note(clips)]
    return Prepared.of("er", out / "er.yaml", folds, notes)


def write_sessions(folder: Path, sessions: dict[int, list[dict[str, str]]], labels: dict[str, int]) -> None:
    """Metadata and ``folds.json``: fold K tests on session K and trains on all others, in session order."""
    for number, test in sessions.items():
        train = [item for other, items in sorted(sessions.items()) if other != number for item in items]
        target = folder / "meta_data" / f"Session{number}"
        target.mkdir(parents=True)
        for name, items in (("train", train), ("test", test)):
            text = json.dumps({"labels": labels, "meta_data": items}, indent=0)
            (target / f"{name}_meta_data.json").write_text(text + "\n", encoding="utf-8")
    folds = json.dumps([f"fold{number}" for number in sorted(sessions)])
    (folder / "folds.json").write_text(folds + "\n", encoding="utf-8")


def write_er_config(file: Path, root: Path, meta_data: Path) -> None:
    with filled_config(file, "downstream_configs/er.yaml") as config:
        config["downstream_expert"]["datarc"].update(root=str(root), meta_data=str(meta_data), test_fold="fold1")


def emotion_note(emotions: Sequence[str], names: Iterable[str]) -> str:
    """How many utterances there are of each emotion."""
    return "emotions: " + ", ".join(f"{name} {emotions.count(name)}" for name in names)


def _shared_note(clips: Sequence[Clip]) -> list[str]:
    """What to say of speakers who are in several folds."""
    folds_of: dict[str, set[str]] = {}
    for clip in clips:
        folds_of.setdefault(clip.row.speaker, set()).add(clip.row.fold)
    shared = [speaker for speaker, folds in folds_of.items() if len(folds) > 1]
    return [f"{len(shared)} speakers are in several folds, first: {min(shared)}"] if shared else []
