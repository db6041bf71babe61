"""Refusals of a call that would replace or mix what earlier ones measured in its ``--out``, before anything runs.

Seeds, tasks, rates and rows add up (``kept_scores.py``). Refused are another model in a row, other settings in a row or
a table, data that have changed since, and a pick on test. ``--overwrite`` skips all of it. What a single run's folder
must not hold is in ``run.py`` (``check_marker``).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.conditions import DIGEST, MODEL, SETTINGS, other, other_override, with_effect
from s3prl_ekd.evaluate.inputs import changed_input, inputs, model_digest
from s3prl_ekd.evaluate.kept_scores import scored_runs, table_rows
from s3prl_ekd.evaluate.plan import ModelPlan, Run
from s3prl_ekd.evaluate.provenance import made_by
from s3prl_ekd.evaluate.scores_file import FILE_NAME, by_seed, folds, holds_table, own_record, rates, read_models

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
        raise EkdError(
            f"--out {out}: holds the scores of one model ({single['label']}), and this call makes a table; {_ADVICE}"
        )
    for plan in plans:
        record = own_record(plan.out)
        if record is not None:
            _check_model(plan, record, table)
            _check_settings(plan, [record], preset, f"--out {plan.out}")
            for name in record["tasks"]:
                _check_task(plan.out, record, name, [run for run in plan.runs if run.task.name == name])
    called = {plan.out.name for plan in plans}
    rows = [(folder, row) for folder, row in table_rows(out) if folder not in called] if table else []
    for plan in plans if rows else ():
        _check_settings(plan, [row for _, row in rows], preset, f"--out {out}: the table")
        for folder, row in rows:
            for run in _first_runs(plan):
                if run.task.name in row["tasks"]:
                    _check_data(out / folder, row, run.task.name, f"{row['label']}, {run.task.name}", inputs(run))


def tell_second_rows(plans: Sequence[ModelPlan], out: Path) -> None:
    """Log which models of the call are in a table already, under other labels."""
    called = {plan.out.name for plan in plans}
    rows = [row for folder, row in table_rows(out) if folder not in called]
    for plan in plans:
        for row in rows:
            if other(row, made_by(plan.runs, ""), MODEL) is None:
                log.warning("%s: the same model as the row %s; evaluated again", plan.upstream.label, row["label"])


def _check_model(plan: ModelPlan, record: Mapping[str, Any], table: bool) -> None:
    key = other(record, made_by(plan.runs, ""), MODEL)
    if key is None:
        return
    label = record["label"]
    if key == "checkpoint_sha256":
        changed = plan.upstream.checkpoint
        raise EkdError(f"--out {plan.out}: holds the scores of {label}, whose {changed} has changed since; {_ADVICE}")
    if key == "checkpoint" and record["checkpoint_sha256"] == model_digest(plan.upstream) is not None:
        raise EkdError(
            f"--out {plan.out}: holds the scores of {label}, whose weights were then {record['checkpoint']}, now "
            f"{plan.upstream.checkpoint}; move them back, {_ADVICE}"
        )
    give = "give this one a label of its own (LABEL=VALUE), " if table else ""
    before = [record.get(one) for one in MODEL if one != DIGEST and record.get(one) is not None]
    raise EkdError(
        f"--out {plan.out}: holds the scores of another model as {label} ({' '.join(map(str, before))}"
        f", now {' '.join(plan.upstream.arguments()[1::2])}); {give}{_ADVICE}"
    )


def _check_settings(plan: ModelPlan, records: Sequence[Mapping[str, Any]], preset: str, where: str) -> None:
    """Refuse settings, or a task's overrides, that none of the records was made with.

    Where ``--overwrite`` has mixed several in one table, any of them will do.
    """
    now = made_by(plan.runs, preset)
    unlike = [(record, other(record, now, SETTINGS)) for record in records]
    found = [
        f"{_OPTIONS[key]} {_shown(record.get(key))} ({record['label']}), now {_shown(now[key])}"
        for record, key in unlike
        if key is not None
    ]
    if len(found) < len(records):
        found = _other_overrides(plan, [record for record, key in unlike if key is None])
    if found:
        raise EkdError(f"{where} was made with {found[-1]}; scores side by side need the same: {_ADVICE}")


def _shown(setting: Any) -> str:
    return {True: "on", False: "off"}[setting] if isinstance(setting, bool) else str(setting)


def _other_overrides(plan: ModelPlan, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the records' overrides of a task differ from the plan's, of the first task where all that have it do."""
    for run in _first_runs(plan):
        found = [
            (other_override(part, with_effect(run.overrides)), record["label"])
            for record in records
            for part in by_seed(record["tasks"].get(run.task.name, {})).values()
            if part
        ]
        if found and all(override is not None for override, _ in found):
            return [f"{run.task.name}:{override} ({label})" for override, label in found]
    return []


def _first_runs(plan: ModelPlan) -> list[Run]:
    """One run of each task."""
    return list({run.task.name: run for run in reversed(plan.runs)}.values())[::-1]


def _check_task(out: Path, record: Mapping[str, Any], name: str, runs: Sequence[Run]) -> None:
    """Refuse what does not go into one mean with a task's earlier seeds, replaces them, or picks among them on test.

    Args:
        runs: of this call, of that task; there may be none.
    """
    _check_data(out, record, name, name, called=bool(runs))
    if not runs:
        return
    task = record["tasks"][name]
    seeds = by_seed(task)
    called = {run.seed for run in runs}
    now = list(dict.fromkeys(run.fold for run in runs if run.fold is not None))
    for seed, part in seeds.items():
        before = folds(part)
        wider = set(before) < set(now) and set(seeds) <= called
        if not wider and set(before) != set(now):
            all_folds = ",".join(dict.fromkeys([*before, *now]))
            all_seeds = ",".join(str(one) for one in dict.fromkeys([*seeds, *sorted(called)]))
            raise EkdError(
                f"--out {out}: {name} was tested there on {', '.join(before)} with seed {seed}, now on "
                f"{', '.join(now)}; give all (--folds {all_folds} --seeds {all_seeds}), or {_ADVICE}"
            )
        mine = [run for run in runs if run.seed == seed]
        if mine:
            _check_rates(out, name, part, mine, rates(part) if wider else [part["lr"]])
    for seed, _, folder, marker in scored_runs(task, out):
        if seed in called and marker is None:
            raise EkdError(
                f"--out {out}: {name} was tested there with seed {seed} in {folder}, which is gone or another run's; "
                f"leave it out of this call, {_ADVICE} to do it again"
            )


def _check_rates(out: Path, name: str, part: Mapping[str, Any], runs: Sequence[Run], needed: Sequence[Any]) -> None:
    """Refuse to replace a tested rate by one that it was not compared with on dev: that would be a pick on test.

    Args:
        needed: rates that have to be among those of ``runs``: the tested one, of fewer folds all that were tried.
    """
    now = list(dict.fromkeys(run.effective_config()["optimizer"].get("lr") for run in runs))
    begun_again = any(run.marker and run.marker.state != "finished" for run in scored_runs(part, out))
    if set(needed) <= set(now) or begun_again:
        return
    both = ",".join(f"{rate}" for rate in dict.fromkeys([*rates(part), *now]))
    raise EkdError(
        f"--out {out}: {name} was tested there at learning rate {part['lr']}"
        + (f", the best of {', '.join(map(str, rates(part)))} on dev" if len(needed) > 1 else "")
        + f", now {','.join(map(str, now))}; to pick on dev give all (--lr {name}:{both}), or {_ADVICE}"
    )


def _check_data(
    out: Path,
    record: Mapping[str, Any],
    name: str,
    what: str,
    now: Collection[str] | None = None,
    called: bool = True,
) -> None:
    """Refuse to set a score beside ones of a task whose runs read other contents under the same names.

    Args:
        out: the record's folder.
        now: names of the inputs that count; None for all.
        called: whether the call has that task of the same model; otherwise its data may have been cleared away.
    """
    for *_, marker in scored_runs(record["tasks"][name], out):
        if marker is not None and marker.state == "finished":
            read = {one: digest for one, digest in marker.inputs.items() if now is None or one in now}
            changed = changed_input(read, or_gone=called)
            if changed:
                raise EkdError(
                    f"--out {out}: {what} was tested there before {changed} changed; {_ADVICE} to do it again"
                )
