"""``dev-best.ckpt`` of a pretraining run: the checkpoint of its lowest validation loss, by s3prl's downstream name.

It is a second name of a ``states-N.ckpt``, so it takes room only once the runner has deleted that one.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from pathlib import Path

from s3prl_ekd.bridge import checkpoints
from s3prl_ekd.errors import EkdError
from s3prl_ekd.metrics_file import VALIDATION, read_metrics
from s3prl_ekd.whole_file import whole_file

logger = logging.getLogger(__name__)


class BestCheckpoint:
    """The best so far; a new run takes over from whatever is in its folder.

    Args:
        folder: of the experiment.
    """

    def __init__(self, folder: Path) -> None:
        self.file, self.validations = folder / checkpoints.BEST, folder / VALIDATION
        self.loss = math.inf

    def resume(self, checkpoint: Path, step: int) -> None:
        """Go on from the checkpoint of ``step``: what was best up to there is to be beaten, later steps come again."""
        try:
            losses = {line["step"]: line["loss"] for line in read_metrics(self.validations) if line["step"] <= step}
            if self.file.is_file():
                self.loss = losses.get(checkpoints.read(self.file, mmap=True).get("Step"), math.inf)
        except FileNotFoundError:  # nothing was validated yet
            return
        except EkdError as error:
            logger.warning("[ekd] %s: the best so far is not known (%s)", self.file, error)
            return
        self.offer(checkpoint, losses.get(step, math.inf))  # a stop may have come just before it

    def offer(self, checkpoint: Path, loss: float) -> None:
        """Take a checkpoint where its validation loss is the lowest; a disk that does not let us ends no training."""
        if not loss < self.loss:
            return
        try:
            with whole_file(self.file) as partial:
                try:
                    os.link(checkpoint, partial)
                except OSError:  # a file system without hard links
                    shutil.copyfile(checkpoint, partial)
        except OSError as error:
            logger.warning("[ekd] %s: cannot be written (%s)", self.file, error.strerror)
            return
        self.loss = loss
