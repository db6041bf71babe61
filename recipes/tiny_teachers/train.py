"""One stage of a teacher's training: from units to an encoder, resumable at every saved step."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from recipes.tiny_teachers.crops import FramePlan, UnitBatch, UnitCrops
from recipes.tiny_teachers.objective import MaskedPrediction, Prediction
from recipes.tiny_teachers.settings import StageSettings
from recipes.tiny_teachers.units import Units
from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.data.distort import Distorter
from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.errors import EkdError
from s3prl_ekd.metrics_file import METRICS, forget_from
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.random_state import random_state, set_random_state
from s3prl_ekd.torch_file import read_torch_file
from s3prl_ekd.whole_file import whole_file

logger = logging.getLogger(__name__)

GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.01
STATE = "state.pt"


@dataclass(frozen=True)
class Machine:
    """How a stage is computed; none of it is part of a teacher's settings."""

    device: torch.device
    precision: torch.dtype
    """bf16: autocast with fp32 weights; fp32."""
    workers: int
    log_every: int = 50
    save_every: int = 500


@dataclass
class Progress:
    """How far a stage is."""

    step: int = 0
    seconds: float = 0.0
    """Spent on it, over all calls."""
    audio_seconds: float = 0.0
    """Heard so far."""


class Stage:
    """The training of an encoder in place; goes on from its folder's checkpoint where there is one.

    Args:
        encoder: random, or where the stage starts from.
        table: the corpus.
        codebooks: units of its clean utterances.
        settings: steps, rates, masks, distortion.
        made_by: all that the weights depend on; its ``seed`` is that of masks, crops and mixing, its ``stage`` the
            settings as their file has them.
        folder: gets ``metrics.jsonl`` and ``state.pt``.
        machine: device, precision, workers.

    Raises:
        EkdError: the folder's checkpoint is one of other settings; noise that can't be read.
    """

    def __init__(
        self,
        encoder: Encoder,
        table: LengthTable,
        codebooks: Sequence[Units],
        settings: StageSettings,
        made_by: Mapping[str, Any],
        folder: Path,
        machine: Machine,
    ) -> None:
        seed = int(made_by["seed"])
        torch.manual_seed(seed)
        self.made_by = json.dumps(made_by, sort_keys=True)
        self.as_written = dict(made_by["stage"])
        self.settings, self.machine, self.folder = settings, machine, folder
        self.table, self.codebooks = table, codebooks
        sizes = [units.clusters for units in codebooks]
        self.model = MaskedPrediction(encoder, sizes, settings.mask, settings.heard_weight)
        self.model.to(machine.device).train()
        self.optimizer = torch.optim.AdamW(_groups(self.model), settings.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: _slope(step, settings.steps, settings.warmup)
        )
        crop = int(settings.crop_seconds * SAMPLE_RATE)
        self.plan = FramePlan(table.samples, 1, settings.batch_seconds, crop, seed)
        distorter = None
        if settings.distortion is not None:
            distorter = Distorter(settings.distortion, f"stage {settings.name}")
        self.loader: DataLoader[UnitBatch] = DataLoader(
            UnitCrops(table, self.plan, codebooks, encoder.shape, distorter, settings.mixing, seed),
            batch_size=None,
            sampler=self.plan,
            num_workers=machine.workers,
            persistent_workers=machine.workers > 0,
            pin_memory=machine.device.type == "cuda",
            generator=torch.Generator(),  # or each epoch would draw a seed from the generator that masks come from
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.done = Progress()
        if (folder / STATE).is_file():
            self._resume()
        else:
            (folder / METRICS).unlink(missing_ok=True)
        self.log = _Log(folder / METRICS, settings)

    def run(self) -> dict[str, Any]:
        """Train to the end; what the training was, as plain numbers, for the teacher's record.

        Raises:
            EkdError: audio that can't be read; a loss that is NaN.
        """
        settings, done = self.settings, self.done
        before, started = done.seconds, time.monotonic()
        while done.step < settings.steps:
            for batch in self.loader:
                prediction, norm = self._step(batch)
                done.step += 1
                done.audio_seconds += batch.wave.numel() / SAMPLE_RATE
                done.seconds = before + time.monotonic() - started
                self.log.add(prediction, norm)
                last = done.step == settings.steps
                if last or done.step % self.machine.log_every == 0:
                    self.log.write(done, float(self.schedule.get_last_lr()[0]))
                if last or done.step % self.machine.save_every == 0:
                    self._save(batch)
                if last:
                    break
        self.model.encoder.cpu().eval()
        return {
            "stage": self.as_written,
            "hours_heard": round(done.audio_seconds / 3600, 2),
            "hours_of_corpus": round(self.table.hours, 2),
            "unit_perplexity": [round(units.perplexity, 1) for units in self.codebooks],
            "minutes": round(done.seconds / 60, 1),
            "last": self.log.last(),
        }

    @property
    def encoder(self) -> Encoder:
        """What is trained."""
        return self.model.encoder

    @property
    def mask_vector(self) -> Tensor:
        """(D,) what stands for hidden frames."""
        return self.model.mask.vector.detach().cpu()

    def _step(self, batch: UnitBatch) -> tuple[Prediction, Tensor]:
        device, precision = self.machine.device, self.machine.precision
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            prediction = self.model(batch.wave.to(device, non_blocking=True), batch.units.to(device, non_blocking=True))
        prediction.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        return prediction, norm

    def _save(self, batch: UnitBatch) -> None:
        """The checkpoint after ``batch``, whole or not at all."""
        state = {
            "made_by": self.made_by,
            **vars(self.done),
            "epoch": batch.epoch,
            "index": batch.index,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random_state(),
        }
        with whole_file(self.folder / STATE) as partial:
            torch.save(state, partial)

    def _resume(self) -> None:
        file = self.folder / STATE
        state = read_torch_file(file)
        if state.get("made_by") != self.made_by:
            raise EkdError(f"{file}: made with other settings, weights or audio; name another --out")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.plan.resume_after(state["epoch"], state["index"])
        set_random_state(state["random"])
        self.done = Progress(state["step"], state["seconds"], state["audio_seconds"])
        if (self.folder / METRICS).is_file():
            forget_from(self.folder / METRICS, self.done.step + 1)
        logger.info("[%s] goes on after step %d of %d", self.settings.name, self.done.step, self.settings.steps)


class _Log:
    """Means since the last line, one JSON line each; the device is waited for only when a line is written."""

    def __init__(self, file: Path, settings: StageSettings) -> None:
        self.file, self.settings = file, settings
        self.sums: Tensor | None = None
        self.count = 0
        self.before: Progress | None = None  # when the last line was written

    def add(self, prediction: Prediction, norm: Tensor) -> None:
        values = torch.stack(
            [prediction.masked_loss, prediction.masked_accuracy, prediction.heard_accuracy, norm.detach()]
        )
        self.sums = values if self.sums is None else self.sums + values
        self.count += 1

    def write(self, now: Progress, lr: float) -> None:
        assert self.sums is not None
        name = self.settings.name
        loss, masked, heard, norm = (self.sums / self.count).tolist()
        if loss != loss:
            raise EkdError(f"stage {name}: the loss is NaN at step {now.step}; a smaller lr may help")
        rate = None
        if self.before is not None:
            rate = (now.audio_seconds - self.before.audio_seconds) / (now.seconds - self.before.seconds)
        line = {"step": now.step, "loss": loss, "masked_accuracy": masked, "heard_accuracy": heard}
        line |= {"gradient_norm": norm, "lr": lr, "audio_seconds": now.audio_seconds, "audio_per_second": rate}
        with self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        speed = "" if rate is None else f", {rate:.0f} s of audio a second"
        logger.info(
            "[%s] step %d/%d: loss %.3f, accuracy masked %.1f %%, heard %.1f %%%s",
            name, now.step, self.settings.steps, loss, 100 * masked, 100 * heard, speed,
        )  # fmt: skip
        self.sums, self.count = None, 0
        self.before = replace(now)

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
