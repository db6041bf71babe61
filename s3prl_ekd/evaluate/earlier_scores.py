"""Refusals of a call that would replace what an earlier one left in its ``--out``: another table, a tested rate.

``--overwrite`` skips them. What a single run's folder must not hold is in ``run.py`` (``check_marker``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.inputs import changed_input
from s3prl_ekd.evaluate.marker import read_marker
from s3prl_ekd.evaluate.plan import ModelPlan, Run
from s3prl_ekd.evaluate.rates import LR_KEY
from s3prl_ekd.evaluate.results import by_seed
from s3prl_ekd.evaluate.scores_file import FILE_NAME, read_models

_ADVICE = "choose another --out, or --overwrite"
_NAMED = 4  # models of a table that a message names


def check_earlier_scores(plans: Sequence[ModelPlan], out: Path) -> None:
    """See that ``out`` holds no table of another kind, and no model's folder a score at a rate that this call lacks.

    Args:
        plans: of all models of the call.
        out: its ``--out``.

    Raises:
        EkdError: it does; names what is there.
    """
    if (out / FILE_NAME).is_file():
        earlier = read_models(out)
        several = any("folder" in record for _, record in earlier)
        labels = ", ".join(record["label"] for _, record in earlier[:_NAMED]) + ", ..." * (len(earlier) > _NAMED)
        if several and len(plans) == 1:
            raise EkdError(f"--out {out}: holds the table of several models ({labels}); {_ADVICE}")
        if not several and len(plans) > 1:
            raise EkdError(f"--out {out}: holds the scores of one model ({labels}); {_ADVICE}")
    for plan in plans:
        if (plan.out / FILE_NAME).is_file():
            for _, record in read_models(plan.out):
                _check_rates(plan, record)


def _check_rates(plan: ModelPlan, record: Mapping[str, Any]) -> None:
    """Refuse to replace a tested rate by one that it was not compared with on dev: that would be a pick on test."""
    for name, task in record["tasks"].items():
        for seed, part in by_seed(task, record["seed"]).items():
            runs = [run for run in plan.runs if run.task.name == name and run.seed == seed]
            rates = list(dict.fromkeys(_rate(run) for run in runs))
            if part["lr"] in rates or not any(
                _differs_in_rate_alone(run, part.get("folds", {None: part}).get(run.fold)) for run in runs
            ):
                continue
            both = ",".join(f"{rate}" for rate in [part["lr"], *rates])
            raise EkdError(
                f"--out {plan.out}: {name} was tested there at learning rate {part['lr']}, now "
                f"{','.join(map(str, rates))}; to pick on dev give all (--lr {name}:{both}), or {_ADVICE}"
            )


def _differs_in_rate_alone(run: Run, earlier: Mapping[str, Any] | None) -> bool:
    """Whether a planned run has the settings of an earlier, tested one but for the rate, and what that read is there.

    Args:
        earlier: its part of ``scores.json``.
    """
    marker = None if earlier is None else read_marker(run.expdir.parent / earlier["folder"])
    if marker is None or marker.state != "finished":
        return False
    same = _without_rate(marker.settings) == _without_rate(run.settings())
    return same and changed_input(marker.inputs) is None


def _without_rate(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, "overrides": {key: value for key, value in settings["overrides"].items() if key != LR_KEY}}


def _rate(run: Run) -> Any:
    return run.effective_config().get("optimizer", {}).get("lr")
