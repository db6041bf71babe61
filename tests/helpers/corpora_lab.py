"""LibriSpeech, VoxCeleb1 and IEMOCAP in made miniatures of their own layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from s3prl_ekd.cli import main

EMOTIONS = ["neu", "hap", "exc", "ang", "sad", "fru", "xxx"]


def audio(file: Path, samples: int = 4000) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, 0.1 * np.random.default_rng(samples).standard_normal(samples), 16000)
    return file


def prepare(*arguments: object) -> int:
    """Exit status of ``s3prl-ekd prepare``."""
    return main(["prepare", *map(str, arguments)])


def write_librispeech(root: Path) -> Path:
    """A speaker with three utterances in each of three splits."""
    for number, split in enumerate(["train-clean-100", "dev-clean", "test-clean"], start=1):
        folder = root / split / str(number) / "7"
        for index in range(3):
            audio(folder / f"{number}-7-{index:04d}.flac", 4000 + 100 * index)
        lines = [f"{number}-7-{index:04d} HELLO WORLD\n" for index in range(3)]
        (folder / f"{number}-7.trans.txt").write_text("".join(lines))
    return root


def write_lexicon(file: Path) -> Path:
    """The words of :func:`write_librispeech`."""
    file.write_text("HELLO\tHH AH0 L OW1\nWORLD\tW ER1 L D\n")
    return file


def write_voxceleb1(root: Path, split: Path) -> tuple[Path, Path]:
    """Two speakers with a clip for train, dev and test each, in two parts; and the split file: both paths."""
    entries = [(part, f"id1000{speaker}/video/{part:05d}.wav") for speaker in (1, 2) for part in (1, 2, 3)]
    for index, (_, path) in enumerate(entries):
        audio(root / ("dev" if index % 2 else "test") / "wav" / path)
    split.write_text("".join(f"{part} {path}\n" for part, path in entries))
    return root, split


def write_iemocap(root: Path) -> Path:
    """Five sessions of one dialog with an utterance for each label, and one that is labelled and has no wav."""
    for session in range(1, 6):
        dialog = f"Ses0{session}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n", "\n"]
        for index, emotion in enumerate(EMOTIONS):
            name = f"{dialog}_F{index:03d}"
            audio(root / f"Session{session}" / "sentences" / "wav" / dialog / f"{name}.wav")
            lines += [f"[6.2901 - 8.2357]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]\n", "C-E2:\tNeutral;\t()\n", "\n"]
        lines.append(f"[6.2901 - 8.2357]\t{dialog}_F999\tneu\t[2.5, 2.5, 2.5]\n")  # no such wav
        labels = root / f"Session{session}" / "dialog" / "EmoEvaluation"
        (labels / "Categorical").mkdir(parents=True)
        (labels / f"{dialog}.txt").write_text("".join(lines))
        (labels / f"._{dialog}.txt").write_bytes(b"\x00\x05\x16\x07")
    return root
