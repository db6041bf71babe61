"""VoxCeleb1 (SID) in its own layout: the configuration points at the corpus, and only a split file is written."""

from __future__ import annotations

from pathlib import Path

from s3prl_ekd.corpora.folders import Prepared, fresh_folder
from s3prl_ekd.corpora.layout_speaker import unheard_notes, write_sid_config
from s3prl_ekd.corpora.probe import in_parallel, ready_lengths
from s3prl_ekd.corpora.split_file import PARTS, read_split_file, speaker_of, wav_folders
from s3prl_ekd.errors import EkdError


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
    samples = ready_lengths(
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
        samples=sum(samples),
        speakers=len({speaker_of(path) for _, path in kept}),
        notes=tuple(notes),
    )
