"""The text of ``--dry-run``: the native commands of a plan, ready to paste into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from s3prl_ekd.evaluate.devices import gpu_environment
from s3prl_ekd.evaluate.grid import searches
from s3prl_ekd.evaluate.plan import Run
from s3prl_ekd.evaluate.side_by_side import One


def commands_text(runs: Sequence[Run], places: Sequence[str] = ("cpu",)) -> str:
    """The commands of all runs, each below a comment that names it; runs are dealt over the devices ``places``."""
    lines = []
    for search in searches(dealt(runs, places)):
        tests = []
        for run in search.runs:
            lines += [f"# {run.key}: {run.task.title}", pasted(run.train_command(), run.device)]
            test = pasted(run.evaluate_command(run.expdir / run.task.best_checkpoint), run.device)
            if len(search.rates) == 1:
                lines.append(test)
            else:
                tests += [f"# {run.key}: if lr {run.rate:g} is the best on dev", test]
        lines += tests
    return "\n".join(lines)


def dealt(jobs: Sequence[One], places: Sequence[str]) -> list[One]:
    """The jobs over the devices ``places`` in turn."""
    return [job.on(places[number % len(places)]) for number, job in enumerate(jobs)]


def pasted(command: Sequence[str], device: str) -> str:
    """A native command as a line for a shell, which shows it the one GPU of its device."""
    return shlex.join([*(f"{key}={value}" for key, value in gpu_environment(device).items()), *command])
