"""Tiny made corpora in the layouts of SUPERB's other tasks (KS, IC, ASV, SD, QbE, SE, SS), and -o items naming them."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path

import soundfile
import yaml
from bridge_corpora import task_config, tone
from dotted import changed

from s3prl_ekd.bridge import taskdata_superb
from s3prl_ekd.bridge.config_section import Section
from s3prl_ekd.task_names import WITH_CONFIG

EXPERT = "config.downstream_expert"


def keywords(root: Path) -> list[str]:
    """Speech Commands: the ten words and one more; what is in front of ``_nohash_`` decides between train and dev."""
    words = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "bed"]
    for number, word in enumerate(words):
        for clip in range(8):
            tone(root / "train" / word / f"{clip}{word}_nohash_0.wav", number, 1.0)
        if word != "bed":
            tone(root / "test" / word / "a.wav", number, 1.0)
    tone(root / "train" / "_background_noise_" / "noise.wav", 20, 2.0)
    for name in ("_unknown_", "_silence_"):
        tone(root / "test" / name / "a.wav", 21, 1.0)
    data = f"{EXPERT}.datarc"
    return [
        f"{data}.speech_commands_root={root / 'train'}",
        f"{data}.speech_commands_test_root={root / 'test'}",
        f"{data}.batch_size=8",
        f"{data}.num_workers=0",
    ]


def intents(root: Path) -> list[str]:
    """Fluent Speech Commands."""
    for split, count in (("train", 8), ("valid", 3), ("test", 3)):
        rows = [["", "path", "speakerId", "transcription", "action", "object", "location"]]
        for number in range(count):
            path = f"wavs/speakers/a/{split}{number}.wav"
            tone(root / path, number)
            intent = [["activate", "increase"][number % 2], ["lights", "heat"][number % 2], "none"]
            rows.append([str(number), path, "a", "turn on the lights", *intent])
        table = root / "data" / f"{split}_data.csv"
        table.parent.mkdir(exist_ok=True)
        with table.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    data = f"{EXPERT}.datarc"
    return [f"{data}.file_path={root}", f"{data}.train_batch_size=4", f"{data}.num_workers=0"]


def verification(root: Path) -> list[str]:
    """VoxCeleb1 with three speakers to train on, two to test, and four pairs of theirs."""
    for number in range(3):
        for video in range(2):
            tone(root / "dev" / "wav" / f"id1000{number}" / f"video{video}" / "00001.wav", number + video, 2.5)
    clips = [[f"id1100{speaker}/video{video}/00001.wav" for video in range(2)] for speaker in range(2)]
    for number, clip in enumerate([*clips[0], *clips[1]]):
        tone(root / "test" / "wav" / clip, number, 2.5)
    pairs = [f"1 {one} {other}" for one, other in clips]
    pairs += [f"0 {one} {other}" for one, other in zip(*clips, strict=True)]
    (root / "pairs.txt").write_text("\n".join(pairs) + "\n")
    data = f"{EXPERT}.datarc"
    return [
        f"{data}.file_path={root}",
        f"{data}.test_meta_data={root / 'pairs.txt'}",
        f"{data}.train_batch_size=2",
        f"{data}.num_workers=0",
    ]


def diarization(root: Path) -> list[str]:
    """Kaldi folders of two-speaker mixtures."""
    loaders = f"{EXPERT}.loaderrc"
    found = [f"{EXPERT}.datarc.chunk_size=100", f"{loaders}.train_batchsize=2", f"{loaders}.num_workers=0"]
    for split in ("train", "dev", "test"):
        folder = root / split
        lines: dict[str, list[str]] = {name: [] for name in ("wav.scp", "segments", "utt2spk", "spk2utt", "reco2dur")}
        for number in range(2):
            tone(folder / "wav" / f"mix{number}.wav", number, 5.0)
            lines["wav.scp"].append(f"mix{number} {folder / 'wav' / f'mix{number}.wav'}")
            lines["reco2dur"].append(f"mix{number} 5.0")
            for speaker, (start, end) in enumerate([(0.2, 3.0), (2.0, 4.8)]):
                lines["segments"].append(f"s{speaker}_mix{number} mix{number} {start} {end}")
                lines["utt2spk"].append(f"s{speaker}_mix{number} s{speaker}")
        lines["spk2utt"] = [f"s{speaker} s{speaker}_mix0 s{speaker}_mix1" for speaker in range(2)]
        for name, text in lines.items():
            (folder / name).write_text("\n".join(text) + "\n")
        found.append(f"{loaders}.{split}_dir={folder}")
    return found


def queries(root: Path) -> list[str]:
    """QUESST 2014: four utterances, two queries each for dev and eval, one of them in another language."""
    (root / "scoring").mkdir(parents=True)
    for name, folder, count in (("utterances", "Audio", 4), ("dev", "dev_queries", 2), ("eval", "eval_queries", 2)):
        lines = ["quesst14Database/Audio/absent.wav albanian"]
        for number in range(count):
            clip = f"{folder}/quesst14_{name}_{number:05d}.wav"
            tone(root / clip, number, 2.0 if folder == "Audio" else 0.6)
            lines.append(f"quesst14Database/{clip} nnenglish")
        (root / "scoring" / f"language_key_{name}.lst").write_text("\n".join(lines) + "\n")
    data = f"{EXPERT}.datarc"
    return [f"{data}.dataset_root={root}", f"{data}.num_workers=0", f"{EXPERT}.max_workers=1"]


def enhancement(root: Path) -> list[str]:
    """Voicebank-DEMAND as s3prl's script lays it out: a Kaldi table a condition."""
    return _mixtures(root, "noisy", ["clean"])


def separation(root: Path) -> list[str]:
    """Libri2Mix, likewise."""
    return _mixtures(root, "mix_clean", ["s1", "s2"])


def _mixtures(root: Path, mixture: str, sources: list[str]) -> list[str]:
    """Each source in its own table, and their sum, or one of them beside another sound, in the mixture's."""
    loaders, model = f"{EXPERT}.loaderrc", f"{EXPERT}.modelrc"
    found = [f"{loaders}.train_batchsize=2", f"{loaders}.num_workers=0", f"{model}.hidden_size=16"]
    for split in ("train", "dev", "test"):
        tables: dict[str, list[str]] = {name: [] for name in (mixture, *sources)}
        for number in range(2):
            parts = []
            for place, name in enumerate([*sources, "rest"]):
                clip = root / split / name / f"{number}.wav"
                tone(clip, number + 3 * place, 1.0 + 0.3 * number)
                parts.append(soundfile.read(clip, dtype="float32")[0])
                if name in tables:
                    tables[name].append(f"u{number} {clip}")
            heard = root / split / mixture / f"{number}.wav"
            heard.parent.mkdir(exist_ok=True)
            soundfile.write(heard, 0.5 * sum(parts[:2]), 16_000)
            tables[mixture].append(f"u{number} {heard}")
        for name, lines in tables.items():
            (root / split / name / "wav.scp").write_text("\n".join(lines) + "\n")
        found.append(f"{loaders}.{split}_dir={root / split}")
    return found


CORPORA = {
    "speech_commands": keywords,
    "fluent_commands": intents,
    "sv_voxceleb1": verification,
    "diarization": diarization,
    "quesst14_dtw": queries,
    "enhancement_stft": enhancement,
    "separation_stft": separation,
}
"""s3prl's -d -> what writes a corpus into a folder and returns the -o items that name it."""


def check_data(
    task: str,
    items: list[str],
    used: tuple[str, ...],
    tmp_path: Path,
    local_rank: int | None = None,
    device: str = "cuda",
) -> None:
    """The check of a task's data, on its config with ``items`` filled in."""
    name = next(short for short, downstream in WITH_CONFIG.items() if downstream == task)
    pairs = [item.removeprefix("config.downstream_expert.").partition("=") for item in items]
    given = {key: yaml.safe_load(value) for key, _, value in pairs}
    config = task_config(name)
    values = changed(config["downstream_expert"], given)
    args = Namespace(downstream=task, device=device, expdir=str(tmp_path), local_rank=local_rank)
    taskdata_superb.complete(args, Section("x.yaml", values, "downstream_expert", tmp_path), used)
