"""The tasks of SUPERB as one table: what s3prl's runner calls them, what it prints and what it writes.

The names are those of s3prl 0.4.18 (``downstream/TASK/expert.py``). Data paths and recipes are
not here: they come with ``DATA/<task>.yaml`` (``s3prl-ekd prepare``) and the presets.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from s3prl_ekd.errors import EkdError
from s3prl_ekd.task_names import DOWNSTREAM


@dataclass(frozen=True)
class Task:
    """One downstream task of s3prl's runner."""

    name: str
    """Ours: pr, sid, er, asr, ks, ic."""
    title: str
    metric: str
    """The key in the runner's output and in scores.json: per, wer or acc."""
    hypothesis: str
    """Prediction file in the experiment folder after ``-m evaluate``; may hold ``{fold}``. CSV: commas separate."""
    reference: str
    dev_split: str = "dev"
    test_split: str = "test"
    """s3prl's ``-t``."""
    runner_scale: float = 100.0
    """Turns what the runner prints into percent: ASR's is percent already."""
    folded: bool = False
    """ER: one run a fold, the score is the mean."""
    workers_key: str = "config.downstream_expert.datarc.num_workers"

    @property
    def downstream(self) -> str:
        """s3prl's ``-d``."""
        return DOWNSTREAM[self.name]

    @property
    def lower_is_better(self) -> bool:
        """Of the metric: error rates, not accuracies."""
        return is_error_rate(self.metric)

    @property
    def best_checkpoint(self) -> str:
        """The runner writes it when the dev score improves."""
        return f"{self.dev_split}-best.ckpt"


def is_error_rate(metric: str) -> bool:
    """Whether less is better."""
    return metric != "acc"


def spelt(metric: str) -> str:
    """A metric as it is written: ``PER``, ``acc``."""
    return metric.upper() if is_error_rate(metric) else metric


def shown(metric: str) -> str:
    """A metric as columns are headed: ``PER ↓``, ``acc ↑``."""
    return f"{spelt(metric)} {'↓' if is_error_rate(metric) else '↑'}"


_ALL = (
    Task(
        "pr", "phoneme recognition", "per", "test-hyp.ark", "test-ref.ark",
        workers_key="config.downstream_expert.corpus.num_workers",
    ),
    Task("sid", "speaker identification", "acc", "test_predict.txt", "test_truth.txt"),
    Task("er", "emotion recognition", "acc", "test_{fold}_predict.txt", "test_{fold}_truth.txt", folded=True),
    Task(
        "asr", "speech recognition", "wer", "test-clean-noLM-hyp.ark", "test-clean-noLM-ref.ark",
        dev_split="dev-clean", test_split="test-clean", runner_scale=1.0,
    ),
    Task("ks", "keyword spotting", "acc", "test_predict.txt", "test_truth.txt"),
    Task("ic", "intent classification", "acc", "test_predict.csv", "test_truth.csv"),
)  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def parse_tasks(text: str) -> list[Task]:
    """Read ``"pr,sid"`` as tasks, in the table's order.

    Raises:
        EkdError: a name that is not in :data:`TASKS`.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise EkdError(f"--tasks: unknown task {', '.join(unknown) or repr(text)}; expected some of {','.join(TASKS)}")
    return [task for task in TASKS.values() if task.name in names]


def split_task(item: str) -> tuple[str | None, str]:
    """Split ``"TASK:REST"``, the task in lower case; None and all of it where no colon comes before the first ``=``."""
    head, colon, rest = item.partition(":")
    return (head.strip().lower(), rest) if colon and "=" not in head else (None, item)


def tasks_among(text: str | None, there: Collection[str], otherwise: str = "") -> list[Task]:
    """The tasks of ``--tasks``, all of which are ``there``; of None, all that are.

    Args:
        otherwise: what is said of others.

    Raises:
        EkdError: a name that is not in :data:`TASKS`, or not ``there``.
    """
    tasks = parse_tasks(text) if text is not None else [task for task in TASKS.values() if task.name in there]
    foreign = [task.name for task in tasks if task.name not in there]
    if foreign:
        raise EkdError(f"--tasks: {', '.join(foreign)}: {otherwise}")
    return tasks
