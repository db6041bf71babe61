"""torch's optimizers without torch._dynamo: their numbers, and what happens once somebody imports it all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

KINDS = ["Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"]

# WHEN KINDS: "patched" before the first optimizer, "imported" between two steps; prints the weights' sums
SCRIPT = """
import json, sys
import torch
when, kinds = sys.argv[1].split("+"), json.loads(sys.argv[2])
if "patched" in when:
    from s3prl_ekd.compat.optimizers_start import start_without_dynamo
    start_without_dynamo()
    start_without_dynamo()
found, there = {}, []
for kind in kinds:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(5)), torch.nn.Parameter(torch.randn(2))]
    make = lambda: getattr(torch.optim, kind)([{"params": [weight]} for weight in weights], lr=0.1)
    optimizer = make()
    for step in range(4):
        optimizer.zero_grad()
        sum(weight.square().sum() for weight in weights).backward()
        optimizer.step()
        if step == 1:
            state, optimizer = optimizer.state_dict(), make()
            optimizer.load_state_dict(state)
            there.append("torch._dynamo" in sys.modules)
            if "imported" in when:
                import torch._dynamo
    assert torch.is_grad_enabled()
    found[kind] = [weight.detach().double().sum().item() for weight in weights]
print(json.dumps([found, there, "torch._dynamo" in sys.modules]))
"""


def steps(when: str, kinds: list[str]) -> Any:
    words = [sys.executable, "-W", "ignore", "-c", SCRIPT, when, json.dumps(kinds)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_optimizer_makes_torchs_steps() -> None:
    plain, there, _ = steps("plain", KINDS)
    if not there[0]:
        pytest.skip("this torch does not import torch._dynamo for its optimizers")
    assert len(set(map(str, plain.values()))) == len(KINDS)  # the numbers tell them apart
    assert steps("patched", KINDS) == [plain, [False] * len(KINDS), False]
    one = {"Adam": plain["Adam"], "SGD": plain["SGD"]}
    assert steps("patched+imported", [*one]) == [one, [False, True], True]
