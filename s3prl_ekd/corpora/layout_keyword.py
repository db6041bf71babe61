"""KS: a manifest as Speech Commands' two folders, and s3prl's config.

s3prl tells train from dev by a hash of a file's name, so names are made that hash to the split of their row. The real
corpus is ``speech_commands.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.corpora.folders import (
    Prepared,
    clip_names,
    converted_note,
    filled_config,
    fresh_folder,
    place,
    safe_name,
    write_ids,
)
from s3prl_ekd.corpora.keyword_folders import CLASSES, NOISE, SILENCE, UNKNOWN, WORDS, split_of, too_short
from s3prl_ekd.corpora.manifest import SPLITS, Manifest
from s3prl_ekd.corpora.probe import Clip
from s3prl_ekd.errors import EkdError

SILENCES = (SILENCE, "silence", NOISE)  # what a manifest may call the class
TRAIN, TEST = "train", "test"
"""The two folders below ``DATA/ks``."""


def prepare_keyword(manifest: Manifest, clips: Sequence[Clip], out: Path) -> Prepared:
    """Lay out a manifest for KS under ``out``. Words other than s3prl's ten are the class unknown.

    Raises:
        EkdError: a silence of train or dev that is shorter than a second, or a folder that is not ours.
    """
    names = clip_names(clips)
    taken: set[Path] = set()
    files = [_file(manifest, clip, name, taken) for clip, name in zip(clips, names, strict=True)]
    with fresh_folder(out / "ks", manifest.file) as folder:
        (folder / TRAIN).mkdir()
        converted = place(clips, [folder / file for file in files], only="WAV")
        write_ids(folder / "ids.tsv", [f"{file.parent.name}-{file.name}.wav" for file in files], clips)
    home = (out / "ks").absolute()
    write_ks_config(out / "ks.yaml", home / TRAIN, home / TEST)
    parts = {split: [clip for clip in clips if clip.row.split == split] for split in SPLITS}
    classes = {split: {keyword_class(clip.row.keyword) for clip in part} for split, part in parts.items()}
    notes = [*converted_note(converted, "WAV"), *_class_notes(classes)]
    silences = sum(file.parent.name == NOISE for file in files)
    if silences:
        notes.append(f"{silences} silences of train and dev serve both, as s3prl has it")
    return Prepared.of("ks", out / "ks.yaml", parts, notes)


def keyword_class(keyword: str) -> str:
    """One of s3prl's twelve classes: that which s3prl gives to a folder of the keyword's name."""
    word = safe_name(keyword.lower())
    return SILENCE if word in SILENCES else word if word in WORDS else UNKNOWN


def _file(manifest: Manifest, clip: Clip, name: str, taken: set[Path]) -> Path:
    """Where a clip goes below ``DATA/ks``, without its suffix; put into ``taken``, which holds those of other clips."""
    row, chosen = clip.row, keyword_class(clip.row.keyword)
    if row.split == "test":
        return Path(TEST, chosen, name)
    if chosen == SILENCE:
        if clip.samples < SAMPLE_RATE:
            raise EkdError(f"{manifest.where(row)}: {too_short(clip.samples)}")
        return Path(TRAIN, NOISE, name)
    folder = chosen if chosen in WORDS else safe_name(row.keyword.lower())
    name = name.replace("_nohash", "")  # as Speech Commands' own have it: what follows the first one is not hashed
    tried = (f"{name}{'' if number == 0 else f'_{number}'}_nohash_0" for number in itertools.count())
    files = (Path(TRAIN, folder, one) for one in tried if split_of(one) == row.split)
    file = next(one for one in files if one not in taken)  # NAME_1 may be another clip's own name
    taken.add(file)
    return file


def write_ks_config(file: Path, train: Path, test: Path) -> None:
    with filled_config(file, "downstream_configs/ks.yaml") as config:
        data = config["downstream_expert"]["datarc"]
        data.update(speech_commands_root=str(train), speech_commands_test_root=str(test))


def _class_notes(classes: dict[str, set[str]]) -> list[str]:
    """What to say of classes of dev and test that training has no clip of."""
    notes = []
    heard = classes["train"] | ({SILENCE} & classes["dev"])
    for split in ("dev", "test"):
        unheard = [name for name in CLASSES if name in classes[split] - heard]
        if unheard:
            notes.append(f"no clip to train on of {split}'s {', '.join(unheard)}")
    return notes
