"""Sentences below a table on what its rows do not share, so that nobody compares what is not comparable.

``s3prl-ekd evaluate`` refuses most of it within one ``--out`` (``refusals.py``); ``--overwrite`` and a report of
several folders make such tables. Records of older versions lack some keys: nothing is said of those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from s3prl_ekd.evaluate.conditions import NOT_SET, normalised, overrides_of
from s3prl_ekd.evaluate.scores_file import by_seed, first_part, folds, rates, runs_of
from s3prl_ekd.spelling import NAMED, listed

Record = Mapping[str, Any]
_NOT, _UNEQUAL = "NOT comparable", "not the same for all rows"


def differences(records: Sequence[Record]) -> list[str]:
    """One sentence for each condition under which rows were made differently, and ER's folds in any case."""
    parts = _sentences("ER: ", _er_folds(records))
    parts += _if_unlike("Clips were encoded ", records, _clips)
    parts += _if_unlike("Upstream features: ", records, _features)
    parts += _if_unlike("Data of ", records, lambda r: r.get("data"), "comparable only if these hold the same")
    parts += _contents(records)
    presets = _if_unlike("Presets: ", records, lambda r: r.get("preset"), "comparable only if these train alike")
    parts += presets or _overrides(records)
    seeds = {record["label"]: seeds_text(record) for record in records}
    if any("/" in (text or "") for text in seeds.values()) or len(set(seeds.values()) - {None}) > 1:
        parts += _sentences("Seeds: ", seeds, _UNEQUAL)
    for task in dict.fromkeys(name for record in records for name in record["tasks"]):
        tried = {record["label"]: _rates(record, task) for record in records if task in record["tasks"]}
        if any(";" in (text or "") for text in tried.values()) or len(set(tried.values()) - {None}) > 1:
            parts += _sentences(f"{task.upper()}, learning rates tried: ", tried, _UNEQUAL)
    return parts + _if_unlike("Made with ", records, _versions, "comparable only if these compute the same")


def _if_unlike(
    start: str, records: Sequence[Record], of: Callable[[Record], str | None], verdict: str = _NOT
) -> list[str]:
    found = {record["label"]: of(record) for record in records}
    return _sentences(start, found, verdict) if len(set(found.values()) - {None}) > 1 else []


def _sentences(start: str, by_label: Mapping[str, str | None], verdict: str = _NOT) -> list[str]:
    """One sentence about all rows, which names the groups where rows were made under different conditions.

    Where all groups but a large one are named whole, that one is all others.
    """
    groups: dict[str, list[str]] = {}
    for label, condition in by_label.items():
        if condition is not None:
            groups.setdefault(condition, []).append(label)
    if len(groups) < 2:
        return [f"{start}{condition}." for condition in groups]
    large = [condition for condition, labels in groups.items() if len(labels) > NAMED]
    rest = large[0] if len(large) == 1 and len(groups) <= NAMED else None
    told = [
        f"{condition} ({'all others' if condition == rest else listed(labels)})" for condition, labels in groups.items()
    ]
    return [f"{start}{first_of(told)}: {verdict}."]


def first_of(parts: Sequence[str]) -> str:
    """``a; b; and 3 more``: the first :data:`NAMED`."""
    rest = [f"and {len(parts) - NAMED} more"] if len(parts) > NAMED else []
    return "; ".join([*parts[:NAMED], *rest])


def _clips(record: Record) -> str:
    return "alone" if record.get("cache_states") else "in padded batches"


def _features(record: Record) -> str:
    return "layer-normalised" if normalised(record) else "not normalised"


def _er_folds(records: Sequence[Record]) -> dict[str, str | None]:
    """The folds behind each row's ER: how many, or, where rows have as many but others, which."""
    by_label = {record["label"]: sorted(folds(first_part(record["tasks"].get("er", {})))) for record in records}
    distinct = {tuple(found) for found in by_label.values() if found}
    named = len({len(found) for found in distinct}) < len(distinct)
    return {
        label: None if not found
        else f"{found[0]} alone" if len(found) == 1
        else f"mean of {', '.join(found) if named else f'{len(found)} folds'}"
        for label, found in by_label.items()
    }  # fmt: skip


def _contents(records: Sequence[Record]) -> list[str]:
    """Of each task whose data or configuration have changed under their names since a row was tested."""
    if len({record.get("data") for record in records}) > 1:
        return []  # which is said, and other names have other contents
    parts = []
    for task in dict.fromkeys(name for record in records for name in record["tasks"]):
        of_task = [record for record in records if task in record["tasks"]]
        parts += _if_unlike(f"{task.upper()}, contents of the data: ", of_task, partial(_content, task=task))
    return parts


def _content(record: Record, task: str) -> str | None:
    digest = first_part(record["tasks"][task]).get("data_sha256")
    return None if digest is None else str(digest)[:8]


def seeds_text(record: Record) -> str | None:
    """The seeds of a record as ``1, 2``, or ``pr 1 / sid 1, 2`` where tasks have their own; None where unknown."""
    by_task = {
        name: ", ".join(map(str, seeds))
        for name, task in record["tasks"].items()
        if None not in (seeds := sorted(by_seed(task), key=lambda seed: -1 if seed is None else seed))
    }
    if len(set(by_task.values())) < 2:
        return next(iter(by_task.values()), None)
    return " / ".join(f"{name} {seeds}" for name, seeds in by_task.items())


def _rates(record: Record, task: str) -> str | None:
    """The rates that each seed tried, seeds with equal ones together."""
    by_rates: dict[str, list[str]] = {}
    for seed, part in by_seed(record["tasks"][task]).items():
        tried = sorted((rate for rate in rates(part) if isinstance(rate, int | float)), reverse=True)
        if tried:
            by_rates.setdefault(", ".join(f"{rate:g}" for rate in tried), []).append(str(seed))
    if len(by_rates) < 2:
        return next(iter(by_rates), None)
    return "; ".join(f"{tried} with seed {', '.join(seeds)}" for tried, seeds in by_rates.items())


def _overrides(records: Sequence[Record]) -> list[str]:
    found: dict[tuple[str, str], dict[str, str | None]] = {}
    of_task: dict[str, dict[str, Mapping[str, str]]] = {}
    for record in records:
        for name, task in record["tasks"].items():
            items = overrides_of(first_part(task))
            if items is not None:
                of_task.setdefault(name, {})[record["label"]] = items
    for name, by_label in of_task.items():
        for key in dict.fromkeys(key for items in by_label.values() for key in items):
            found[name, key] = {label: items.get(key, NOT_SET) for label, items in by_label.items()}
    return [
        sentence
        for (name, key), by_label in found.items()
        if len(set(by_label.values())) > 1
        for sentence in _sentences(f"{name.upper()}, {key}: ", by_label)
    ]


def _versions(record: Record) -> str | None:
    found: dict[str, dict[str, None]] = {}
    for task in record["tasks"].values():
        for part in by_seed(task).values():
            for run in runs_of(part).values():
                for name, version in run.get("versions", {}).items():
                    found.setdefault(name, {})[version] = None
    return ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.items()) or None
