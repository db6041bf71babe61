"""Speech Commands v0.01 (KS) in its own layout: the configuration points at its two folders."""

from __future__ import annotations

from pathlib import Path

from s3prl_ekd.corpora.folders import Prepared, fresh_folder
from s3prl_ekd.corpora.keyword_folders import NOISE, speaker_of, test_clips, training_clips
from s3prl_ekd.corpora.layout_keyword import write_ks_config
from s3prl_ekd.corpora.probe import ready_lengths
from s3prl_ekd.errors import EkdError

NAMES = ("speech_commands_v0.01", "speech_commands_test_set_v0.01")
"""How SUPERB's recipe calls the folders of the two archives."""
TEST_UTTERANCES = 3_081  # in the test set's archive


def prepare_speech_commands(root: Path, out: Path, test_set: Path | None) -> Prepared:
    """KS on Speech Commands.

    Args:
        root: the unpacked training archive, or the folder that holds both under the names of SUPERB's recipe.
        out: the data folder.
        test_set: the unpacked test archive, where it is not beside the training one under its name.

    Raises:
        EkdError: a folder is not there or holds something else, or a wav cannot be read as it is.
    """
    root, test_set = _folders(root.absolute(), test_set)
    clips, test = training_clips(root), test_clips(test_set)
    for split in ("train", "dev"):
        if not clips[split]:
            raise EkdError(f"{root}: no clip of {split} by the hash of its name; expected Speech Commands")
    samples = ready_lengths([*clips["train"], *clips["dev"], *clips["noise"], *test])
    notes = [f"{len(clips['noise'])} noises below {NOISE}: silence, in train and in dev"]
    if len(test) != TEST_UTTERANCES:
        notes.append(f"{len(test)} utterances to test on; SUPERB's test set has {TEST_UTTERANCES}")
    with fresh_folder(out / "ks", root):
        pass  # nothing beside the configuration: what an earlier manifest left there goes
    write_ks_config(out / "ks.yaml", root, test_set)
    return Prepared(
        task="ks",
        config=out / "ks.yaml",
        splits=("train", "dev", "test"),
        utterances=(len(clips["train"]), len(clips["dev"]), len(test)),
        samples=sum(samples),
        speakers=len({speaker_of(file.name) for file in [*clips["train"], *clips["dev"], *test]}),
        notes=tuple(notes),
    )


def _folders(root: Path, test_set: Path | None) -> tuple[Path, Path]:
    """The training folder and the test set's."""
    if not (root / NOISE).is_dir() and (root / NAMES[0]).is_dir():
        root = root / NAMES[0]
    test_set = (test_set or root.parent / NAMES[1]).absolute()
    if not test_set.is_dir():
        raise EkdError(f"{test_set}: no such folder; --test-set names the unpacked {NAMES[1]}")
    if not (root / NOISE).is_dir():
        raise EkdError(f"{root}: no {NOISE} in it; expected {NAMES[0]}, or the folder that holds it")
    return root, test_set
