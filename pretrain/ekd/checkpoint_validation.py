"""When a run's validation loss is measured, and what becomes of it: validation.jsonl, tensorboard, dev-best.ckpt.

What it is the mean of, and over what, is ``validation.py``'s.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from s3prl_ekd.data.batches import Batch
from s3prl_ekd.metrics_file import VALIDATION, MetricsWriter, lacks_step
from s3prl_ekd.pretrain.ekd.best_checkpoint import BestCheckpoint
from s3prl_ekd.pretrain.ekd.validation import HeadValues, Validation


class CheckpointValidation:
    """The validation of each checkpoint, by the student as it is in it.

    Args:
        validation: the held-out speech.
        losses: a batch of it -> its scalar loss and what is logged of each head.
        heads: all of these.
        modules: what has another mode while training.
        device: where the ranks exchange their sums.
        measured: called at the end of each pass over the held-out speech.
    """

    def __init__(
        self,
        validation: Validation,
        losses: Callable[[Batch], tuple[Tensor, HeadValues]],
        heads: Sequence[str],
        modules: Sequence[nn.Module],
        device: torch.device | str,
        measured: Callable[[], None],
    ) -> None:
        self.validation, self.ranks, self.device = validation, validation.ranks, device
        self.tensorboard: tuple[Any, str] | None = None
        """The runner's writer and its prefix, once they are known."""
        self._losses, self._heads, self._modules, self._measured = losses, heads, modules, measured
        self.lines = MetricsWriter(VALIDATION)
        self._best: BestCheckpoint | None = None  # known where the runner tells of saving
        self._seconds = 0.0
        self._due: tuple[int, str] | None = None  # step and folder of the checkpoint that is next

    def on_train_begin(self, args: Namespace, logger: Any, resumed_at: int | None, regular: bool = True) -> None:
        """Measure the loss that a stopped run still owes its checkpoint; the next ones come after saving.

        A stop while validating costs no training then, and the best checkpoint can be kept. s3prl's stock runner, in a
        linked checkout, tells nothing of what it has saved: there the loss is measured before, and none is kept.

        Args:
            args: the runner's.
            logger: its tensorboard writer.
            resumed_at: step of the checkpoint that the run goes on from.
            regular: whether an uninterrupted run has this checkpoint too; that of a stop has no validation loss.
        """
        self.tensorboard = logger, f"{args.upstream}/train-"
        self._best = BestCheckpoint(Path(args.expdir))
        if resumed_at is None:
            return
        owed = False
        if self.ranks.writes:
            self._best.resume(Path(args.past_exp), resumed_at)
            owed = regular and lacks_step(Path(args.expdir, VALIDATION), resumed_at)
        if any(self.ranks.sums([float(owed)], self.device)):  # one file, not one a rank
            self._due = resumed_at, args.expdir
            self.on_saved(Path(args.past_exp))

    def before_saving(self, step: int, folder: str) -> None:
        """The checkpoint of ``step`` is about to be written into ``folder``."""
        self._due = step, folder
        if self._best is None:
            self._measure()

    def on_saved(self, checkpoint: Path) -> None:
        """It is on the disk."""
        loss = self._measure()
        if self._best is not None and loss is not None and self.ranks.writes:
            self._best.offer(checkpoint, loss)

    def take_seconds(self) -> float:
        """The time that it has taken since the last call, which is none of training."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _measure(self) -> float | None:
        """Measure and write the loss that is due; None where none is, or it could not be measured."""
        due, self._due = self._due, None
        if due is None:
            return None
        step, folder = due
        begin = time.perf_counter()
        for module in self._modules:
            module.eval()
        with torch.no_grad():
            found = self.validation.measure(self._losses, self._heads, self.device)
        self._measured()
        for module in self._modules:
            module.train()
        self._seconds += time.perf_counter() - begin
        if found is None or not self.ranks.writes:
            return None
        self.lines.write(folder, step, found)
        if self.tensorboard is not None:
            writer, prefix = self.tensorboard
            prefix = f"{prefix.removesuffix('train-')}valid-"
            writer.add_scalar(f"{prefix}loss", found["loss"], global_step=step)
            add_heads(writer, prefix, found["heads"], step)
        tqdm.write(f"[ekd] step {step}: validation loss {found['loss']:.4f}")
        return found["loss"]


def add_heads(writer: Any, prefix: str, heads: Mapping[str, Mapping[str, float]], step: int) -> None:
    """Tensorboard's scalars of every head."""
    for head, parts in heads.items():
        for part, value in parts.items():
            writer.add_scalar(f"{prefix}{head}/{part}", value, global_step=step)
