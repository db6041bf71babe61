"""The four SUPERB tasks as one table: what s3prl's runner calls them, what it prints and what it writes.

Everything else in this package reads this table. The names are those of s3prl
0.4.18 (``downstream/{ctc,voxceleb1,emotion,asr}/expert.py``). Data paths and recipes are not here: they come with
``DATA/<task>.yaml`` (``s3prl-ekd prepare``) and the presets.
"""

from __future__ import annotations

from dataclasses import dataclass

from s3prl_ekd.errors import EkdError
from s3prl_ekd.task_names import DOWNSTREAM


@dataclass(frozen=True)
class Task:
    """One downstream task of s3prl's runner.

    ``runner_scale`` turns the number that the runner prints into percent (PR, SID and ER print fractions, ASR prints
    percent). File names may hold ``{fold}``.
    """

    name: str  # ours: pr, sid, er, asr
    title: str
    downstream: str  # s3prl's -d
    metric: str  # the key in the runner's output and in scores.json
    lower_is_better: bool
    runner_scale: float
    dev_split: str
    test_split: str  # s3prl's -t
    best_checkpoint: str  # written by the runner when the dev score improves
    hypothesis: str  # prediction file in the experiment folder after -m evaluate
    reference: str
    folded: bool = False  # ER: one run a fold, the score is the mean
    workers_key: str = "config.downstream_expert.datarc.num_workers"


TASKS: dict[str, Task] = {
    "pr": Task(
        name="pr",
        title="phoneme recognition",
        downstream=DOWNSTREAM["pr"],
        metric="per",
        lower_is_better=True,
        runner_scale=100.0,
        dev_split="dev",
        test_split="test",
        best_checkpoint="dev-best.ckpt",
        hypothesis="test-hyp.ark",
        reference="test-ref.ark",
        workers_key="config.downstream_expert.corpus.num_workers",
    ),
    "sid": Task(
        name="sid",
        title="speaker identification",
        downstream=DOWNSTREAM["sid"],
        metric="acc",
        lower_is_better=False,
        runner_scale=100.0,
        dev_split="dev",
        test_split="test",
        best_checkpoint="dev-best.ckpt",
        hypothesis="test_predict.txt",
        reference="test_truth.txt",
    ),
    "er": Task(
        name="er",
        title="emotion recognition",
        downstream=DOWNSTREAM["er"],
        metric="acc",
        lower_is_better=False,
        runner_scale=100.0,
        dev_split="dev",
        test_split="test",
        best_checkpoint="dev-best.ckpt",
        hypothesis="test_{fold}_predict.txt",
        reference="test_{fold}_truth.txt",
        folded=True,
    ),
    "asr": Task(
        name="asr",
        title="speech recognition",
        downstream=DOWNSTREAM["asr"],
        metric="wer",
        lower_is_better=True,
        runner_scale=1.0,
        dev_split="dev-clean",
        test_split="test-clean",
        best_checkpoint="dev-clean-best.ckpt",
        hypothesis="test-clean-noLM-hyp.ark",
        reference="test-clean-noLM-ref.ark",
    ),
}


def parse_tasks(text: str) -> list[Task]:
    """Read ``"pr,sid"`` as tasks, in the table's order.

    Raises:
        EkdError: a name that is not one of the four.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise EkdError(f"--tasks: unknown task {', '.join(unknown) or repr(text)}; expected some of {','.join(TASKS)}")
    return [task for task in TASKS.values() if task.name in names]
