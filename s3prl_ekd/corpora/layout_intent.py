"""IC: a manifest as Fluent Speech Commands' tables and audio, and s3prl's config.

The real corpus, which has this form already, is ``fluent_commands.py``.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
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
from s3prl_ekd.corpora.intent_tables import SLOTS, TABLES, misread
from s3prl_ekd.corpora.manifest import SPLITS, Manifest
from s3prl_ekd.corpora.probe import Clip
from s3prl_ekd.errors import EkdError

HEADER = ["", "path", "speakerId", "transcription", *SLOTS]  # as Fluent Speech Commands has it


def prepare_intent(manifest: Manifest, clips: Sequence[Clip], out: Path) -> Prepared:
    """Lay out a manifest for IC under ``out``.

    Raises:
        EkdError: a value of a slot that training has not, or that s3prl would read as another, or a folder that is not
            ours.
    """
    parts = {split: [clip for clip in clips if clip.row.split == split] for split in SPLITS}
    for slot in SLOTS:
        _check_slot(manifest, parts, slot)
    names = clip_names(clips)
    with fresh_folder(out / "ic", manifest.file) as folder:
        converted = place(clips, [folder / "wavs" / name for name in names])
        (folder / "data").mkdir()
        lines: dict[str, list[list[str]]] = {split: [] for split in SPLITS}
        for clip, name in zip(clips, names, strict=True):
            row, part = clip.row, lines[clip.row.split]
            path = f"wavs/{name}{placed_suffix(clip)}"
            part.append([str(len(part)), path, row.speaker, row.text, *(getattr(row, slot) for slot in SLOTS)])
        for split, part in lines.items():
            with (folder / "data" / TABLES[split]).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([HEADER, *part])
        write_ids(folder / "ids.tsv", names, clips)
    write_ic_config(out / "ic.yaml", (out / "ic").absolute())
    intents = [tuple(getattr(clip.row, slot) for slot in SLOTS) for clip in clips]
    return Prepared.of("ic", out / "ic.yaml", parts, [intent_note(intents), *converted_note(converted)])


def _check_slot(manifest: Manifest, parts: dict[str, list[Clip]], slot: str) -> None:
    known = {getattr(clip.row, slot) for clip in parts["train"]}
    for part in parts.values():
        values = [getattr(clip.row, slot) for clip in part]
        for clip, value in zip(part, values, strict=True):
            if value not in known:
                raise EkdError(f"{manifest.where(clip.row)}: {slot} {value!r} is in no row of train")
        wrong = misread(values)
        if wrong is not None:
            place, found = wrong
            where = manifest.where(part[place].row)
            raise EkdError(f"{where}: {slot} {values[place]!r}, which s3prl reads as {found!r}; expected words")


def write_ic_config(file: Path, root: Path) -> None:
    with filled_config(file, "downstream_configs/ic.yaml") as config:
        config["downstream_expert"]["datarc"].update(file_path=str(root))


def intent_note(intents: Collection[tuple[str, ...]]) -> str:
    """How many different ones there are."""
    values = ", ".join(f"{len({intent[at] for intent in intents})} {slot}s" for at, slot in enumerate(SLOTS))
    return f"{len(set(intents))} intents of {values}"
