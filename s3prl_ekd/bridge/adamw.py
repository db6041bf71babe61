"""The arithmetic of s3prl's ``AdamW_with_schedule`` without its questions; on a GPU over all weights at once.

s3prl's is a Lamb that is told to be an Adam: weight by weight it computes two norms for a trust ratio that it then sets
to 1, and asks the device whether they are zero. In a student of 52 weights that is 104 waits for the GPU a step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor


def step_at_once(optimizer: torch.optim.Optimizer) -> bool:
    """Replace the ``step`` of s3prl's ``AdamW_with_schedule``, in place; False for any other optimizer.

    State, schedule and learning rates stay s3prl's own, so that checkpoints of one go on with the other. (The norms and
    the trust ratio, which s3prl keeps in the state and never reads, are not in it.)
    """
    if type(optimizer).__name__ != "Lamb" or not getattr(optimizer, "adam", False):
        return False
    optimizer.step = MethodType(_step, optimizer)  # type: ignore[method-assign]
    return True


@torch.no_grad()
def _step(optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
    """``optimizer.step``: with m and v the moving means of g and g^2, and c their bias correction,

    w -= lr * schedule * c * (m / (sqrt(v) + eps) + weight_decay * w)
    """
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    for group in optimizer.param_groups:
        by_age: dict[int, list[Tensor]] = defaultdict(list)  # weights that always had a gradient are one list
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = optimizer.state[weight]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(weight), exp_avg_sq=torch.zeros_like(weight))
            state["step"] += 1
            by_age[state["step"]].append(weight)
        for age, weights in by_age.items():
            # a CPU is up to twice as fast weight by weight, whose numbers stay in its cache
            together = [[weight] for weight in weights] if weights[0].device.type == "cpu" else [weights]
            for some in together:
                _update(optimizer, group, age, some)
    return loss


def _update(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], age: int, weights: list[Tensor]) -> None:
    """Move weights that are at their ``age``-th step."""
    beta1, beta2 = group["betas"]
    gradients = [weight.grad for weight in weights if weight.grad is not None]  # all have one
    means = [optimizer.state[weight]["exp_avg"] for weight in weights]
    squares = [optimizer.state[weight]["exp_avg_sq"] for weight in weights]
    torch._foreach_mul_(means, beta1)
    torch._foreach_add_(means, gradients, alpha=1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
    scale = group["lr"]
    if group["correct_bias"]:
        scale = scale * math.sqrt(1.0 - beta2**age) / (1.0 - beta1**age)
    scale = scale * group["schedule"].get_lr(age)
    divisors = torch._foreach_sqrt(squares)
    torch._foreach_add_(divisors, group["eps"])
    moves = torch._foreach_div(means, divisors)
    if group["weight_decay"] != 0:
        torch._foreach_add_(moves, weights, alpha=group["weight_decay"])
    torch._foreach_add_(weights, moves, alpha=-scale)
