"""A tiny pretraining run: made audio, stand-in teachers, both configuration files; in process or by the real command.

The fixture ``lab`` of conftest.py is the folder that :func:`write_lab` makes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import torch
import yaml
from console import BIN, environment, forked
from export_student import SMALL

from s3prl_ekd.teachers.stand_ins import write_stand_ins
from s3prl_ekd.torch_file import read_torch_file

if TYPE_CHECKING:
    from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert

STUDENT = {"layers": 2, **SMALL}


def write_clips(folder: Path, shortest: int, count: int = 12) -> None:
    """``0.flac``, ``1.flac``, ...: tones that come and go, each 300 samples longer than the last; and ``train.csv``."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        time = np.arange(shortest + 300 * i) / 16_000
        tone = np.sin(2 * np.pi * (120 + 30 * i) * time) * np.sin(2 * np.pi * 3 * time) ** 2
        soundfile.write(folder / f"{i}.flac", 0.3 * tone + 0.01 * rng.standard_normal(len(tone)), 16_000)
        rows.append(f"{i},{i}.flac,{len(tone)},")
    (folder / "train.csv").write_text(",file_path,length,label\n" + "\n".join(rows) + "\n")


def hold_out(lab: Path, clips: int = 6) -> Path:
    """Add other clips of 0.56 s and more to a lab, and their table, ``valid.csv``."""
    folder = lab / "held_out"
    folder.mkdir()
    write_clips(folder, shortest=9_000, count=clips)
    table = (folder / "train.csv").read_text()
    (lab / "valid.csv").write_text(re.sub(r"(\d+\.flac)", r"held_out/\1", table))
    return lab


def write_lab(folder: Path) -> Path:
    """Clips of 0.50 to 0.71 s and their length CSV, three teachers, ``model.yaml`` and ``runner.yaml``."""
    write_clips(folder, shortest=8_000)
    teachers = write_stand_ins(folder / "teachers")
    model = {
        "base": "config_model.yaml",
        "ekd": {
            "teachers": [{"name": n, "source": str(p), "layers": [2, 4, 6]} for n, p in teachers.items()],
            "initialise_from": "hubert",
        },
        "student": STUDENT,
    }
    runner = {
        "runner": {"n_epochs": -1, "total_steps": 12, "gradient_clipping": 5.0, "gradient_accumulate_steps": 1,
                   "log_step": 2, "save_step": 4, "max_keep": 5, "fp16": False},
        "optimizer": {"name": "AdamW_with_schedule", "lr": 1.0e-3, "warmup_proportion": 0.07,
                      "betas": [0.9, 0.98], "eps": 1.0e-6},
        "pretrain_expert": {"datarc": {"num_workers": 1, "train_batch_size": 4, "libri_root": str(folder),
                                       "file_path": str(folder), "sets": ["train"]}},
    }  # fmt: skip
    (folder / "model.yaml").write_text(yaml.safe_dump(model))
    (folder / "runner.yaml").write_text(yaml.safe_dump(runner))
    return folder


def make_expert(
    lab: Path,
    batch_size: int = 4,
    held_out: bool = False,
    student: Mapping[str, object] | None = None,
    **changes: object,
) -> UpstreamPretrainExpert:
    """The pretrain task in this process, with changes to the section ``student`` and ``changes`` to ``ekd``; seed 0.

    ``held_out``: validate on what :func:`hold_out` has written.
    """
    from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert

    datarc = yaml.safe_load((lab / "runner.yaml").read_text())["pretrain_expert"]["datarc"]
    datarc |= {"num_workers": 0, "train_batch_size": batch_size, "valid_sets": ["valid"] if held_out else []}
    model = yaml.safe_load((lab / "model.yaml").read_text())
    model["ekd"] |= changes
    model["student"] |= student or {}
    (lab / "changed.yaml").write_text(yaml.safe_dump(model))
    torch.manual_seed(0)
    return UpstreamPretrainExpert(datarc, str(lab / "changed.yaml"), device="cpu")


class Logger:
    """Enough of tensorboardX's SummaryWriter."""

    def __init__(self, folder: Path) -> None:
        self.logdir, self.tags = str(folder), set()

    def add_scalar(self, tag: str, value: float, global_step: int) -> None:
        assert np.isfinite(value)
        self.tags.add(tag)


def new_run(lab: Path, name: str) -> list[str]:
    """Arguments of run_pretrain.py for a run of the lab's configuration in the folder ``name``."""
    return ["-u", "ekd", "-n", name, "-p", name, "-g", str(lab / "model.yaml"), "-c", str(lab / "runner.yaml")]


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run run_pretrain.py in ``cwd`` to its end."""
    return forked("run_pretrain.py", *arguments, "--device", "cpu", cwd=cwd)


def start(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start run_pretrain.py in ``cwd``; what it says comes out of ``stdout``."""
    words = [sys.executable, str(BIN / "run_pretrain.py"), *arguments, "--device", "cpu"]
    return subprocess.Popen(
        words, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The student's encoder in the newest checkpoint of a run."""
    newest = max(folder.glob("states-*.ckpt"), key=lambda file: file.stat().st_mtime)
    return read_torch_file(newest)["EKD"]["encoder"]
