"""Tiny made corpora in the layouts that s3prl's four tasks read; for the bridge's tests only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml
from dotted import changed

from s3prl_ekd.shipped import shipped
from s3prl_ekd.task_names import DOWNSTREAM

RATE = 16_000
LEXICON = {"ONE": "W AH1 N", "TWO": "T UW1", "THREE": "TH R IY1", "FOUR": "F AO1 R"}


def task_config(name: str) -> dict[str, Any]:
    """The shipped configuration of a task, by our name of it."""
    return yaml.safe_load(shipped(f"downstream_configs/{name}.yaml").read_text())


def tone(path: Path, seed: int, seconds: float = 0.6) -> int:
    """Write a noisy tone, and return its length in samples."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    wave = 0.2 * np.sin(2 * np.pi * (200 + 40 * seed) * time) + 0.02 * rng.standard_normal(len(time))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave.astype(np.float32), RATE)
    return len(time)


def librispeech(root: Path) -> dict[str, Path]:
    """LibriSpeech tree of three splits with transcripts, length CSVs and a lexicon."""
    words = list(LEXICON)
    tables = root / "len_for_bucket"
    tables.mkdir(parents=True)
    for number, (split, count) in enumerate({"train-clean-100": 6, "dev-clean": 3, "test-clean": 3}.items()):
        folder = root / "LibriSpeech" / split / str(10 + number) / "1"
        rows, lines = [], []
        for index in range(count):
            name = f"{10 + number}-1-{index:04d}"
            length = tone(folder / f"{name}.flac", index, 0.6 + 0.1 * index)
            rows.append((f"{split}/{10 + number}/1/{name}.flac", length))
            lines.append(f"{name} {words[index % 4]} {words[(index + 1) % 4]}\n")
        (folder / f"{10 + number}-1.trans.txt").write_text("".join(lines))
        rows.sort(key=lambda row: -row[1])
        body = "".join(f"{index},{path},{length},\n" for index, (path, length) in enumerate(rows))
        (tables / f"{split}.csv").write_text(",file_path,length,label\n" + body)
    lexicon = root / "lexicon.txt"
    lexicon.write_text("".join(f"{word}\t{phones}\n" for word, phones in LEXICON.items()) + "ONE\tW AO1 N\n")
    return {"root": root / "LibriSpeech", "tables": tables, "lexicon": lexicon}


def voxceleb(root: Path) -> dict[str, Path]:
    """VoxCeleb1 tree of two speakers with a split file."""
    lines = []
    for speaker in (10001, 10002):
        for index, part in enumerate((1, 1, 2, 3)):
            name = f"id{speaker}/video{index}/00001.wav"
            tone(root / "VoxCeleb1" / "dev" / "wav" / name, speaker % 10 + index)
            lines.append(f"{part} {name}\n")
    (root / "split.txt").write_text("".join(lines))
    return {"root": root / "VoxCeleb1", "table": root / "split.txt"}


def iemocap(root: Path) -> dict[str, Path]:
    """IEMOCAP tree and the metadata of fold1."""
    labels = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
    entries: dict[str, list] = {"train": [], "test": []}
    for index in range(14):
        name = f"Session1/sentences/wav/Ses01F/Ses01F_{index:03d}.wav"
        tone(root / "IEMOCAP" / name, index)
        part = "train" if index < 10 else "test"
        entries[part].append({"path": name, "label": list(labels)[index % 4], "speaker": "Ses01F"})
    folder = root / "meta_data" / "Session1"
    folder.mkdir(parents=True)
    for part, rows in entries.items():
        (folder / f"{part}_meta_data.json").write_text(json.dumps({"labels": labels, "meta_data": rows}))
    return {"root": root / "IEMOCAP", "tables": root / "meta_data"}


def all_tasks(root: Path) -> dict[str, dict[str, Any]]:
    """Our configs of :data:`DOWNSTREAM` with every place filled in, by our name of the task."""
    import superb_corpora  # here: it makes its clips by the functions above

    libri, vox, iem = librispeech(root / "libri"), voxceleb(root / "vox"), iemocap(root / "iem")
    found = {name: task_config(name) for name in DOWNSTREAM}
    experts = {name: config["downstream_expert"] for name, config in found.items()}
    experts["pr"]["corpus"] |= {"path": str(libri["root"]), "lexicon": [str(libri["lexicon"])]}
    experts["asr"]["datarc"] |= {"libri_root": str(libri["root"]), "bucket_file": str(libri["tables"])}
    experts["sid"]["datarc"] |= {"file_path": str(vox["root"]), "meta_data": str(vox["table"])}
    experts["er"]["datarc"] |= {"root": str(iem["root"]), "meta_data": str(iem["tables"])}
    for name in ("ks", "ic"):
        items = [item.removeprefix("config.") for item in superb_corpora.CORPORA[DOWNSTREAM[name]](root / name)]
        found[name] = changed(
            found[name], {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in items)}
        )
        experts[name] = found[name]["downstream_expert"]
    for expert in experts.values():
        expert["corpus" if "corpus" in expert else "datarc"]["num_workers"] = 0
    return found


def overrides(task: str, data: dict[str, Path], steps: int = 2) -> str:
    """The -o of a two-step run of a downstream task (s3prl's name) on the tiny corpus."""
    expert = "config.downstream_expert"
    runner = {"total_steps": steps, "eval_step": steps, "save_step": 1, "log_step": 1, "gradient_accumulate_steps": 1}
    items = {f"config.runner.{key}": value for key, value in runner.items()}
    if task == "ctc":
        items[f"{expert}.corpus.path"] = data["root"]
        items[f"{expert}.corpus.lexicon"] = [str(data["lexicon"])]
        items[f"{expert}.corpus.num_workers"] = 0
        items[f"{expert}.corpus.batch_size"] = 2
    elif task == "voxceleb1":
        items |= {f"{expert}.datarc.file_path": data["root"], f"{expert}.datarc.meta_data": data["table"]}
        items[f"{expert}.datarc.num_workers"] = 0
    elif task == "emotion":
        items |= {f"{expert}.datarc.root": data["root"], f"{expert}.datarc.meta_data": data["tables"]}
        items[f"{expert}.datarc.num_workers"] = 1
    else:
        items |= {f"{expert}.datarc.libri_root": data["root"], f"{expert}.datarc.bucket_file": data["tables"]}
        items |= {f"{expert}.datarc.num_workers": 0, f"{expert}.datarc.batch_size": 4}
        items |= {f"{expert}.modelrc.project_dim": 8, f"{expert}.modelrc.RNNs.dim": [8]}
        for key, value in {"dropout": [0], "layer_norm": [False], "proj": [False], "sample_rate": [1]}.items():
            items[f"{expert}.modelrc.RNNs.{key}"] = value
    return ",,".join(f"{key}={value}" for key, value in items.items())


def tera(root: Path, data: dict[str, Path], steps: int = 3) -> tuple[Path, Path]:
    """A one-layer TERA's runner and model config, which s3prl's wheel does not ship."""
    audio = {"feat_type": "mel", "log": True, "delta": 0, "cmvn": True}
    model = {
        "transformer": {
            "input_dim": -1,
            "hidden_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-12,
            "share_layer": False,
            "pre_layer_norm": False,
        },
        "task": {
            "loss": "L1",
            "sequence_length": 50,
            "position_encoding_size": 24,
            "mask_proportion": 0.15,
            "mask_consecutive_min": 7,
            "mask_consecutive_max": 7,
            "mask_allow_overlap": True,
            "mask_bucket_ratio": 1.5,
            "mask_frequency": 0.2,
            "noise_proportion": 0.0,
        },
        "audio": {
            "target_level": -25,
            "win_ms": 25,
            "hop_ms": 10,
            "n_freq": 201,
            "n_mels": 80,
            "n_mfcc": 13,
            "input": {"channel": 0, **audio},
            "target": {"channel": 1, **audio},
        },
    }
    runner = {
        "runner": {
            "n_epochs": -1,
            "total_steps": steps,
            "gradient_clipping": 5.0,
            "gradient_accumulate_steps": 1,
            "log_step": 1,
            "save_step": 1,
            "max_keep": 1,
            "fp16": False,
        },
        "optimizer": {"name": "AdamW_with_schedule", "lr": 2e-4, "warmup_proportion": 0.07},
        "pretrain_expert": {
            "datarc": {
                "num_workers": 0,
                "train_batch_size": 2,
                "max_timestep": 0,
                "libri_root": str(data["root"]),
                "file_path": str(data["tables"]),
                "sets": ["train-clean-100"],
            }
        },
    }
    paths = root / "runner.yaml", root / "model.yaml"
    for path, content in zip(paths, (runner, model), strict=True):
        path.write_text(yaml.safe_dump(content))
    return paths


def sid_folder(tmp_path: Path) -> Path:
    """A ``--data`` folder of ``s3prl-ekd evaluate`` with SID alone, for s3prl's own runner."""
    corpus, folder = voxceleb(tmp_path / "vox"), tmp_path / "data"
    folder.mkdir()
    config = task_config("sid")
    config["downstream_expert"]["datarc"] |= {"file_path": str(corpus["root"]), "meta_data": str(corpus["table"])}
    (folder / "sid.yaml").write_text(yaml.safe_dump(config))
    return folder
