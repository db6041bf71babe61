"""s3prl's pretraining runner with what it lacks.

What it reads of its module's namespace is replaced in ``pretrain_launch.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3prl_ekd.bridge import optimizers
from s3prl_ekd.bridge.ranks import World
from s3prl_ekd.bridge.stopped_training import StoppedTraining
from s3prl_ekd.errors import EkdError


def runner_class(original: type, world: World, begin: Callable[[Any], None], stopped: StoppedTraining) -> type:
    """s3prl's runner, which goes on at the right learning rate and downloads once.

    Args:
        original: ``pretrain.runner.Runner``.
        world: on each node of a launch one rank goes first in building the expert, which may download.
        begin: called with the runner before training.
        stopped: saves the last step of a training that ends before its time.
    """

    class Runner(original):
        def _get_optimizer(self, model_params: Any) -> Any:
            optimizer = super()._get_optimizer(model_params)
            stopped.follow_optimizer(optimizer)
            return optimizer

        def _get_scheduler(self, optimizer: Any) -> Any:
            scheduler = optimizers.go_on(super()._get_scheduler(optimizer), optimizer)
            stopped.follow_scheduler(scheduler)
            return scheduler

        def _get_upstream(self) -> Any:
            with world.local_rank_zero_first():
                return super()._get_upstream()

        def train(self) -> None:
            begin(self)
            try:
                super().train()
            except BaseException:
                if world.is_rank_zero:
                    stopped.save(self)
                raise

    return Runner


def tell_of_saving(runner: Any, tell: Callable[[Path], None]) -> None:
    """Call ``tell`` with each checkpoint that the module of the runner has written; on every rank, whichever writes."""
    save = runner.torch.save

    def save_and_tell(state: Any, path: str) -> None:
        save(state, path)
        tell(Path(path))

    runner.torch.save = save_and_tell


def share_work(runner: Any, world: World) -> None:
    """Stand-ins for what the module of the runner does in every rank, but only one may do, or none."""
    runner.torch.cuda.empty_cache = _out_of_memory
    if not world.is_rank_zero:
        _mute(runner)
        runner.torch.save = runner.os.remove = lambda *args, **kwargs: None


class _NoWriter:
    """tensorboardX's SummaryWriter for the ranks that write nothing."""

    def __init__(self, logdir: str) -> None:
        self.logdir = logdir

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        pass

    def close(self) -> None:
        pass


def _mute(runner: Any) -> None:
    """Take tensorboard and the progress bars from s3prl's pretraining runner; it counts its steps in a bar."""
    make_bar, nowhere = runner.tqdm, open(os.devnull, "w")

    def tqdm(*args: Any, **kwargs: Any) -> Any:
        return make_bar(*args, **{**kwargs, "file": nowhere})

    tqdm.write = make_bar.write  # type: ignore[attr-defined]
    runner.tqdm, runner.SummaryWriter = tqdm, _NoWriter


def _out_of_memory() -> None:
    """The runner empties the cache and goes on with the next batch, which its peers would wait for in vain."""
    from s3prl_ekd.bridge.memory import PRETRAINING

    raise EkdError(f"out of GPU memory; {PRETRAINING}, or take more ranks")
