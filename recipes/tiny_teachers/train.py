"""One stage of a teacher's training: from units to an encoder, resumable at every saved step."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from recipes.tiny_teachers.crops import FramePlan, UnitBatch, UnitCrops
from recipes.tiny_teachers.objective import MaskedPrediction
from recipes.tiny_teachers.settings import StageSettings
from recipes.tiny_teachers.units import Units
from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.checkpoints import read_torch_file
from s3prl_ekd.data.distort import Distorter
from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.random_state import random_state, set_random_state

logger = logging.getLogger(__name__)

GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Machine:
    """How a stage is computed; none of it is part of a teacher's settings."""

    device: torch.device
    precision: torch.dtype
    """bf16: autocast with fp32 weights; fp32."""
    workers: int
    log_every: int = 50
    save_every: int = 500


def train_stage(
    encoder: Encoder, table: LengthTable, units: Units, stage: StageSettings, seed: int, folder: Path, machine: Machine
) -> dict[str, Any]:
    """Train an encoder in place; goes on from ``folder``'s checkpoint where there is one.

    Args:
        encoder: random, or where the stage starts from.
        table: the corpus.
        units: of its clean utterances.
        stage: steps, rates, masks, distortion.
        seed: of masks, crops and distortion.
        folder: gets ``metrics.jsonl`` and ``state.pt``.
        machine: device, precision, workers.

    Returns:
        What the training was, as plain numbers: for the teacher's record.

    Raises:
        EkdError: a checkpoint of other settings; audio or noise that can't be read.
    """
    torch.manual_seed(seed)
    model = MaskedPrediction(encoder, units.clusters, stage.mask, stage.heard_weight).to(machine.device).train()
    optimizer = torch.optim.AdamW(_groups(model), stage.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _slope(step, stage.steps, stage.warmup))
    plan = FramePlan(table.samples, 1, stage.batch_seconds, int(stage.crop_seconds * SAMPLE_RATE), seed)
    log = _Log(folder, stage, machine)
    step, seconds, heard = _resume(folder, stage, model, optimizer, schedule, plan)
    if step:
        logger.info("[%s] goes on after step %d of %d", stage.name, step, stage.steps)
    distorter = None if stage.distortion is None else Distorter(stage.distortion, f"stage {stage.name}")
    loader: DataLoader[UnitBatch] = DataLoader(
        UnitCrops(table, plan, units, encoder.shape, distorter, stage.mixing, seed),
        batch_size=None,
        sampler=plan,
        num_workers=machine.workers,
        persistent_workers=machine.workers > 0,
        generator=torch.Generator(),  # or each epoch would draw a seed from the generator that masks come from
    )
    started = time.monotonic()
    while step < stage.steps:
        for batch in loader:
            with torch.autocast(machine.device.type, machine.precision, enabled=machine.precision is not torch.float32):
                prediction = model(
                    batch.wave.to(machine.device, non_blocking=True), batch.units.to(machine.device, non_blocking=True)
                )
            prediction.loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            heard += batch.wave.numel() / SAMPLE_RATE
            log.add(prediction, norm)
            if step % machine.log_every == 0 or step == stage.steps:
                log.write(step, heard, schedule.get_last_lr()[0])
            if step % machine.save_every == 0 or step == stage.steps:
                spent = seconds + time.monotonic() - started
                _save(folder, stage, step, spent, heard, model, optimizer, schedule, batch)
            if step == stage.steps:
                break
    encoder.cpu().eval()
    return {
        "stage": stage.model_dump(mode="json", exclude_none=True),
        "hours_heard": round(heard / 3600, 2),
        "hours_of_corpus": round(table.hours, 2),
        "unit_perplexity": round(units.perplexity, 1),
        "minutes": round((seconds + time.monotonic() - started) / 60, 1),
        "last": log.last(),
    }


class _Log:
    """Means since the last line, one JSON line each; the device is waited for only when a line is written."""

    def __init__(self, folder: Path, stage: StageSettings, machine: Machine) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.stage, self.machine = folder / "metrics.jsonl", stage, machine
        self.sums: torch.Tensor | None = None
        self.count, self.since, self.heard = 0, time.monotonic(), None

    def add(self, prediction: Any, norm: torch.Tensor) -> None:
        values = torch.stack([prediction.masked_loss, prediction.masked, prediction.heard, norm.detach()])
        self.sums = values if self.sums is None else self.sums + values
        self.count += 1

    def write(self, step: int, heard: float, lr: float) -> None:
        assert self.sums is not None
        loss, masked, unmasked, norm = (self.sums / self.count).tolist()
        if loss != loss:
            raise EkdError(f"stage {self.stage.name}: the loss is NaN at step {step}; a smaller lr may help")
        now = time.monotonic()
        rate = None if self.heard is None else (heard - self.heard) / (now - self.since)
        line = {"step": step, "loss": loss, "masked_accuracy": masked, "heard_accuracy": unmasked}
        line |= {"gradient_norm": norm, "lr": lr, "audio_seconds": heard, "audio_per_second": rate}
        with self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        speed = "" if rate is None else f", {rate:.0f} s of audio a second"
        logger.info(
            "[%s] step %d/%d: loss %.3f, accuracy masked %.1f %%, heard %.1f %%%s",
            self.stage.name, step, self.stage.steps, loss, 100 * masked, 100 * unmasked, speed,
        )  # fmt: skip
        self.sums, self.count, self.since, self.heard = None, 0, now, heard

    def last(self) -> dict[str, float]:
        """The last line's losses, rounded."""
        line = json.loads(self.file.read_text().splitlines()[-1])
        return {key: round(line[key], 4) for key in ("loss", "masked_accuracy", "heard_accuracy")}


def _groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Matrices decay, vectors (biases, norms) do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]


def _slope(step: int, steps: int, warmup: float) -> float:
    """Factor on the rate: up to 1 over the warm-up, down to 0 at the end."""
    rise = max(1, round(warmup * steps))
    return (step + 1) / rise if step < rise else (steps - step) / max(1, steps - rise)


def _save(folder, stage, step, seconds, heard, model, optimizer, schedule, batch) -> None:
    state = {
        "stage": json.dumps(stage.model_dump(mode="json"), sort_keys=True),
        "step": step,
        "seconds": seconds,
        "heard": heard,
        "epoch": batch.epoch,
        "index": batch.index,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": random_state(),
    }
    partial = folder / "state.pt.part"
    torch.save(state, partial)
    partial.replace(folder / "state.pt")


def _resume(folder, stage, model, optimizer, schedule, plan) -> tuple[int, float, float]:
    """(step, seconds, seconds of audio) of the checkpoint; zeros where there is none."""
    file = folder / "state.pt"
    if not file.is_file():
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        return 0, 0.0, 0.0
    state = read_torch_file(file)
    if state["stage"] != json.dumps(stage.model_dump(mode="json"), sort_keys=True):
        raise EkdError(f"{file}: was made with other settings of stage {stage.name}; name another --out")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    plan.resume_after(state["epoch"], state["index"])
    set_random_state(state["random"])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= state["step"]]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in kept))
    return state["step"], state["seconds"], state["heard"]
