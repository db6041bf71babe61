"""SID: a manifest as a VoxCeleb1-like tree, a split file and s3prl's config.

s3prl finds a clip by ``*/wav/<entry of the split file>`` and takes its label from the folder ``idXXXXX``. The real
VoxCeleb1, which has this form already, is ``voxceleb1.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from s3prl_ekd.corpora.folders import (
    Prepared,
    converted_note,
    filled_config,
    fresh_folder,
    place,
    placed_suffix,
    safe_name,
    unique_names,
    write_ids,
)
from s3prl_ekd.corpora.manifest import SPLITS, Manifest
from s3prl_ekd.corpora.probe import Clip
from s3prl_ekd.corpora.split_file import FIRST_ID, MAX_SPEAKERS, PARTS
from s3prl_ekd.errors import EkdError


def prepare_speaker(manifest: Manifest, clips: Sequence[Clip], out: Path) -> Prepared:
    """Lay out a manifest for SID under ``out``.

    Raises:
        EkdError: more than 1251 speakers, or a folder that is not ours.
    """
    speakers = sorted({clip.row.speaker for clip in clips})
    if len(speakers) > MAX_SPEAKERS:
        raise EkdError(f"{manifest.file}: {len(speakers)} speakers; s3prl's SID head has {MAX_SPEAKERS} outputs")
    numbers = {speaker: f"id{FIRST_ID + index}" for index, speaker in enumerate(speakers)}
    # <speaker>/<session>/<clip>: the folder that a clip came from stands for VoxCeleb's video.
    keys = unique_names(
        [f"{numbers[c.row.speaker]}/{safe_name(c.row.audio.parent.name)}/{safe_name(c.row.audio.stem)}" for c in clips],
        [clip.row.path for clip in clips],
    )
    entries = [f"{key}{placed_suffix(clip)}" for key, clip in zip(keys, clips, strict=True)]
    with fresh_folder(out / "sid", manifest.file) as folder:
        tree = folder / "VoxCeleb1" / "all" / "wav"
        converted = place(clips, [tree / key for key in keys])
        lines = [f"{PARTS[clip.row.split]} {entry}\n" for clip, entry in zip(clips, entries, strict=True)]
        (folder / "split.txt").write_text("".join(lines), encoding="utf-8")
        table = "".join(f"{number}\t{speaker}\n" for speaker, number in numbers.items())
        (folder / "speakers.tsv").write_text("id\tspeaker\n" + table, encoding="utf-8")
        write_ids(folder / "ids.tsv", entries, clips)
    home = (out / "sid").absolute()
    write_sid_config(out / "sid.yaml", home / "VoxCeleb1", home / "split.txt")
    parts = {split: [clip for clip in clips if clip.row.split == split] for split in SPLITS}
    notes = unheard_notes({split: {clip.row.speaker for clip in part} for split, part in parts.items()})
    return Prepared.of("sid", out / "sid.yaml", parts, [*converted_note(converted), *notes])


def write_sid_config(file: Path, root: Path, split_file: Path) -> None:
    with filled_config(file, "downstream_configs/sid.yaml") as config:
        config["downstream_expert"]["datarc"].update(file_path=str(root), meta_data=str(split_file))


def unheard_notes(speakers: dict[str, set[str]]) -> list[str]:
    """What to say of speakers of dev and test whom training has no clip of. ``speakers``: those of each split."""
    notes = []
    for split in ("dev", "test"):
        unheard = speakers[split] - speakers["train"]
        if unheard:
            notes.append(
                f"{len(unheard)} speakers of {split} are not in train and cannot be identified: {min(unheard)}"
            )
    return notes
