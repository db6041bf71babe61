"""``--shard I/N``: the I-th of N shares of a call's runs, for calls side by side on several machines.

Every call deals the whole plan itself: the same command line gives the same shares. What must stay together stays in
one share: the runs among which a learning rate is picked (``grid.py``), so that the share tests its picks too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.grid import searches
from s3prl_ekd.evaluate.plan import ModelPlan, Run


@dataclass(frozen=True)
class Shard:
    """The I-th of N shares."""

    number: int
    """From 1."""
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def share(self, plans: Sequence[ModelPlan]) -> list[ModelPlan]:
        """What this share has of each model's plan, without the models that it has nothing of; it may be empty.

        The longest unit goes first, and each to the share that has the fewest batches to train on so far.
        """
        units = sorted((unit for plan in plans for unit in _units(plan)), key=lambda unit: -sum(map(_batches, unit)))
        load = [0] * min(self.count, len(units))  # any further shares have nothing
        mine: set[str] = set()
        for unit in units:
            share = load.index(min(load))
            load[share] += sum(map(_batches, unit))
            if share == self.number - 1:
                mine.update(run.key for run in unit)
        kept = [ModelPlan(plan.out, [run for run in plan.runs if run.key in mine]) for plan in plans]
        return [plan for plan in kept if plan.runs]


def parse_shard(text: str) -> Shard:
    """Read ``I/N``.

    Raises:
        EkdError: anything else, or an I that is not among 1 to N.
    """
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise EkdError(f"--shard {text}: expected I/N, I from 1 to N, as 1/8")
    return Shard(int(found[1]), int(found[2]))


def _units(plan: ModelPlan) -> Iterator[Sequence[Run]]:
    """The runs of a model that one share does together; at one rate nothing is picked, and each fold is by itself."""
    for search in searches(plan.runs):
        yield from [search.runs] if len(search.rates) > 1 else [[run] for run in search.runs]


def _batches(run: Run) -> int:
    """How many batches a run trains on: what the plan knows of how long it takes."""
    runner = run.effective_config()["runner"]
    steps, accumulated = int(runner["total_steps"]), runner.get("gradient_accumulate_steps")
    return steps * accumulated if isinstance(accumulated, int) else steps
