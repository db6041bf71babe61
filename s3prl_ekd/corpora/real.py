"""Real corpora in their own layout: LibriSpeech (pr, asr, pretrain), VoxCeleb1 (sid), IEMOCAP (er).

Nothing is linked or copied: the configs point at the corpus, and only what it lacks is written (a lexicon, length
CSVs, a split file, session metadata). Manifests are ``prepare.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from s3prl_ekd.audio import SAMPLE_RATE, find_audio
from s3prl_ekd.corpora.folders import Prepared, copy_resource, fresh_folder
from s3prl_ekd.corpora.layout_emotion import SUPERB_EMOTIONS, emotion_labels, write_er_config, write_sessions
from s3prl_ekd.corpora.layout_pretrain import prepare_pretrain
from s3prl_ekd.corpora.layout_speaker import unheard_notes, write_sid_config
from s3prl_ekd.corpora.layout_speech import lexicon_notes, write_asr_config, write_pr_config
from s3prl_ekd.corpora.length_csv import write_lengths
from s3prl_ekd.corpora.lexicon import build_lexicon
from s3prl_ekd.corpora.probe import in_parallel, info_or_reason
from s3prl_ekd.corpora.split_file import PARTS, read_split_file, speaker_of, wav_folders
from s3prl_ekd.errors import EkdError

logger = logging.getLogger(__name__)

LIBRISPEECH_SPLITS = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}  # SUPERB's
LIBRISPEECH_PRETRAIN = ("train-clean-100", "train-clean-360", "train-other-500")
IEMOCAP_UTTERANCES = 5531  # of the four emotions, in the lists of s3prl's repository


def prepare_librispeech(
    root: Path, out: Path, tasks: Sequence[str] = ("pr", "asr", "pretrain"), lexicons: Sequence[str | Path] = ()
) -> list[Prepared]:
    """SUPERB's splits of LibriSpeech for PR and ASR, and its training splits for pretraining.

    Raises:
        EkdError: a split is missing, a word has no pronunciation, or a file cannot be read as it is.
    """
    root = root.absolute()
    if not any((root / split).is_dir() for split in (*LIBRISPEECH_SPLITS.values(), *LIBRISPEECH_PRETRAIN)):
        if any((root / "LibriSpeech" / split).is_dir() for split in LIBRISPEECH_SPLITS.values()):
            root = root / "LibriSpeech"
        else:
            raise EkdError(f"{root}: no LibriSpeech split in it; expected {', '.join(LIBRISPEECH_SPLITS.values())}")
    results = []
    speech = [task for task in ("asr", "pr") if task in tasks]
    if speech:
        missing = [split for split in LIBRISPEECH_SPLITS.values() if not (root / split).is_dir()]
        if missing:
            raise EkdError(f"{root}: LibriSpeech split {', '.join(missing)} is missing; {' and '.join(speech)} need it")
        results.extend(_librispeech_speech(root, out, speech, lexicons))
    if "pretrain" in tasks:
        present = [split for split in LIBRISPEECH_PRETRAIN if (root / split).is_dir()]
        absent = [split for split in LIBRISPEECH_PRETRAIN if split not in present]
        if not present:
            raise EkdError(f"{root}: no LibriSpeech training split in it; expected {', '.join(LIBRISPEECH_PRETRAIN)}")
        notes = [f"pretrain uses {', '.join(present)}; {', '.join(absent)} is not there"] if absent else []
        sets = {split: find_audio(root / split) for split in present}
        speakers = sum(sum(1 for entry in (root / split).iterdir() if entry.is_dir()) for split in present)
        results.append(prepare_pretrain(sets, out, root, speakers, notes))
    return results


def _librispeech_speech(root: Path, out: Path, tasks: Sequence[str], lexicons: Sequence[str | Path]) -> list[Prepared]:
    texts: dict[str, str] = {}
    lengths: dict[str, list[tuple[str, int]]] = {}
    upper, behind = 0, 0
    for split in LIBRISPEECH_SPLITS.values():
        found = find_audio(root / split)
        audio = [file for file in found if file.suffix == ".flac"]
        upper += sum(file.suffix.lower() == ".flac" for file in found) - len(audio)
        behind += _behind_links(audio, root / split)
        if not audio:
            raise EkdError(
                f"{root / split}: no .flac file in it, which is what s3prl's PR and ASR read; for other audio give a "
                "manifest (--manifest), which converts it"
            )
        for folder in sorted({file.parent for file in audio}):
            file = folder / f"{folder.parent.name}-{folder.name}.trans.txt"
            if not file.is_file():
                raise EkdError(
                    f"{file}: no such transcript file; expected LibriSpeech's SPLIT/SPK/CHAP/SPK-CHAP.trans.txt"
                )
            for line in _transcripts(file):
                key, _, text = line.partition(" ")
                texts[key] = text
        silent = [file for file in audio if file.stem not in texts]
        if silent:
            raise EkdError(
                f"{silent[0]}: no transcript for it in its .trans.txt (and {len(silent) - 1} more such files)"
            )
        measured = _samples(audio)
        lengths[split] = [(file.relative_to(root).as_posix(), n) for file, n in zip(audio, measured, strict=True)]
    heard = {Path(path).stem for entries in lengths.values() for path, _ in entries}
    lexicon = None
    if "pr" in tasks:
        lexicon = build_lexicon([(text, "") for key, text in texts.items() if key in heard], lexicons, root)
    results = []
    common = [f"{upper} files left out: they end in .FLAC, and s3prl's PR and ASR look for .flac"] if upper else []
    notes = {"asr": common, "pr": [*common, *(lexicon_notes(lexicon) if lexicon else ())]}
    if behind:
        notes["pr"].append(
            f"{behind} files lie behind links to folders: read here, but not by the PR code of a git checkout of s3prl"
        )
    splits = {role: [split] for role, split in LIBRISPEECH_SPLITS.items()}
    for task in tasks:
        home = (out / task).absolute()
        with fresh_folder(out / task, root) as folder:
            if task == "pr":
                lexicon.write(folder / "lexicon.txt")
                copy_resource("phoneme.txt", folder / "phoneme.txt")
            else:
                copy_resource("char.dict", folder / "char.dict")
                for split, entries in lengths.items():
                    write_lengths(folder / "len_for_bucket" / f"{split}.csv", entries)
        config = out / f"{task}.yaml"
        if task == "pr":
            write_pr_config(config, root, [home / "lexicon.txt"], home / "phoneme.txt", splits)
        else:
            write_asr_config(config, root, home / "len_for_bucket", home / "char.dict", splits)
        results.append(
            Prepared(
                task=task,
                config=config,
                splits=tuple(LIBRISPEECH_SPLITS.values()),
                utterances=tuple(map(len, lengths.values())),
                minutes=sum(n for entries in lengths.values() for _, n in entries) / SAMPLE_RATE / 60,
                speakers=len({path.split("/")[1] for entries in lengths.values() for path, _ in entries}),
                notes=tuple(notes[task]),
            )
        )
    return results


def _transcripts(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise EkdError(f"{file}: not UTF-8 text ({error.reason}); expected lines SPK-CHAP-UTT TRANSCRIPT") from error


def _behind_links(files: Iterable[Path], top: Path) -> int:
    """How many of the files are below a link to a folder that is itself below ``top``."""
    linked: dict[Path, bool] = {top: False}

    def is_linked(folder: Path) -> bool:
        if folder not in linked:
            linked[folder] = folder.is_symlink() or is_linked(folder.parent)
        return linked[folder]

    return sum(is_linked(file.parent) for file in files)


def _samples(files: Sequence[Path]) -> list[int]:
    """The length of each file, all of which s3prl will read as they are.

    Raises:
        EkdError: a file that cannot be read, or that is not 16 kHz mono: s3prl neither resamples nor mixes channels.
    """
    infos = in_parallel(info_or_reason, files)
    bad = [reason for reason in infos if isinstance(reason, str)]
    if bad:
        raise EkdError(f"{bad[0]} (and {len(bad) - 1} more files like it)")
    other = [(file, info) for file, info in zip(files, infos, strict=True) if not info.is_16k_mono]
    if other:
        file, info = other[0]
        raise EkdError(
            f"{file}: {info.rate} Hz, {info.channels} channel{'s' * (info.channels > 1)}; {len(other)} of {len(files)} "
            "files are not 16 kHz mono, and s3prl reads a corpus as it is; give a manifest (--manifest), which converts"
        )
    return [info.samples for info in infos]


def prepare_voxceleb1(root: Path, out: Path, split_file: Path, allow_missing: bool = False) -> Prepared:
    """SID on VoxCeleb1 with its ``iden_split.txt`` (lines ``1|2|3 idXXXXX/video/clip.wav``: train, dev, test).

    Raises:
        EkdError: a malformed line, a speaker that s3prl cannot number, missing wavs (without ``allow_missing``), or
            wavs that cannot be read as they are.
    """
    root = root.absolute()
    parts = wav_folders(root)
    if not parts:
        raise EkdError(f"{root}: no dev/wav or test/wav folder in it; expected VoxCeleb1")
    entries = read_split_file(split_file)
    present = in_parallel(lambda entry: any((part / entry[1]).is_file() for part in parts), entries)
    missing = [path for (_, path), here in zip(entries, present, strict=True) if not here]
    if missing and not allow_missing:
        raise EkdError(
            f"{split_file}: {len(missing)} of {len(entries)} files are not below {root}/*/wav: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''} (--allow-missing leaves them out)"
        )
    kept = [entry for entry, here in zip(entries, present, strict=True) if here]
    counts = tuple(sum(number == part for number, _ in kept) for part in (1, 2, 3))
    if 0 in counts:
        raise EkdError(f"{split_file}: no file of part {counts.index(0) + 1} (1 train, 2 dev, 3 test) is below {root}")
    samples = _samples(
        in_parallel(lambda entry: next(part / entry[1] for part in parts if (part / entry[1]).is_file()), kept)
    )
    notes = [f"{len(missing)} of {len(entries)} files of {split_file.name} left out: not there"] if missing else []
    notes += unheard_notes(
        {split: {speaker_of(path) for number, path in kept if number == part} for split, part in PARTS.items()}
    )
    with fresh_folder(out / "sid", root) as folder:
        (folder / "split.txt").write_text("".join(f"{number} {path}\n" for number, path in kept), encoding="utf-8")
    write_sid_config(out / "sid.yaml", root, (out / "sid" / "split.txt").absolute())
    return Prepared(
        task="sid",
        config=out / "sid.yaml",
        splits=("train", "dev", "test"),
        utterances=counts,
        minutes=sum(samples) / SAMPLE_RATE / 60,
        speakers=len({speaker_of(path) for _, path in kept}),
        notes=tuple(notes),
    )


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
    samples = _samples(files)
    notes = []
    if len(files) != IEMOCAP_UTTERANCES:
        notes.append(f"{len(files)} utterances; SUPERB's folds hold {IEMOCAP_UTTERANCES}")
    if absent:
        others = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        notes.append(f"{absent[0]}{others}: labelled, but not in sentences/wav, and left out")
    emotions = [item["label"] for items in sessions.values() for item in items]
    with fresh_folder(out / "er", root) as folder:
        write_sessions(folder, sessions, emotion_labels(SUPERB_EMOTIONS))
    write_er_config(out / "er.yaml", root, (out / "er" / "meta_data").absolute())
    return Prepared(
        task="er",
        config=out / "er.yaml",
        splits=tuple(f"fold{number}" for number in sessions),
        utterances=tuple(map(len, sessions.values())),
        minutes=sum(samples) / SAMPLE_RATE / 60,
        speakers=len({item["speaker"] for items in sessions.values() for item in items}),
        notes=("emotions: " + ", ".join(f"{name} {emotions.count(name)}" for name in SUPERB_EMOTIONS), *notes),
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
