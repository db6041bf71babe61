"""The checkpoint of a pretraining that ends between two of its checkpoints: stopped, or by an error.

s3prl's runner saves every ``save_step`` steps, and an end in between would lose those since. Here the last whole step
is saved when training ends before its time. A step in progress has changed neither weights nor optimizer; what it has
changed (random states, place in the data, running statistics) is kept from the end of the step before. While a step
changes weights, and until it is logged, a signal waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import MethodType
from typing import Any

from s3prl_ekd.bridge.checkpoints import AtomicCheckpoints
from s3prl_ekd.bridge.pretrain_configs import length
from s3prl_ekd.errors import one_line
from s3prl_ekd.signals import Signals

log = logging.getLogger(__name__)


class StoppedTraining:
    """Follows the steps of a run of s3prl's pretraining runner, and saves the last one where the runner has not.

    Args:
        signals: those of the run.
        keeper: writes its checkpoints.
    """

    def __init__(self, signals: Signals, keeper: AtomicCheckpoints) -> None:
        self._signals, self._keeper = signals, keeper
        self._optimizer: Any = None
        self._scheduler: Any = None
        self._changing = False  # weights: between the begin of optimizer.step and the end of the step
        self._waiting = False  # signals
        self._follows = False  # the steps of a task of ours
        # of the last whole step: UpstreamPretrainExpert.step_end, and how far the scheduler was
        self._end: tuple[dict[str, Any], int] | None = None
        self._saved = 0  # the step that the runner has written last, or tried to

    def follow_optimizer(self, optimizer: Any) -> None:
        """Let signals wait from the begin of each of its steps, in a run that is followed: who else ends the wait?"""
        if not self._follows:
            return
        self._optimizer, step = optimizer, optimizer.step

        @wraps(step)
        def hold_and_step(_: Any, *args: Any, **kwargs: Any) -> Any:
            self._wait()
            self._changing = True
            return step(*args, **kwargs)

        optimizer.step = MethodType(hold_and_step, optimizer)  # torch's schedulers ask for a method

    def follow_scheduler(self, scheduler: Any) -> None:
        """Know the scheduler of the run, None where it has none."""
        self._scheduler = scheduler

    def follow(self, runner: Any, module: Any) -> None:
        """Keep the end of each step of a runner whose task is ours, and know what it saves by its ``module``.

        Before it makes its optimizer.
        """
        expert, save = runner.upstream, module.torch.save
        before: Callable[[], None] = expert.on_before_zero_grad
        log_records: Callable[..., None] = expert.log_records

        def keep_end() -> None:
            self._wait()  # NaN, or the scaler of fp16, may have left the optimizer's step out
            before()
            self._end = expert.step_end(), getattr(self._scheduler, "last_epoch", 0)
            self._changing = False
            if self._end[0]["step"] % runner.config["runner"]["log_step"]:
                self._listen()

        def log_and_listen(**kwargs: Any) -> None:
            log_records(**kwargs)
            self._listen()

        def note_and_save(state: Any, path: str) -> None:
            self._saved = state["Step"]
            save(state, path)

        expert.on_before_zero_grad, expert.log_records, module.torch.save = keep_end, log_and_listen, note_and_save
        self._follows = True

    def save(self, runner: Any) -> None:
        """Write the last whole step, if there is one and the runner has not; called where an error has ended it.

        What cannot be saved is said, and changes nothing about that error. A second signal ends the process at once.
        """
        if self._end is None:
            return
        if self._changing:
            log.warning("[ekd] the steps since the last checkpoint are lost: the end came while weights changed")
            return
        (end, rates), step = self._end, self._end[0]["step"]
        if step == self._saved:
            return
        self._signals.end()
        path = Path(runner.args.expdir, self._name(runner, step))
        try:
            if self._scheduler is not None and self._scheduler.last_epoch == rates:
                self._scheduler.step()  # the last that the runner does for a step
            self._make_room(path.parent, runner.config["runner"]["max_keep"])
            self._keeper.save(self._state(runner, end), path)
        except Exception as failed:  # a full disk, a GPU that answers no more: what has ended the run is to be told
            log.warning("[ekd] the steps since the last checkpoint are lost: %s", one_line(failed, 200))
        else:
            log.info("[ekd] saved step %d before the end: %s", step, path)

    def _wait(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._signals.delay()

    def _listen(self) -> None:
        if self._waiting:
            self._waiting = False
            self._signals.deliver()

    def _name(self, runner: Any, step: int) -> str:
        """As the runner's: that of the last step says how many epochs they were, and with ``-a`` ends such a run."""
        last, epochs = length(runner.config["runner"], len(runner.upstream.loader.dataset))
        return f"states-epoch-{epochs}.ckpt" if step == last and epochs > 0 else f"states-{step}.ckpt"

    def _state(self, runner: Any, end: dict[str, Any]) -> dict[str, Any]:
        """As the runner makes it, one rank alone: its peers may be gone."""
        states = {
            "Optimizer": self._optimizer.state_dict(), "Step": end["step"], "Args": runner.args, "Config": runner.config
        }  # fmt: skip
        if self._scheduler is not None:
            states["Scheduler"] = self._scheduler.state_dict()
        return runner.upstream.add_state_of(states, end)

    def _make_room(self, folder: Path, max_keep: int) -> None:
        """Let go of as many checkpoints as the runner does before it writes one."""
        there = self._keeper.glob(f"{folder}/states-*.ckpt")
        for old in there[: max(len(there) - max_keep + 1, 0)]:
            self._keeper.remove(old)  # which ones, the keeper knows
