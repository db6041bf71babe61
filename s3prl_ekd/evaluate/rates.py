"""Learning rates and seeds as the user writes them: ``--lr pr:0.1,0.01``, ``--seeds 1,2,3``. Nothing is picked here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.tasks import TASKS, split_task
from s3prl_ekd.spelling import repeated

Grid = dict[str, list[float]]  # task -> learning rates; a task that is not there trains at its configuration's rate
LR_KEY = "config.optimizer.lr"


def choose_rates(by_preset: Grid, items: Sequence[str], overrides: Mapping[str, Mapping[str, str]]) -> Grid:
    """The grid of a call: ``--lr`` where given, else the preset's unless ``--override`` sets that task's rate.

    Raises:
        EkdError: ``--lr`` that is no list of rates, or beside an ``--override`` of the same task's rate.
    """
    given = parse_rates(items)
    for task in given:
        if LR_KEY in overrides[task]:
            raise EkdError(f"--lr and --override both set the learning rate of {task}; drop one of them")
    return {**{task: rates for task, rates in by_preset.items() if LR_KEY not in overrides[task]}, **given}


def parse_rates(items: Sequence[str]) -> Grid:
    """Sort ``["pr:0.1,0.01", "sid:1e-3"]`` by task; without a task the rates are for all, a task's own win.

    Raises:
        EkdError: an unknown task, one that is given twice, or no rates.
    """
    common: list[float] | None = None
    grid: Grid = {}
    for item in items:
        task, text = split_task(item)
        if task is not None and task not in TASKS:
            raise EkdError(f"--lr {item}: unknown task {task!r}; expected one of {', '.join(TASKS)}")
        if task in grid or (task is None and common is not None):
            raise EkdError(f"--lr {item}: given twice for {task or 'all tasks'}; list the rates with commas")
        rates = check_rates(text.split(","), f"--lr {item}")
        if task is None:
            common = rates
        else:
            grid[task] = rates
    return {task: found for task in TASKS if (found := grid.get(task, common)) is not None}


def check_rates(values: Sequence[Any], where: str) -> list[float]:
    """Check that the values are positive numbers, each there once; returns them as floats.

    Raises:
        EkdError: anything else; begins with ``where``.
    """
    rates: list[float] = []
    for value in values:
        try:
            rate = float(value)
        except (TypeError, ValueError):
            rate = math.nan
        if not 0 < rate < math.inf:
            raise EkdError(f"{where}: learning rate {str(value).strip()!r}: expected a positive number")
        if rate in rates:
            raise EkdError(f"{where}: learning rate {rate:g} is listed twice")
        rates.append(rate)
    return rates


def parse_seeds(text: str) -> list[int]:
    """Split ``"1,2,3"`` into whole numbers.

    Raises:
        EkdError: anything else, a number that numpy does not take, or one that is there twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        if not part.strip().isascii() or not part.strip().isdigit():
            raise EkdError(f"--seeds {text}: {part.strip()!r}: expected whole numbers with commas between, as 1,2,3")
        seeds.append(int(part))
    if max(seeds) >= 2**32:
        raise EkdError(f"--seeds {text}: {max(seeds)}: numpy's seeds are below 2**32")
    doubled = repeated(seeds)
    if doubled is not None:
        raise EkdError(f"--seeds {text}: {doubled} is listed twice")
    return seeds
