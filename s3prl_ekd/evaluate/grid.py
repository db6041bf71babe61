"""The choice of a learning rate on dev.

A :class:`Search` holds the runs that compete: one model, one task, one seed; a run for each rate and each fold. The
rate with the best dev score wins, for ER the best mean over the folds, so that all folds are tested with one rate. Only
the winner is ever tested (``schedule.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.marker import Results
from s3prl_ekd.evaluate.plan import Run
from s3prl_ekd.evaluate.tasks import Task


@dataclass(frozen=True)
class Search:
    """The runs of one model, task and seed, which differ in rate and fold alone."""

    runs: tuple[Run, ...]

    @property
    def task(self) -> Task:
        """The task that all runs share."""
        return self.runs[0].task

    @property
    def seed(self) -> int:
        """The seed that all runs share."""
        return self.runs[0].seed

    @property
    def key(self) -> str:
        """Name of the search: its model where there are several, the task, the seed where there are several."""
        return self.runs[0].group

    @property
    def rates(self) -> list[float | None]:
        """The rates in the order they were given; ``[None]`` where the configuration's own is the only one."""
        return list(dict.fromkeys(run.rate for run in self.runs))

    def at(self, rate: float | None) -> list[Run]:
        """The runs of one rate: one, or one a fold."""
        return [run for run in self.runs if run.rate == rate]

    def dev(self, rate: float | None, results: Results) -> float | None:
        """The rate's dev score in percent, the mean over folds; ``None`` where a run of it has none."""
        scores = [results[run.key]["dev"] for run in self.at(rate)]
        known = [score for score in scores if score is not None]
        return fmean(known) if len(known) == len(scores) else None

    def picked(self, results: Results) -> float | None:
        """The rate to test: best on dev; of equals one that was tested before, else the first given.

        (Were order alone to decide, the same rates in another order would test the other equal rate and replace the
        test score.)

        Raises:
            EkdError: there is a choice, and no rate has a dev score.
        """
        if len(self.rates) == 1:
            return self.rates[0]
        scores = {rate: self.dev(rate, results) for rate in self.rates}
        known = {rate: score for rate, score in scores.items() if score is not None}
        if not known:
            raise EkdError(
                f"{self.key}: no learning rate of {', '.join(f'{rate:g}' for rate in self.rates)} gave a "
                f"{self.task.dev_split} {self.task.metric}; see train.log in {self.runs[0].expdir}"
            )
        best = (min if self.task.lower_is_better else max)(known.values())
        equal = [rate for rate, score in known.items() if score == best]
        return next((rate for rate in equal if self.tested(rate, results)), equal[0])

    def tested(self, rate: float | None, results: Results) -> bool:
        """Whether all runs of a rate have a test score."""
        return all(self.task.metric in results[run.key] for run in self.at(rate))


def finished_runs(runs: Sequence[Run], results: Results) -> list[Run]:
    """The runs of a model whose whole task is done: every seed and rate trained, the picked ones tested."""
    undone = {search.task.name for search in searches(runs) if not _finished(search, results)}
    return [run for run in runs if run.task.name not in undone]


def _finished(search: Search, results: Results) -> bool:
    if any(run.key not in results for run in search.runs):
        return False
    if len(search.rates) > 1 and all(search.dev(rate, results) is None for rate in search.rates):
        return False
    return search.tested(search.picked(results), results)


def searches(runs: Sequence[Run]) -> list[Search]:
    """Group the runs of a plan into those that compete, in the plan's order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return [Search(tuple(group)) for group in groups.values()]
