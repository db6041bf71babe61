"""The validation loss: the objective on held-out speech, the same clips each time, without dropout.

What a batch costs the student is the expert's to compute; here are the batches, and the mean over them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from s3prl_ekd.config import DataConfig
from s3prl_ekd.data.batches import Batch, make_loader
from s3prl_ekd.data.distort import Distorter
from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.data.plan import BatchPlan, BatchSpec
from s3prl_ekd.data.skipped import SkippedAudio
from s3prl_ekd.data.target_cache import TargetCache
from s3prl_ekd.distributed import Ranks
from s3prl_ekd.errors import EkdError, is_out_of_memory, one_line

logger = logging.getLogger(__name__)

HeadValues = dict[str, dict[str, float]]
"""Head -> what is logged of it -> value, as of :class:`s3prl_ekd.distill.objective.Objective`."""
BAR_AFTER = 5.0
"""Seconds after which a progress bar appears."""
_PARTS = ("l1", "cosine", "target_norm")


class Validation:
    """Held-out speech, cut into the batches of the plan's first epoch: crops and distortions never change.

    Args:
        table: the held-out utterances.
        data: ``pretrain_expert.datarc``.
        sequence_length: longest crop in samples.
        distorter: of training, so that the task is the trained one.
        cache: the held-out speech's own target cache.
        ranks: every one of W ranks takes each W-th batch.
    """

    def __init__(
        self,
        table: LengthTable,
        data: DataConfig,
        sequence_length: int,
        distorter: Distorter | None,
        cache: TargetCache | None,
        ranks: Ranks,
    ) -> None:
        def own_part(plan: BatchPlan) -> list[BatchSpec]:
            return list(plan)[ranks.rank :: ranks.size]

        self.table, self.cache, self.ranks = table, cache, ranks
        self.loader, _ = make_loader(table, data, sequence_length, distorter, cache, own_part, keep_workers=False)
        self._skipped = SkippedAudio("skipped in validation")

    def measure(
        self,
        losses: Callable[[Batch], tuple[torch.Tensor, HeadValues]],
        heads: Sequence[str],
        device: torch.device | str,
    ) -> dict[str, Any] | None:
        """Means over all held-out speech, each batch weighing what it has of it.

        Args:
            losses: a batch -> its scalar loss and what is logged of each head.
            heads: all of these.
            device: where the ranks exchange their sums.

        Returns:
            ``loss``, ``seconds`` of audio and ``heads`` as in a line of metrics.jsonl; None, with a warning, where
            nothing could be read, or where something went wrong: training goes on, and its checkpoint is written.
        """
        total = np.zeros(2 + len(heads) * len(_PARTS))  # seconds, loss, values of heads
        failure = ""
        try:
            for batch in self._shown():
                self._skipped.tell(batch.skipped)
                if batch.is_placeholder:
                    if self.cache is not None:
                        self.cache.mark_unreadable(batch.unread)
                    continue
                loss, found = losses(batch)
                values = [found[head][part] for head in heads for part in _PARTS]
                total += batch.seconds * np.array([1.0, float(loss), *values])
            if self.cache is not None:
                self.cache.flush()
        except (EkdError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            failure = one_line(error)
            logger.warning("[ekd] no validation loss: %s", failure)
        *sums, failures = self.ranks.sums([*total.tolist(), float(bool(failure))], device)
        seconds = sums[0]
        if failures:
            return None
        if not seconds:
            if self.ranks.writes:  # all ranks know it
                logger.warning("[ekd] no validation loss: none of its audio can be read")
            return None
        mean, *values = [value / seconds for value in sums[1:]]
        rows = np.reshape(values, (len(heads), len(_PARTS))).tolist()
        by_head = {head: dict(zip(_PARTS, row, strict=True)) for head, row in zip(heads, rows, strict=True)}
        return {"loss": mean, "seconds": seconds, "heads": by_head}

    def _shown(self) -> Iterable[Batch]:
        """The batches, with a progress bar where they take long: the runner's own bars stand still meanwhile."""
        hidden = not self.ranks.writes
        return tqdm(self.loader, "validation", leave=False, disable=hidden, delay=BAR_AFTER, dynamic_ncols=True)
