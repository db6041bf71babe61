"""The text of ``--dry-run``: the native commands of a plan, ready to paste into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from s3prl_ekd.evaluate.devices import gpu_environment
from s3prl_ekd.evaluate.grid import searches
from s3prl_ekd.evaluate.plan import Run


def commands_text(runs: Sequence[Run], places: Sequence[str] = ("cpu",)) -> str:
    """The commands of all runs, each below a comment that names it; runs are dealt over the devices ``places``."""
    lines = []
    number = 0
    for search in searches(runs):
        tests = []
        for run in search.runs:
            one = replace(run, device=places[number % len(places)])
            gpu = [f"{key}={value}" for key, value in gpu_environment(one.device).items()]
            number += 1
            lines += [f"# {one.key}: {one.task.title}", shlex.join([*gpu, *one.train_command()])]
            test = shlex.join([*gpu, *one.evaluate_command(one.expdir / one.task.best_checkpoint)])
            if len(search.rates) == 1:
                lines.append(test)
            else:
                tests += [f"# {one.key}: if lr {one.rate:g} is the best on dev", test]
        lines += tests
    return "\n".join(lines)
