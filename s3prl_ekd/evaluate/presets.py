"""Presets: how long, how and at which rates each task trains, as data (``presets.yaml``).

They become overrides: s3prl's own ``-o`` items (``config.optimizer.lr=0.01``). s3prl evaluates a value as Python; here
they are only ever literals, read back with ``ast.literal_eval`` when a run's effective configuration is needed.
"""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass
from typing import Any

from s3prl_ekd.bridge.arguments import check_override_value
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.tasks import TASKS, split_task
from s3prl_ekd.own_scripts import fits_option
from s3prl_ekd.shipped import shipped

Overrides = dict[str, str]  # key -> value as s3prl's -o spells it


def preset_names() -> list[str]:
    """Names of the presets in the packaged table."""
    return list(_table())


@dataclass(frozen=True)
class Preset:
    """How tasks are trained."""

    about: str
    """For ``--help``."""
    normalize: bool
    """s3prl's ``--upstream_feature_normalize``."""
    tasks: dict[str, Overrides]
    grid: dict[str, list[float]]
    """Task -> learning rates to search; a task that is not there trains at its configuration's."""
    only: tuple[str, ...]
    """The tasks that it is for."""


def preset(name: str) -> Preset:
    """A preset by its name.

    Raises:
        EkdError: a name that is not in the table.
    """
    table = _table()
    if name not in table:
        raise EkdError(f"--preset: no preset {name!r}; expected one of {', '.join(table)}")
    entry = table[name]
    common = entry.get("all", {})
    tasks = {}
    for task in TASKS:
        items = {**common, **entry.get(task, {})}
        workers = items.pop("num_workers", None)
        if workers is not None:
            items[TASKS[task].workers_key] = workers
        tasks[task] = {key: literal(key, value) for key, value in items.items()}
    grid = {task: [float(rate) for rate in rates] for task, rates in entry.get("lr", {}).items()}
    only = tuple(entry.get("only", TASKS))
    return Preset(entry["about"], bool(entry.get("upstream_feature_normalize", False)), tasks, grid, only)


def literal(key: str, value: Any) -> str:
    """Spell a value as s3prl's ``-o`` can carry it.

    Raises:
        EkdError: one that it cannot.
    """
    text = repr(value)
    if not fits_option(text):
        raise EkdError(f"override {key}: s3prl's -o cannot carry a value holding '=' or ',,': {text}")
    return text


def parse_overrides(items: list[str]) -> dict[str, Overrides]:
    """Sort ``["pr:config.optimizer.lr=1e-2", "config.runner.total_steps=10"]`` by task; without a task: for all.

    Raises:
        EkdError: an unknown task, or no ``config.key=value`` that s3prl's ``-o`` takes.
    """
    result: dict[str, Overrides] = {task: {} for task in TASKS}
    for item in items:
        task, body = split_task(item)
        if task is not None and task not in TASKS:
            raise EkdError(f"--override {item!r}: unknown task {task!r}; expected one of {', '.join(TASKS)}")
        for part in filter(None, (text.strip() for text in body.split(",,"))):
            key, equals, value = part.partition("=")
            if not equals or "=" in value or not key.strip().startswith(("config.", "args.")):
                raise EkdError(f"--override {item!r}: expected TASK:config.some.key=value, as s3prl's -o takes it")
            check_override_value(f"--override {item!r}", value)
            for name in TASKS if task is None else [task]:
                result[name][key.strip()] = value.strip()
    return result


def apply_overrides(config: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """The configuration that the runner will see: a copy of ``config`` with the ``config.*`` overrides in place."""
    config = copy.deepcopy(config)
    for key, text in overrides.items():
        first, *path = key.split(".")
        if first != "config":
            continue
        target = config
        for name in path[:-1]:
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                raise EkdError(f"override {key}: {name} is not a section of the task's configuration")
        try:
            target[path[-1]] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            target[path[-1]] = text  # as s3prl: what is no Python value stays a string
    return config


def _table() -> dict[str, Any]:
    return read_yaml(shipped("evaluate/presets.yaml"))
