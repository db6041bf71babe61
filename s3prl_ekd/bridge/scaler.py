"""The fp16 loss scaler of s3prl's two runners, made reachable for who keeps a run's state in its checkpoints.

The runners make a GradScaler as a local variable and never save it. The launchers put :class:`TrackedGradScaler` in
its place, so that the pretraining expert and ``training_place.py`` can write its state and have it restored::

    state["scaler"] = scaler_state()            # on saving
    load_state_on_create(state["scaler"])       # on loading
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

_current: weakref.ref[TrackedGradScaler] | None = None
_pending: dict[str, Any] | None = None


class TrackedGradScaler(torch.amp.GradScaler):
    """``torch.amp.GradScaler("cuda", ...)`` that registers itself, and takes up a waiting state when it is made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("cuda", *args, **kwargs)
        global _current, _pending
        _current = weakref.ref(self)
        if _pending and self.is_enabled():
            self.load_state_dict(_pending)
        _pending = None


def scaler_state() -> dict[str, Any] | None:
    """The ``state_dict()`` of the newest scaler in use; None without one (no fp16, or not through our launcher)."""
    scaler = None if _current is None else _current()
    return None if scaler is None else scaler.state_dict()


def load_state_on_create(state: dict[str, Any] | None) -> None:
    """Keep a ``GradScaler.state_dict()`` for the next scaler: the runner makes it after the expert has loaded."""
    global _pending
    _pending = dict(state) if state else None
