"""s3prl's AdamW_with_schedule, all weights at once: against s3prl's own step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from s3prl_ekd.bridge import optimizers as bridge_optimizers
from s3prl_ekd.bridge.adamw import step_at_once
from s3prl_ekd.compat.hub import register


@pytest.fixture(scope="module")
def optimizers():
    register()
    from s3prl import optimizers

    return optimizers


def models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"a": nn.Linear(7, 5), "norm": nn.LayerNorm(5), "b": nn.Linear(5, 3), "sometimes": nn.Linear(5, 3)}
    )
    model["constant"] = nn.Linear(2, 2)
    model["constant"].requires_grad_(False)
    return model, copy.deepcopy(model)


def gradients(model: nn.Module, step: int) -> None:
    """Gradients of one step; one layer has none in every third step, so that its weights are younger."""
    torch.manual_seed(100 + step)
    x = torch.randn(11, 7)
    hidden = model["norm"](model["a"](x)).relu()
    out = model["b"](hidden) + (model["sometimes"](hidden) if step % 3 else 0)
    model.zero_grad(set_to_none=True)
    out.square().mean().backward()


def weights(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in model.parameters()]


@pytest.mark.parametrize("more", [{}, {"betas": [0.8, 0.99], "eps": 1e-3}])
def test_the_weights_are_s3prls(optimizers, more: dict) -> None:
    theirs, ours = models()
    config = {"name": "AdamW_with_schedule", "lr": 1e-2, "warmup_proportion": 0.2, **more}
    made = [optimizers.get_optimizer([one], 40, config) for one in (theirs, ours)]
    assert step_at_once(made[1])
    for step in range(40):
        for model, optimizer in zip((theirs, ours), made, strict=True):
            gradients(model, step)
            optimizer.step()
        assert made[0].get_lr() == made[1].get_lr()
        for one, other in zip(weights(theirs), weights(ours), strict=True):
            assert torch.equal(one, other), step
    kept, new = (optimizer.state_dict() for optimizer in made)
    assert kept["state"].keys() == new["state"].keys()
    for index, state in new["state"].items():
        assert set(state) in (set(), {"step", "exp_avg", "exp_avg_sq"})  # empty: a weight without gradients
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(kept["state"][index][key]))
    assert sum(map(bool, new["state"].values())) == 8


def test_a_run_goes_on_from_s3prls_state(optimizers) -> None:
    theirs, ours = models()
    config = {"name": "AdamW_with_schedule", "lr": 1e-2}
    first, second = (optimizers.get_optimizer([one], 20, config) for one in (theirs, ours))
    for step in range(5):
        gradients(theirs, step)
        first.step()
    ours.load_state_dict(theirs.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert step_at_once(second)
    for step in range(5, 12):
        for model, optimizer in ((theirs, first), (ours, second)):
            gradients(model, step)
            optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(weights(theirs), weights(ours), strict=True))


def test_a_step_asks_the_device_nothing(optimizers) -> None:
    """On the meta device, which has no numbers to answer with; s3prl's own step fails there."""
    config = {"name": "AdamW_with_schedule", "lr": 1e-2}
    for at_once in (False, True):
        model = nn.Linear(4, 4, device="meta")
        optimizer = optimizers.get_optimizer([model], 20, config)
        if at_once:
            step_at_once(optimizer)
        for weight in model.parameters():
            weight.grad = torch.empty_like(weight)
        if at_once:
            optimizer.step()
            optimizer.step()
        else:
            with pytest.raises((RuntimeError, NotImplementedError), match="[Mm]eta"):
                optimizer.step()


@pytest.mark.parametrize("name", ["Lamb_with_schedule", "BertAdam_with_schedule", "AdamW"])
def test_others_stay_as_they_are(optimizers, name: str) -> None:
    optimizer = optimizers.get_optimizer([nn.Linear(2, 2)], 20, {"name": name, "lr": 1e-2})
    assert not step_at_once(optimizer) and "step" not in vars(optimizer)


@pytest.mark.parametrize("name", ["AdamW_with_schedule", "Lamb_with_schedule", "BertAdam_with_schedule"])
def test_the_rate_that_is_logged_is_that_of_the_step(optimizers, name: str) -> None:
    """It is asked for before the step. Lamb's rates are those of step 1 on, BertAdam's of step 0 on."""
    _, model = models()
    build = bridge_optimizers.with_clear_errors(optimizers.get_optimizer, "optimizer", lambda: "runner.yaml")
    optimizer = build([model], 8, {"name": name, "lr": 1e-2, "warmup_proportion": 0.25})
    told, used = [], []
    for step in range(8):
        gradients(model, step)
        told.append(bridge_optimizers.current_rate())
        before = optimizer.get_lr()[0]  # of the steps made so far
        optimizer.step()
        used.append(before if name.startswith("Bert") else optimizer.get_lr()[0])
    assert told == pytest.approx(used)
    first = [0, 0.5, 1.0] if name.startswith("Bert") else [0.5, 1.0, 5 / 6]
    assert told[:3] == pytest.approx([1e-2 * part for part in first])


def test_it_works_with_a_grad_scaler_and_a_scheduler(optimizers) -> None:
    """torch's schedulers and its scaler wrap ``step``."""
    _, model = models()
    optimizer = optimizers.get_optimizer([model], 20, {"name": "AdamW_with_schedule", "lr": 1e-2})
    step_at_once(optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = weights(model)
    gradients(model, 1)
    for weight in model.parameters():
        if weight.grad is not None:
            weight.grad *= 4
    scaler.scale(torch.zeros(()))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    scheduler.step()
    assert scheduler.get_last_lr() == [0.005, 0.005][: len(optimizer.param_groups)]
    assert any(not torch.equal(*pair) for pair in zip(before, weights(model), strict=True))


def test_a_cpu_goes_weight_by_weight(optimizers, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it computes stays in its cache; all of the default student at once took longer than s3prl's way."""
    counts, sqrt = [], torch._foreach_sqrt
    monkeypatch.setattr(torch, "_foreach_sqrt", lambda values: counts.append(len(values)) or sqrt(values))
    _, model = models()
    optimizer = optimizers.get_optimizer([model], 20, {"name": "AdamW_with_schedule", "lr": 1e-2})
    step_at_once(optimizer)
    gradients(model, 1)
    optimizer.step()
    assert counts == [1] * sum(weight.grad is not None for weight in model.parameters())
