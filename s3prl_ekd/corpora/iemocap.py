"""IEMOCAP (ER) in its own layout: the configuration points at the corpus, and only sessions' metadata is written."""

from __future__ import annotations

from pathlib import Path

from s3prl_ekd.audio import find_audio
from s3prl_ekd.corpora.folders import Prepared, fresh_folder
from s3prl_ekd.corpora.layout_emotion import (
    SUPERB_EMOTIONS,
    emotion_labels,
    emotion_note,
    write_er_config,
    write_sessions,
)
from s3prl_ekd.corpora.probe import ready_lengths
from s3prl_ekd.errors import EkdError
from s3prl_ekd.spelling import listed

IEMOCAP_UTTERANCES = 5531  # of the four emotions, in the lists of s3prl's repository


def prepare_iemocap(root: Path, out: Path) -> Prepared:
    """ER on IEMOCAP: labels from ``SessionN/dialog/EmoEvaluation/*.txt``, excited merged into happy, fold K = SessionK.

    Raises:
        EkdError: a session lacks its label files or labelled wavs, two label files disagree about an utterance, or a
            wav cannot be read as it is.
    """
    root = root.absolute()
    folders = {number: root / f"Session{number}" for number in range(1, 6)}
    missing = [folder.name for folder in folders.values() if not folder.is_dir()]
    if missing:
        raise EkdError(f"{root}: {', '.join(missing)} is missing; expected IEMOCAP's Session1 to Session5")
    absent: list[str] = []
    sessions = {number: _iemocap_session(root, folder, absent) for number, folder in folders.items()}
    files = [root / item["path"] for items in sessions.values() for item in items]
    samples = ready_lengths(files)
    notes = []
    if len(files) != IEMOCAP_UTTERANCES:
        notes.append(f"{len(files)} utterances; SUPERB's folds hold {IEMOCAP_UTTERANCES}")
    if absent:
        notes.append(f"{listed(absent, 1)}: labelled, but not in sentences/wav, and left out")
    emotions = [item["label"] for items in sessions.values() for item in items]
    with fresh_folder(out / "er", root) as folder:
        write_sessions(folder, sessions, emotion_labels(SUPERB_EMOTIONS))
    write_er_config(out / "er.yaml", root, (out / "er" / "meta_data").absolute())
    return Prepared(
        task="er",
        config=out / "er.yaml",
        splits=tuple(f"fold{number}" for number in sessions),
        utterances=tuple(map(len, sessions.values())),
        samples=sum(samples),
        speakers=len({item["speaker"] for items in sessions.values() for item in items}),
        notes=(emotion_note(emotions, SUPERB_EMOTIONS), *notes),
    )


def _iemocap_session(root: Path, session: Path, absent: list[str]) -> list[dict[str, str]]:
    """One session's utterances of the four emotions; the names of those without audio go into ``absent``.

    A line with a label reads ``[start - end]<TAB>utterance<TAB>emotion<TAB>[valence, activation, dominance]``. An
    utterance that several files list (a copy of a label file) counts once.
    """
    home = session / "sentences" / "wav"
    # the corpus's own place, wav/DIALOG/DIALOG_TURN.wav, comes last, so that a copy elsewhere does not replace it
    found = sorted(find_audio(home, {".wav"}), key=lambda wav: wav.parent == home / wav.stem.rpartition("_")[0])
    wavs = {wav.stem: wav for wav in found}
    # macOS leaves "._name" companions in unpacked archives.
    files = [file for file in sorted((session / "dialog" / "EmoEvaluation").glob("*.txt")) if file.name[0] != "."]
    items = []
    seen: dict[str, tuple[str, Path]] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            cells = [cell for cell in line.split("\t") if cell]
            if not line.startswith("[") or len(cells) < 3:
                continue
            emotion = "hap" if cells[2] == "exc" else cells[2]
            if cells[1] in seen:
                other, first = seen[cells[1]]
                if other != emotion:
                    raise EkdError(f"{file}: {cells[1]} is {emotion}, but {other} in {first}; one of them must go")
                continue
            seen[cells[1]] = (emotion, file)
            if emotion in SUPERB_EMOTIONS and cells[1] not in wavs:
                absent.append(f"{session.name}/{cells[1]}")
            elif emotion in SUPERB_EMOTIONS:
                path = wavs[cells[1]].relative_to(root).as_posix()
                items.append({"path": path, "label": emotion, "speaker": cells[1].split("_")[0]})
    if not items:
        raise EkdError(
            f"{session}: no labelled utterance; expected dialog/EmoEvaluation/*.txt and sentences/wav/*/*.wav"
        )
    return items
