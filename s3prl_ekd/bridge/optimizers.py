"""Optimizers and schedules as s3prl's two runners build them, with what they lack: clear errors, and a way to go on.

s3prl evaluates ``optimizer.name`` and ``scheduler.name`` as expressions, out of a checkpoint too: here a name must be
one of its functions. What a run that goes on may change is :data:`CHANGEABLE`; s3prl takes everything else of an
optimizer from the checkpoint and says nothing.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from s3prl_ekd.checked import reads_as_text
from s3prl_ekd.errors import EkdError, one_line
from s3prl_ekd.spelling import did_you_mean

_current: weakref.ref[Any] | None = None

CHANGEABLE = ("lr", "betas", "eps", "warmup_proportion")
"""Keys of ``optimizer`` that ``-o`` may give another value in a run that goes on."""


def with_clear_errors(build: Callable[..., Any], section: str, source: Callable[[], str]) -> Callable[..., Any]:
    """s3prl's ``get_optimizer`` or ``get_scheduler``, with one line for a section that fits none of its functions.

    Args:
        build: called with what is optimised, the number of steps, and the section's values.
        section: its key in the configuration: "optimizer" or "scheduler".
        source: tells the configuration's file, for messages.

    Returns:
        A function of the same arguments; it raises EkdError for an unknown name, and for keys that it does not take.
    """
    build = inspect.unwrap(build)  # in a process that runs several commands, it is the last one's
    module = sys.modules[build.__module__]
    known = {name.removeprefix("get_") for name in vars(module) if name.startswith("get_")} - {
        "optimizer", "scheduler", "grouped_parameters",
    }  # fmt: skip

    @wraps(build)
    def wrapper(target: Any, total_steps: int, config: Mapping[str, Any]) -> Any:
        name = config.get("name") if isinstance(config, Mapping) else None
        if not isinstance(name, str) or name not in known:
            hint = did_you_mean(str(name), known)
            raise EkdError(f"{source()}: {section}.name: {name!r} is none of {', '.join(sorted(known))}{hint}")
        for key, value in config.items():
            for number in value if isinstance(value, list | tuple) else (value,):
                if said := reads_as_text(number):
                    raise EkdError(f"{source()}: {section}.{key}: {said}")
        try:
            built = build(target, total_steps, config)
            for factor in getattr(built, "lr_lambdas", ()):
                factor(total_steps)  # which the runner asks for after the last step, before it saves
        except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError, AssertionError) as error:
            raise EkdError(f"{source()}: {section}: no {name} can be made of these keys ({one_line(error)})") from error
        if section != "optimizer":
            return built
        reason = _unusable(built)
        if reason:
            raise EkdError(f"{source()}: {section}: {type(built).__name__} {reason}")
        return _completed(built)

    return wrapper


def _unusable(optimizer: Any) -> str:
    """Why s3prl's runners cannot step this optimizer of torch's; empty where they can."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:  # LBFGS
        return "computes the loss several times a step, which s3prl's runner does not"
    if type(optimizer).__name__ == "SparseAdam":
        return "takes sparse gradients, which no model here has"
    return ""


def _completed(optimizer: Any) -> Any:
    """The optimizer, which is the current one from now on.

    ``AdamW_with_schedule`` asks the device nothing (:mod:`s3prl_ekd.bridge.adamw`). One that has made no step yet
    answers ``get_lr()`` with its rates at step 0: s3prl's answer an empty list, and the runner takes the first of it.
    """
    from s3prl_ekd.bridge.adamw import step_at_once  # imports torch

    if hasattr(optimizer, "get_lr"):
        after_a_step = optimizer.get_lr
        optimizer.get_lr = lambda: after_a_step() or [_first_rate(group) for group in optimizer.param_groups]
    step_at_once(optimizer)
    global _current
    _current = weakref.ref(optimizer)
    return optimizer


def _first_rate(group: Mapping[str, Any]) -> float:
    schedule = group.get("schedule")
    return group["lr"] * (1.0 if schedule is None else schedule.get_lr(0))


def current_rate() -> float | None:
    """The learning rate of the step that comes next, of the optimizer made last, its first group's; None without one.

    (The runner keeps its optimizer to itself, and tells tensorboard the configured rate of those without ``get_lr``,
    whatever a scheduler makes of it.)
    """
    optimizer = _current() if _current is not None else None
    if optimizer is None:
        return None
    if type(optimizer).__name__ == "Lamb":  # counts a step before it asks for its rate, and get_lr() is of the last one
        group = optimizer.param_groups[0]
        made = max((optimizer.state.get(weight, {}).get("step", 0) for weight in group["params"]), default=0)
        return float(group["lr"] * group["schedule"].get_lr(made + 1, nowarn=True)) + 0.0  # not -0.0, as of the last
    return float(optimizer.get_lr()[0] if hasattr(optimizer, "get_lr") else optimizer.param_groups[0]["lr"])


def go_on(scheduler: Any, optimizer: Any) -> Any:
    """The scheduler, with the optimizer at the rate of the step that comes next.

    A LambdaLR sets the rate of step 0 when it is made, and taking up a state does not set it back: the first step of a
    run that goes on would be made at that rate.
    """
    rates = zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    for group, base, factor in rates:
        group["lr"] = base * factor(scheduler.last_epoch)
    return scheduler


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What ``-o`` changes of the section ``optimizer`` of a run that goes on.

    Args:
        before, now: the configuration as the checkpoint holds it, and with ``-o``.

    Raises:
        EkdError: a key that has no effect any more; a scheduler that comes, without a state to go on from, or goes.
    """
    if bool(before.get("scheduler")) != bool(now.get("scheduler")):
        raise EkdError(
            "-o config.scheduler: a resumed run keeps what it was started with; a scheduler cannot be added or removed"
        )
    old, new = before.get("optimizer") or {}, now.get("optimizer") or {}
    found = {key: value for key, value in new.items() if old.get(key) != value}
    for key in found:
        if key not in CHANGEABLE:
            raise EkdError(
                f"-o config.optimizer.{key}: a resumed run keeps its optimizer; only {', '.join(CHANGEABLE)} can change"
            )
    return found


def apply_changes(state: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Put :func:`changes` into a checkpoint's ``Optimizer`` and ``Scheduler``, in place.

    Raises:
        EkdError: the optimizer has no such value.
    """
    for group in state["Optimizer"].get("param_groups", []):
        for key, value in changed.items():
            if key == "warmup_proportion" and group.get("schedule") is not None:
                group["schedule"].warmup = max(value, 0.0)  # -1 is none: half of every rate, were it kept
            elif key in group:
                group[key] = value
            else:
                raise EkdError(f"-o config.optimizer.{key}: this run's optimizer has no such key")
    if "lr" in changed and "Scheduler" in state:
        rates = state["Scheduler"]["base_lrs"]
        state["Scheduler"]["base_lrs"] = [changed["lr"]] * len(rates)
