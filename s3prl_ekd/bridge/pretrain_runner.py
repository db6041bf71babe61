"""s3prl's pretraining runner with what it lacks.

What it reads of its module's namespace is replaced in ``pretrain_launch.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3prl_ekd.bridge import optimizers
from s3prl_ekd.bridge.ranks import World, mute
from s3prl_ekd.errors import EkdError


def runner_class(original: type, world: World, begin: Callable[[Any], None]) -> type:
    """s3prl's runner, which goes on at the right learning rate and downloads once.

    Args:
        original: ``pretrain.runner.Runner``.
        world: on each node of a launch one rank goes first in building the expert, which may download.
        begin: called with the runner before training.
    """

    class Runner(original):
        def _get_scheduler(self, optimizer: Any) -> Any:
            return optimizers.go_on(super()._get_scheduler(optimizer), optimizer)

        def _get_upstream(self) -> Any:
            with world.local_rank_zero_first():
                return super()._get_upstream()

        def train(self) -> None:
            begin(self)
            super().train()

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
        mute(runner)
        runner.torch.save = runner.os.remove = lambda *args, **kwargs: None


def _out_of_memory() -> None:
    """The runner empties the cache and goes on with the next batch, which its peers would wait for in vain."""
    from s3prl_ekd.bridge.memory import PRETRAINING

    raise EkdError(f"out of GPU memory; {PRETRAINING}, or take more ranks")
