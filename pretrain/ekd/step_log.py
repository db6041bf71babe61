"""What a log step shows, and where: metrics.jsonl, tensorboard, the screen.

The heads' values are the objective's (``distill/objective.py``); what is added here is the run's own since the last log
step: how fast it is, how long it waited for data, what could not be read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from tqdm import tqdm

from s3prl_ekd.bridge.optimizers import current_rate
from s3prl_ekd.data.batches import Batch, TimedLoader
from s3prl_ekd.data.skipped import SkippedAudio
from s3prl_ekd.distributed import Ranks
from s3prl_ekd.metrics_file import METRICS, MetricsWriter
from s3prl_ekd.pretrain.ekd.checkpoint_validation import add_heads


class StepLog:
    """Counts from log step to log step, over all ranks.

    Args:
        loader: of the batches; it counts the seconds that it was waited for.
        ranks: the others.
    """

    def __init__(self, loader: TimedLoader, ranks: Ranks) -> None:
        self.metrics = MetricsWriter(METRICS)
        self.skipped = 0
        """Clips of this run that this rank could not read."""
        self._loader, self._ranks = loader, ranks
        self._skipped_audio = SkippedAudio()
        self._logged = -1  # the newest step that was
        self._audio_seconds, self._clock = 0.0, time.perf_counter()

    def note(self, data: Batch) -> None:
        """Count a batch."""
        self._audio_seconds += data.seconds
        self.skipped += len(data.skipped)
        self._skipped_audio.tell(data.skipped)

    def is_due(self, step: int, log_step: int) -> bool:
        """Whether a batch of ``step`` is to be logged: of several (gradient_accumulate_steps), the first is."""
        return step % log_step == 0 and step != self._logged

    def values(
        self, step: int, loss: Tensor, heads: Mapping[str, Mapping[str, float]], validating: float
    ) -> dict[str, Any]:
        """What the batch of ``step`` is logged with, all ranks taken together; the next counts begin here.

        Args:
            step: the runner's number of it.
            loss: scalar, of the batch of all ranks.
            heads: the objective's values of each head.
            validating: seconds since the last log step that were none of training.
        """
        # from here to here: whole steps, with their passes back (which begin after this, so `write` is too late)
        now = time.perf_counter()
        elapsed = now - self._clock - validating
        counts = [self._audio_seconds, self._loader.waited / self._ranks.size, self.skipped]
        self._logged, self._clock, self._audio_seconds, self._loader.waited = step, now, 0.0, 0.0
        seconds, waited, skipped = self._ranks.sums(counts, loss.device)
        rate = current_rate()
        return {
            "loss": float(loss.detach()),
            **({} if rate is None else {"lr": rate}),
            "audio_seconds_per_second": seconds / elapsed if elapsed else 0.0,
            "data_wait": waited / elapsed if elapsed else 0.0,  # share of the time
            "skipped_files": int(skipped),
            "heads": heads,
        }

    def write(self, values: Mapping[str, Any], logger: Any, prefix: str, step: int) -> None:
        """Write what :meth:`values` gave to tensorboard, as one line of metrics.jsonl beside it, and on the screen."""
        add_heads(logger, prefix, values["heads"], step)
        for name in ("audio_seconds_per_second", "data_wait", "skipped_files"):
            logger.add_scalar(f"{prefix}{name.replace('_', '-')}", values[name], global_step=step)
        self.metrics.write(logger.logdir, step, values)
        speed, skipped = values["audio_seconds_per_second"], values["skipped_files"]
        line = f"[ekd] step {step}: loss {values['loss']:.4f}, {speed:,.0f} s of audio a second"
        tqdm.write(line + (f", clips skipped so far: {skipped:,}" if skipped else ""))
