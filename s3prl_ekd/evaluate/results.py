"""Pure computation on results: one task's record, merged over learning rates, folds and seeds; its chance level.

What a record's keys mean is in ``scores_file.py``; ``chance`` alone reads files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from s3prl_ekd.corpora.split_file import read_split_file, speaker_of
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.conditions import with_effect
from s3prl_ekd.evaluate.grid import Search
from s3prl_ekd.evaluate.marker import Results
from s3prl_ekd.evaluate.plan import Run
from s3prl_ekd.evaluate.score import read_predictions
from s3prl_ekd.evaluate.scores_file import first_part, folds, rates
from s3prl_ekd.evaluate.tasks import Task


def search_record(search: Search, results: Results) -> dict[str, Any]:
    """The record of one task at one seed: the picked rate's scores and, where there was a choice, the whole grid.

    ``seconds`` counts every training, picked or not.
    """
    task, rate = search.task, search.picked(results)
    picked = search.at(rate)
    parts: list[dict[str, Any]] = [{**results[run.key], "folder": run.expdir.name} for run in picked]
    by_fold = {run.fold: part for run, part in zip(picked, parts, strict=True) if run.fold is not None}
    record = merge_folds(task, by_fold) if by_fold else parts[0]
    record["seconds"] = round(sum(results[run.key]["seconds"] for run in search.runs), 1)
    record |= {"seed": search.seed, "overrides": with_effect(picked[0].overrides)}
    if len(search.rates) > 1:
        record["grid"] = [
            {
                "lr": one,
                "dev": search.dev(one, results),
                "picked": one == rate,
                "seconds": round(sum(results[run.key]["seconds"] for run in search.at(one)), 1),
                **({"folds": {run.fold: results[run.key]["dev"] for run in search.at(one)}} if by_fold else {}),
            }
            for one in search.rates
        ]
    return record


def merge_seeds(task: Task, seeds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Merge a task's records at several seeds into one: means, their standard error, and every seed's own record."""
    parts = list(seeds.values())
    dev = [part["dev"] for part in parts if part["dev"] is not None]
    picked = {part["lr"] for part in parts}
    return {
        **mean_scores(task, parts),
        "dev": fmean(dev) if dev else None,
        "seconds": round(sum(part["seconds"] for part in parts), 1),
        "steps": parts[0]["steps"],
        "lr": picked.pop() if len(picked) == 1 else None,  # None: not the same for all seeds
        "n_utterances": parts[0]["n_utterances"],
        "seeds": seeds,
        "commands": [command for part in parts for command in part["commands"]],
    }


def mean_scores(task: Task, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means of a task's scores, ours (``rescored``) too, and of several their ``standard_error``."""
    ours = [key for key in (task.metric, "cer", "majority") if all(key in part["rescored"] for part in parts)]
    rescored: dict[str, Any] = {key: fmean(part["rescored"][key] for part in parts) for key in ours}
    rescored["agrees"] = all(part["rescored"].get("agrees", True) for part in parts)
    found: dict[str, Any] = {task.metric: fmean(part[task.metric] for part in parts), "rescored": rescored}
    if len(parts) > 1:
        found["standard_error"] = {task.metric: standard_error([part[task.metric] for part in parts])}
        if "cer" in rescored:
            found["standard_error"]["cer"] = standard_error([part["rescored"]["cer"] for part in parts])
    return found


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean: the sample standard deviation over the square root of the number of values."""
    return stdev(values) / math.sqrt(len(values))


def merge_grids(earlier: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any] | None:
    """``new``, one seed's part of a task, with the rates in its grid that an ``earlier`` part has tried too.

    The pick stays right: the earlier pick is among the new rates, and so no better on dev than the new one. Where it is
    not, or has another dev score there, the parts are not of the same runs: None.
    """
    tried = {rate: one for rate, one in _grid(earlier).items() if rate not in rates(new)}
    kept = _grid(earlier).get(earlier.get("lr"))
    if kept is None or kept["dev"] != _grid(new).get(earlier.get("lr"), {}).get("dev"):
        return None
    if not tried:
        return dict(new)
    grid = [*({**one, "picked": False} for one in tried.values()), *_grid(new).values()]
    theirs = sum(one.get("seconds", 0.0) for one in tried.values())  # older versions did not note them
    return {**new, "grid": grid, "seconds": round(max(earlier["seconds"], new["seconds"] + theirs), 1)}


def _grid(part: Mapping[str, Any]) -> dict[Any, dict[str, Any]]:
    """Learning rate -> its entry of ``grid``; of a part that tried one rate alone the entry that it would have."""
    alone = {"lr": part.get("lr"), "dev": part["dev"], "picked": True, "seconds": part["seconds"]}
    if folds(part):
        alone["folds"] = {fold: one["dev"] for fold, one in part["folds"].items()}
    return {one["lr"]: one for one in part.get("grid", [alone])}


def merge_folds(task: Task, parts_by_fold: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Merge a task's folds into one record: means of the scores, sums of seconds and utterances, every fold kept."""
    parts = list(parts_by_fold.values())
    dev = [part["dev"] for part in parts if part["dev"] is not None]
    return {
        task.metric: fmean(part[task.metric] for part in parts),
        "rescored": {
            task.metric: fmean(part["rescored"][task.metric] for part in parts),
            "majority": fmean(part["rescored"]["majority"] for part in parts),
            "agrees": all(part["rescored"]["agrees"] for part in parts),
        },
        "dev": fmean(dev) if dev else None,
        "seconds": round(sum(part["seconds"] for part in parts), 1),
        "steps": parts[0]["steps"],
        "lr": parts[0]["lr"],
        "n_utterances": sum(part["n_utterances"] for part in parts),
        "folds": parts_by_fold,
        "commands": [command for part in parts for command in part["commands"]],
    }


def chance(task: Task, run: Run, record: dict[str, Any]) -> float | None:
    """The chance level in percent: for SID one in the number of speakers, else that of the commonest answer.

    That is ER's commonest emotion, KS's word, IC's intent; PR and ASR have none.

    Raises:
        EkdError: SID's split file cannot be read.
    """
    if task.name == "er":
        return _commonest_emotion(task, run.expdir.parent, record)
    if task.name in ("ks", "ic"):
        return float(record["rescored"]["majority"])
    if task.name != "sid":
        return None
    split_file = Path(run.effective_config()["downstream_expert"]["datarc"]["meta_data"])
    try:
        return 100.0 / len({speaker_of(path) for _, path in read_split_file(split_file)})
    except EkdError as error:
        raise EkdError(f"{run.config}: downstream_expert.datarc.meta_data: {error}") from error


def _commonest_emotion(task: Task, runs: Path, record: Mapping[str, Any]) -> float | None:
    """The score of the commonest emotion of ALL folds, in percent, as the mean of the folds.

    (``majority`` is what each test fold's own commonest one would: nobody knows that one beforehand.)
    """
    parts = first_part(record)["folds"]
    try:
        counts = [
            Counter(read_predictions(runs / part["folder"] / task.reference.format(fold=fold)).values())
            for fold, part in parts.items()
        ]
    except EkdError:
        return None  # of a finished run, whose files may have been cleared away
    commonest = sum(counts, Counter()).most_common(1)[0][0]
    return 100.0 * fmean(count[commonest] / count.total() for count in counts)
