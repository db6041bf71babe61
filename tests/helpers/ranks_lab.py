"""A tiny pretraining run as s3prl's runner drives it, in one process or in each of several gloo ranks."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import yaml
from pretrain_lab import STUDENT, write_clips

from s3prl_ekd.teachers.stand_ins import write_stand_ins

RANKS = 2
STILL = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


@dataclass
class Case:
    """What one run does, apart from the lab's defaults."""

    ekd: Mapping[str, Any] = field(default_factory=dict)
    student: Mapping[str, Any] = field(default_factory=lambda: STILL)
    batch: int = 5
    steps: int = 6
    accumulate: int = 1
    resume_at: int = 0
    """After this step, everything is made anew from what a checkpoint holds."""
    unlike: bool = False
    """The machine of the second rank finds eigenvectors of the other sign."""
    lost: int | None = None
    """Of this batch of the first epoch none of the files is there."""


def write_lab(folder: Path) -> Path:
    """Audio, its length table, teachers; two of the listed files cannot be read."""
    write_clips(folder, shortest=6_000)
    for i in (0, 6):
        (folder / f"{i}.flac").write_bytes(b"no audio")
    write_stand_ins(folder / "teachers")
    return folder


def write_model(lab: Path, file: Path, case: Case) -> Path:
    sources = {path.stem: str(path) for path in (lab / "teachers").iterdir()}
    teachers = [{"name": name, "source": sources[name], "layers": [1, 2]} for name in ("hubert", "wavlm")]
    model = {
        "base": "config_model.yaml",
        "ekd": {"teachers": teachers, "initialise_from": "hubert", **case.ekd},
        "student": STUDENT | {"layers": 1} | dict(case.student),
    }
    file.write_text(yaml.safe_dump(model))
    return file


def make(lab: Path, model: Path, batch: int) -> Any:
    from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert

    torch.manual_seed(0)
    datarc = {"num_workers": 0, "train_batch_size": batch, "libri_root": str(lab), "file_path": str(lab),
              "sets": ["train"]}  # fmt: skip
    return UpstreamPretrainExpert(datarc, str(model), device="cpu").train()


def flip_eigenvectors() -> None:
    """From here on, in this process."""
    eigh = torch.linalg.eigh

    def flipped(matrix: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(eigenvectors=-eigh(matrix).eigenvectors)

    torch.linalg.eigh = flipped


def train(lab: Path, model: Path, case: Case) -> dict[str, Any]:
    """The runner's loop. Returns losses and log values of every step, weights, statistics, shares without a clip."""
    expert = make(lab, model, case.batch)
    if case.lost is not None:
        for item in list(copy(expert.batches))[case.lost].items:  # a copy, since a plan counts its epochs
            expert.loader.dataset.table.paths[item] = str(lab / "gone.flac")
    if case.unlike and dist.is_initialized() and dist.get_rank() == 1:
        flip_eigenvectors()
    optimizer = torch.optim.AdamW(expert.model.parameters(), lr=1e-3)
    losses, logs, step, stand_ins, loss_sum = [], [], 0, 0, 0.0
    loader, micro, records = expert.get_train_dataloader(), 0, {}
    while step < case.steps:
        for batch in loader:
            stand_ins += batch.is_placeholder
            records = {} if micro % case.accumulate == 0 else records  # the runner's, of a whole step
            loss, records = expert(batch, records=records, global_step=step + 1, log_step=1)
            (loss / case.accumulate).backward()
            loss_sum, micro = loss_sum + loss.item() / case.accumulate, micro + 1
            if micro % case.accumulate:
                continue
            torch.nn.utils.clip_grad_norm_(expert.model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss_sum)
            logs.append(records.get("ekd"))
            loss_sum, step = 0.0, step + 1
            if step == case.steps:
                break
            if step == case.resume_at:
                states = [expert.add_state_to_save({"Step": step - 1, "Optimizer": optimizer.state_dict()})]
                if dist.is_initialized():
                    dist.broadcast_object_list(states)  # ranks read rank 0's file
                torch.manual_seed(99)
                expert = make(lab, model, case.batch)
                expert.load_model(states[0])
                loader = expert.get_train_dataloader()
                optimizer = torch.optim.AdamW(expert.model.parameters(), lr=1e-3)
                optimizer.load_state_dict(states[0]["Optimizer"])
                break
    return {
        "losses": losses,
        "logs": logs,
        "weights": expert.model.state_dict(),
        "statistics": expert.objective.state_dict(),
        "stand_ins": stand_ins,
        "random": torch.get_rng_state(),
        "seed": torch.initial_seed(),
    }


def rank_main(rank: int, lab: Path, folder: Path, cases: Mapping[str, Case]) -> None:
    """One rank: every case in turn, results in FOLDER/CASE-RANK.pt."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    for name, case in cases.items():
        torch.save(train(lab, folder / f"{name}.yaml", case), folder / f"{name}-{rank}.pt")
    dist.destroy_process_group()
