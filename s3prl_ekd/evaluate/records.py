"""The records of a call: each model's scores by task, with what made them, written as ``scores.json``, ``scores.md``.

How numbers are merged is in ``results.py``, the file's format in ``scores_file.py``, the tables in ``table.py``.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_ekd.evaluate.grid import finished_runs, searches
from s3prl_ekd.evaluate.grid_table import grid_markdown
from s3prl_ekd.evaluate.inputs import data_digest
from s3prl_ekd.evaluate.kept_scores import (
    earlier_record,
    rows_removed,
    table_rows,
    with_earlier_rows,
    with_earlier_seeds,
)
from s3prl_ekd.evaluate.marker import Results
from s3prl_ekd.evaluate.plan import ModelPlan, Run
from s3prl_ekd.evaluate.pretrainings import means
from s3prl_ekd.evaluate.provenance import machine, made_by, versions
from s3prl_ekd.evaluate.results import chance, merge_seeds, search_record
from s3prl_ekd.evaluate.scores_file import FILE_NAME, by_seed, own_record, write_scores
from s3prl_ekd.evaluate.table import score_markdown
from s3prl_ekd.evaluate.tasks import TASKS
from s3prl_ekd.whole_file import write_whole

MARKDOWN = "scores.md"
log = logging.getLogger(__name__)


def write_records(
    plans: Sequence[ModelPlan],
    costs: Sequence[Mapping[str, int] | None],
    results: Results,
    preset: str,
    devices: Sequence[str],
    out: Path,
) -> list[dict[str, Any]]:
    """Write ``scores.json`` and ``scores.md`` of each model and, where each has a folder in ``out``, the table of all.

    What earlier calls wrote there stays (``kept_scores.py``).

    Args:
        costs: each model's ``params`` and ``macs`` (``cost.py``).
        results: of the runs that are done; there may be none.

    Returns:
        the records, of a table all of them; empty where no task of any model is finished.
    """
    table = plans[0].out != out.resolve()
    rows = table_rows(out) if table else []
    called: dict[str, dict[str, Any] | None] = {}
    done = False
    for plan, cost in zip(plans, costs, strict=True):
        common = made_by(plan.runs, preset)
        runs = finished_runs(plan.runs, results)
        record = earlier_record(common, plan.out, {run.task.name for run in plan.runs}) if runs or table else None
        if runs:
            record = collect(common, runs, results, devices, cost, record)
            write_scores(record, plan.out)
            write_markdown([record], plan.out)
            done = True
        called[plan.out.name] = record
    if not done:
        return []
    if not table:
        return [record for record in called.values() if record is not None]
    single = own_record(out)
    if single is not None:
        log.warning("%s: the table replaces the scores of %s", out / FILE_NAME, single["label"])
    for label, file in rows_removed(out):
        log.warning("%s: %s is left out: %s is gone", out / FILE_NAME, label, file)
    for folder in (name for name, record in called.items() if record is None):
        for name in (FILE_NAME, MARKDOWN):  # of another model or setting, which this call replaces
            (out / folder / name).unlink(missing_ok=True)
    rows = with_earlier_rows(rows, called)
    records = [record for _, record in rows]
    found = means(records)
    models = [{"folder": folder, **record} for folder, record in rows]
    write_scores({"models": models, **({"means": found} if found else {})}, out)
    write_markdown(records, out)
    return records


def collect(
    common: Mapping[str, Any],
    runs: Sequence[Run],
    results: Results,
    devices: Sequence[str],
    cost: Mapping[str, int] | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of one model's evaluation: scores by task, and where, when and with what they were made.

    Args:
        common: the model and its settings (``provenance.made_by``).
        runs: this model's runs; ``results`` may hold others' too.
        devices: where runs went.
        cost: the upstream's ``params`` and ``macs`` (``cost.py``).
        earlier: the record of the same model and settings that this one adds to.
    """
    tasks: dict[str, Any] = dict(earlier["tasks"]) if earlier else {}
    for task in TASKS.values():
        mine = [search for search in searches(runs) if search.task is task]
        if mine:
            digest = data_digest(mine[0].runs[0])
            new = {search.seed: search_record(search, results) | {"data_sha256": digest} for search in mine}
            seeds = {str(seed): part for seed, part in with_earlier_seeds(task.name, earlier, new).items()}
            tasks[task.name] = merge_seeds(task, seeds) if len(seeds) > 1 else next(iter(seeds.values()))
            tasks[task.name]["chance"] = chance(task, mine[0].runs[0], tasks[task.name])
    tasks = {name: tasks[name] for name in TASKS if name in tasks}
    seeds_of_all = list(dict.fromkeys(seed for task in tasks.values() for seed in by_seed(task)))
    return {
        **common,
        "cost": dict(cost) if cost else None,
        "seed": seeds_of_all[0],
        "seeds": seeds_of_all,
        "tasks": tasks,
        "versions": versions(),
        "machine": machine(devices),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write_markdown(records: Sequence[dict[str, Any]], out: Path) -> None:
    """Write ``OUT/scores.md``: the score table, then the grid."""
    grid = grid_markdown(records)
    text = score_markdown(records) + (f"\n## Learning rates\n\n{grid}" if grid else "")
    write_whole(out / MARKDOWN, text)
