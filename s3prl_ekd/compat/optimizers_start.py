"""torch's optimizers without torch._dynamo: its import takes as long as torch's own, and it does nothing for them.

torch hides methods of its optimizers from torch.compile, or marks where a graph ends in them. For that they import
torch._dynamo when they are first called, whether anything is compiled or not. As long as nobody else has imported it
nothing is traced, and the methods behind do the same; from then on torch's own wrappers are called again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

_HIDDEN = "__dynamo_disable"
"""Under this name torch keeps, on a method that is to be hidden, what is called in its place (torch/_compile.py)."""


def start_without_dynamo() -> None:
    """Leave torch._dynamo out of every optimizer of ``torch.optim`` that was not used yet (repeatable)."""
    import torch

    for method in vars(torch.optim.Optimizer).values():
        if _is_of(method, "torch._compile") and not hasattr(method.__wrapped__, _HIDDEN):
            setattr(method.__wrapped__, _HIDDEN, _hidden(method))
    for kind in vars(torch.optim).values():
        step: Any = vars(kind).get("step") if isinstance(kind, type) else None
        if _is_of(step, "torch.optim.optimizer") and "torch._dynamo" in step.__code__.co_names:
            kind.step = _step(step)


def _is_of(function: Any, module: str) -> bool:
    """Whether it is a wrapper that this module of torch has made."""
    return hasattr(function, "__wrapped__") and getattr(function, "__globals__", {}).get("__name__") == module


def _hidden(wrapper: Any) -> Callable[..., Any]:
    method = wrapper.__wrapped__

    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return method(*args, **kwargs)
        delattr(method, _HIDDEN)  # torch finds its own
        return wrapper(*args, **kwargs)

    return call


def _step(wrapper: Any) -> Callable[..., Any]:
    """``step`` as torch's ``_use_grad_for_differentiable`` has it."""
    import torch

    method = wrapper.__wrapped__

    @wraps(wrapper)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" in sys.modules:
            return wrapper(self, *args, **kwargs)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return method(self, *args, **kwargs)

    return step
