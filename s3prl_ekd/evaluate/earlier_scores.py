"""Refusals of a call that would replace or mix what earlier ones measured in its ``--out``, before anything runs.

Seeds, tasks, rates and rows add up (``kept_scores.py``). Refused are another model in a row, other settings in a row or
a table, data that have changed since, and a pick on test. ``--overwrite`` skips all of it. What a single run's folder
must not hold is in ``run.py`` (``check_marker``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.conditions import MODEL, SETTINGS, folds, other, other_override, overrides, rates
from s3prl_ekd.evaluate.inputs import changed_input, inputs
from s3prl_ekd.evaluate.kept_scores import table_rows
from s3prl_ekd.evaluate.marker import Marker, read_marker
from s3prl_ekd.evaluate.plan import ModelPlan, Run
from s3prl_ekd.evaluate.provenance import made_by
from s3prl_ekd.evaluate.results import by_seed
from s3prl_ekd.evaluate.scores_file import FILE_NAME, holds_table, own_record, read_models

log = logging.getLogger(__name__)

_ADVICE = "choose another --out, or --overwrite"
_OPTIONS = {
    "preset": "--preset", "data": "--data", "normalize": "--upstream-feature-normalize",
    "cache_states": "--cache-states",
}  # fmt: skip


def check_earlier_scores(plans: Sequence[ModelPlan], out: Path, preset: str) -> None:
    """See that the call adds to what ``out`` holds, and neither replaces any of it nor mixes it with what is unlike it.

    Args:
        plans: of all models of the call.
        out: its ``--out``.
        preset: its ``--preset``.

    Raises:
        EkdError: it does not; names what is there and what is now.
    """
    table = plans[0].out != out.resolve()
    if table and (out / FILE_NAME).is_file() and not holds_table(out):
        [(_, single)] = read_models(out)
        raise EkdError(f"--out {out}: holds the scores of one model ({single['label']}), now of a table; {_ADVICE}")
    for plan in plans:
        record = own_record(plan.out)
        if record is not None:
            _check_model(plan, record)
            _check_settings(plan, [record], preset, f"--out {plan.out}")
            for name, task in record["tasks"].items():
                _check_task(plan, record, name, task)
    called = {plan.out.name for plan in plans}
    rows = [(folder, row) for folder, row in table_rows(out) if folder not in called] if table else []
    for plan in plans if rows else ():
        _check_settings(plan, [row for _, row in rows], preset, f"--out {out}: the table")
        for folder, row in rows:
            if other(row, made_by(plan.upstream, plan.runs, preset), MODEL) is None:
                log.warning("%s: the model of the row %s, which is measured again", plan.upstream.label, row["label"])
            for name, task in row["tasks"].items():
                runs = [run for run in plan.runs if run.task.name == name]
                if runs:
                    _check_data(out / folder, f"{row['label']}, {name}", task, runs[0])


def _check_model(plan: ModelPlan, record: Mapping[str, Any]) -> None:
    key = other(record, made_by(plan.upstream, plan.runs, ""), MODEL)
    if key is None:
        return
    label = record["label"]
    if key == "checkpoint_sha256":
        changed = plan.upstream.checkpoint
        raise EkdError(f"--out {plan.out}: holds the scores of {label}, whose {changed} has changed since; {_ADVICE}")
    before = [record["upstream"], record.get("checkpoint"), record.get("model_config")]
    raise EkdError(
        f"--out {plan.out}: holds the scores of another model as {label} ({' '.join(str(one) for one in before if one)}"
        f", now {' '.join(plan.upstream.arguments()[1::2])}); give this one a label of its own (LABEL=VALUE), {_ADVICE}"
    )


def _check_settings(plan: ModelPlan, records: Sequence[Mapping[str, Any]], preset: str, where: str) -> None:
    """Refuse settings that none of the records has; a mixed table, which ``--overwrite`` makes, takes either."""
    now = made_by(plan.upstream, plan.runs, preset)
    found = None
    for record in records:
        key = other(record, now, SETTINGS)
        if key is not None:
            found = f"{_OPTIONS[key]} {_shown(record.get(key))} ({record['label']}), now {_shown(now[key])}"
        else:
            override = _other_override(plan, record)
            if override is None:
                return
            found = f"{override} ({record['label']})"
    raise EkdError(f"{where} was made with {found}; scores side by side need the same: {_ADVICE}")


def _shown(setting: Any) -> str:
    return {True: "on", False: "off"}[setting] if isinstance(setting, bool) else str(setting)


def _other_override(plan: ModelPlan, record: Mapping[str, Any]) -> str | None:
    for run in plan.runs:
        for part in by_seed(record["tasks"].get(run.task.name, {})).values():
            found = other_override(part, overrides(run))
            if found is not None:
                return f"{run.task.name}:{found}"
    return None


def _check_task(plan: ModelPlan, record: Mapping[str, Any], name: str, task: Mapping[str, Any]) -> None:
    """Refuse what does not go into one mean with a task's earlier seeds, or picks among them on test."""
    runs = [run for run in plan.runs if run.task.name == name]
    if not runs:
        return
    _check_data(plan.out, name, task, runs[0])
    seeds = by_seed(task, record.get("seed"))
    called = {run.seed for run in runs}
    now = list(dict.fromkeys(run.fold for run in runs if run.fold is not None))
    for seed, part in seeds.items():
        before = folds(part)
        if set(before) == set(now) or (seed in called and set(before) < set(now) and set(seeds) <= called):
            continue
        all_folds = ",".join(dict.fromkeys([*before, *now]))
        all_seeds = ",".join(str(one) for one in dict.fromkeys([*seeds, *sorted(called)]))
        raise EkdError(
            f"--out {plan.out}: {name} was tested there on {', '.join(before)} with seed {seed}, now on "
            f"{', '.join(now)}; give all (--folds {all_folds} --seeds {all_seeds}), or {_ADVICE}"
        )
    for seed, part in seeds.items():
        _check_rates(plan.out, name, part, [run for run in runs if run.seed == seed])


def _check_rates(out: Path, name: str, part: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Refuse to replace a tested rate by one that it was not compared with on dev: that would be a pick on test."""
    now = list(dict.fromkeys(_rate(run) for run in runs))
    if not now or part["lr"] in now or _begun_again(out, part):
        return
    both = ",".join(f"{rate}" for rate in dict.fromkeys([*rates(part), *now]))
    raise EkdError(
        f"--out {out}: {name} was tested there at learning rate {part['lr']}, now "
        f"{','.join(map(str, now))}; to pick on dev give all (--lr {name}:{both}), or {_ADVICE}"
    )


def _check_data(out: Path, what: str, task: Mapping[str, Any], run: Run) -> None:
    """Refuse to set a score beside ones whose runs read other contents under the same names as ``run`` does now."""
    now = inputs(run)
    for part in by_seed(task).values():
        for fold, one in part.get("folds", {None: part}).items():
            marker = _finished(out, one)
            changed = marker and changed_input({name: marker.inputs[name] for name in marker.inputs if name in now})
            if changed:
                which = what if fold is None else f"{what} {fold}"
                raise EkdError(
                    f"--out {out}: {which} was tested there with another {changed}: it has changed since; {_ADVICE} "
                    "to do it again"
                )


def _begun_again(out: Path, part: Mapping[str, Any]) -> bool:
    """Whether a run of a score that is there is being done again, so that the score does not count."""
    markers = [read_marker(out / "runs" / one["folder"]) for one in part.get("folds", {None: part}).values()]
    return any(marker is not None and marker.state != "finished" for marker in markers)


def _finished(out: Path, part: Mapping[str, Any]) -> Marker | None:
    marker = read_marker(out / "runs" / part["folder"])
    return marker if marker is not None and marker.state == "finished" else None


def _rate(run: Run) -> Any:
    return run.effective_config().get("optimizer", {}).get("lr")
