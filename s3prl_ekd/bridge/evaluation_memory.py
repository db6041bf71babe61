"""Out of GPU memory in an evaluation of s3prl's downstream runner: one line, and nothing that was learnt is lost.

The runner leaves out a training batch that does not fit (``memory.py``), but an evaluation ends it, in the middle of a
step and before that step's checkpoint. Here :meth:`EvaluationMemory.evaluate` catches the error and returns the name
of a checkpoint instead of a best score's; the runner gathers its state for it as always, and
:meth:`EvaluationMemory.save` writes it and raises the error. The checkpoint counts one step less than was made, so that
a run that goes on makes this step again, and with it the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError, is_out_of_memory


class EvaluationMemory:
    """Stands between a runner's evaluations and its checkpoints.

    Args:
        save: the runner's ``torch.save``.
    """

    def __init__(self, save: Callable[..., None]) -> None:
        self._save = save
        self._stopped = ""  # what happened, once an evaluation has been stopped
        self._last = ""  # name of the checkpoint that is written then

    def evaluate(
        self, evaluate: Callable[..., list[str]], config: Mapping[str, Any], split: str, logger: Any, step: int
    ) -> list[str]:
        """One evaluation while training.

        Args:
            evaluate: s3prl's, with the arguments that follow ``config``.
            config: of the run.

        Returns:
            The names of the checkpoints that the runner is to save.
        """
        if self._stopped:  # by an earlier split
            return []
        try:
            return evaluate(split, logger, step)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        self._stopped = message(split, config, step)
        self._last = f"states-{step - 1}.ckpt"
        return [self._last]

    def save(self, state: Any, path: str) -> None:
        """``torch.save``; after an evaluation that did not fit, the last one but for an earlier split's best.

        Raises:
            EkdError: there was such an evaluation; says what to do.
        """
        if Path(path).name != self._last:
            self._save(state, path)
            return
        if not Path(path).exists():  # else the step before was saved as it was
            self._save({**state, "Step": state["Step"] - 1}, path)
        raise EkdError(f"{self._stopped}; then resume with -a, from {path}")


def message(split: str, config: Mapping[str, Any], step: int = 0) -> str:
    """What happened, and which key to lower; ``step`` is 0 outside of training."""
    when = f" after step {step}" if step else ""
    return f"out of GPU memory in the evaluation of {split}{when}; {_advice(config)} (docs/faq.md, Out of memory)"


def _advice(config: Mapping[str, Any]) -> str:
    """PR has one batch size for training and evaluation; all others of s3prl's tasks have one of their own."""
    sections = {key: values for key, values in config["downstream_expert"].items() if isinstance(values, dict)}
    for name in ("eval_batch_size", "batch_size"):
        for section, values in sections.items():
            if isinstance(values.get(name), int):
                if values[name] == 1:
                    return f"{section}.{name} is 1 already: make room on this GPU"
                smaller = f"config.downstream_expert.{section}.{name}={values[name] // 2}"
                return f"{values[name]} clips at a time are too many: -o {smaller}"
    return "set a smaller batch size, or make room on this GPU"
