"""A pretraining that ends between two checkpoints leaves its last whole step, from which it goes on bit for bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trouble_lab
import yaml
from pretrain_lab import hold_out

from s3prl_ekd.bridge.checkpoints import AtomicCheckpoints
from s3prl_ekd.bridge.stopped_training import StoppedTraining
from s3prl_ekd.errors import EkdError
from s3prl_ekd.signals import HEARD, Interrupted, Signals
from s3prl_ekd.student_checkpoint import newest_checkpoint
from s3prl_ekd.torch_file import read_torch_file

# what has a state of its own beside the weights: running statistics, random draws, a scheduler, batches of one step
MODEL = {"targets": {"normalise": "standardise"}, "teacher_dropping": {"probability": 0.3}}
OPTIMIZER = {"name": "Adam", "lr": 1e-3}
SCHEDULER = {"name": "linear_schedule_with_warmup", "num_warmup_steps": 2}


def words(lab: Path, folder: Path, expdir: str, **runner: object) -> list[str]:
    """Eight steps of two batches with all of the above, saved after 4 and 8."""
    model, config = (yaml.safe_load((lab / name).read_text()) for name in ("model.yaml", "runner.yaml"))
    model["ekd"] |= MODEL
    (folder / "model.yaml").write_text(yaml.safe_dump(model))
    (folder / "runner.yaml").write_text(yaml.safe_dump(config | {"optimizer": OPTIMIZER, "scheduler": SCHEDULER}))
    return trouble_lab.arguments(folder, folder / "model.yaml", expdir, "cpu", gradient_accumulate_steps=2, **runner)


def differences(one: object, other: object, key: str = "") -> list[str]:
    """Where two checkpoints differ."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [key]
    if isinstance(one, dict):
        return [at for name in {*one, *other} for at in differences(one.get(name), other.get(name), f"{key}.{name}")]
    if isinstance(one, (list, tuple)):
        return [at for pair in zip(one, other, strict=True) for at in differences(*pair, f"{key}[]")]
    return [] if one == other else [key]


@pytest.fixture(scope="module")
def whole(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    trouble_lab.run(folder, *words(lab, folder, "x"))
    return folder / "x"


@pytest.fixture(scope="module")
def held_out(lab: Path) -> str:
    """What ``-o`` says so that a run is validated."""
    hold_out(lab)
    return "config.pretrain_expert.datarc.valid_sets=['valid']"


def names(expdir: Path) -> list[str]:
    return sorted(path.name for path in expdir.glob("*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "step"),
    [("6:stop", 5), ("6:stop:2", 5), ("6:stop-step", 6), ("6:stop-after", 6), ("5:stop-after", 5), ("8:stop-after", 8)],
)
def test_it_goes_on_bit_for_bit(lab: Path, tmp_path: Path, whole: Path, fault: str, step: int) -> None:
    run = words(lab, tmp_path, "x", max_keep=2)
    _, err = trouble_lab.run(tmp_path, *run, faults=fault, status=143)
    name = "states-epoch-5.ckpt" if step == 8 else f"states-{step}.ckpt"  # of the last step, as the runner's
    assert f"[ekd] saved step {step} before the end: x/{name}" in err
    assert err.splitlines()[-1].startswith("stopped by SIGTERM; continue with: ")
    assert names(tmp_path / "x") == ["states-4.ckpt", name]
    trouble_lab.run(tmp_path, *run, "-a")
    there, expected = (read_torch_file(newest_checkpoint(folder)) for folder in (tmp_path / "x", whole))
    for key in ("EKD", "EKD_Resume", "Scheduler", "Step"):
        assert differences(there[key], expected[key], key) == []
    assert differences(there["Optimizer"]["state"], expected["Optimizer"]["state"]) == []
    assert trouble_lab.losses(tmp_path / "x") == trouble_lab.losses(whole)


@pytest.mark.slow
def test_any_end_leaves_it_and_none_is_written_twice(lab: Path, tmp_path: Path) -> None:
    run = words(lab, tmp_path, "x", max_keep=1)
    _, err = trouble_lab.run(tmp_path, *run, faults="3:bug", status=1)
    assert "\nZeroDivisionError: a bug\n" in err
    assert names(tmp_path / "x") == ["states-2.ckpt"]
    for _ in range(2):  # right after the runner's own, and before a step was made
        _, err = trouble_lab.run(tmp_path, *run, "-a", faults="5:stop", status=143)
        assert "before the end" not in err and names(tmp_path / "x") == ["states-4.ckpt"]
    _, err = trouble_lab.run(tmp_path, *words(lab, tmp_path, "y"), faults="1:stop", status=143)
    assert "stopped by SIGTERM before the first checkpoint; start again with: " in err


@pytest.mark.slow
def test_it_owes_no_validation(lab: Path, tmp_path: Path, held_out: str) -> None:
    for name, faults in (("whole", ""), ("cut", "6:stop")):
        *run, override = words(lab, tmp_path, name)
        trouble_lab.run(tmp_path, *run, f"{override},,{held_out}", faults=faults, status=143 if faults else 0)
    trouble_lab.run(tmp_path, *run, f"{override},,{held_out}", "-a")
    whole, cut = ((tmp_path / name / "validation.jsonl").read_text() for name in ("whole", "cut"))
    assert whole == cut and len(whole.splitlines()) == 2


@pytest.mark.slow
def test_a_run_of_epochs_stopped_after_its_last_step_is_finished_but_for_the_validation(
    lab: Path, tmp_path: Path, held_out: str
) -> None:
    """Nothing but the name of its last checkpoint tells a run of n_epochs that no step is left."""
    *run, override = words(lab, tmp_path, "x", n_epochs=5)
    run.append(f"{override},,{held_out}")
    _, err = trouble_lab.run(tmp_path, *run, faults="7:stop-after", status=143)
    assert "[ekd] saved step 7 before the end: x/states-epoch-5.ckpt" in err
    trouble_lab.run(tmp_path, *run, "-a")
    steps = [json.loads(line)["step"] for line in (tmp_path / "x" / "validation.jsonl").read_text().splitlines()]
    assert steps == [4, 7] and names(tmp_path / "x") == ["dev-best.ckpt", "states-4.ckpt", "states-epoch-5.ckpt"]
    _, err = trouble_lab.run(tmp_path, *run, "-a")
    assert "finished at step 7; nothing to do" in err


class Keeper(AtomicCheckpoints):
    """Writes what it is given, or fails."""

    def __init__(self, failing: Exception | None = None) -> None:
        super().__init__()
        self.failing, self.written = failing, []

    def save(self, state: Any, target: Any) -> None:
        if self.failing is not None:
            raise self.failing
        self.written.append((state["Step"], Path(target).name))


def training(
    keeper: Keeper, folder: Path, log_step: int = 2
) -> tuple[StoppedTraining, Signals, SimpleNamespace, torch.optim.Optimizer]:
    """What follows a runner that has made step 3, and its optimizer."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    upstream = SimpleNamespace(
        on_before_zero_grad=lambda: None, log_records=lambda: None, step_end=lambda: {"step": 3},
        add_state_of=lambda states, end: states, loader=SimpleNamespace(dataset=range(9)),
    )  # fmt: skip
    config = {"runner": {"max_keep": 2, "log_step": log_step, "n_epochs": -1, "total_steps": 9,
                         "gradient_accumulate_steps": 1}}  # fmt: skip
    runner = SimpleNamespace(upstream=upstream, args=SimpleNamespace(expdir=folder), config=config)
    signals = Signals()
    stopped = StoppedTraining(signals, keeper)
    stopped.follow(runner, SimpleNamespace(torch=SimpleNamespace(save=keeper.save)))
    stopped.follow_optimizer(optimizer)
    optimizer.step()
    upstream.on_before_zero_grad()
    return stopped, signals, runner, optimizer


@pytest.mark.parametrize("failing", [EkdError("x: full"), OSError("x: full"), ValueError("x: full")])
def test_what_cannot_be_saved_is_said(caplog: pytest.LogCaptureFixture, tmp_path: Path, failing: Exception) -> None:
    stopped, _, runner, _ = training(Keeper(failing), tmp_path)
    stopped.save(runner)
    assert caplog.messages == ["[ekd] the steps since the last checkpoint are lost: x: full"]


def test_a_step_whose_weights_are_half_changed_is_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The optimizer has failed: what there is belongs to no step."""
    keeper = Keeper()
    stopped, _, runner, optimizer = training(keeper, tmp_path)
    optimizer.step()
    stopped.save(runner)
    assert keeper.written == [] and "are lost: the end came while weights changed" in caplog.text
    runner.upstream.on_before_zero_grad()
    stopped.save(runner)
    assert keeper.written == [(3, "states-3.ckpt")]


@pytest.mark.parametrize("number", HEARD)
@pytest.mark.parametrize("log_step", [2, 3])
def test_a_signal_waits_until_the_step_is_whole_and_logged(
    tmp_path: Path, number: signal.Signals, log_step: int
) -> None:
    _, signals, runner, optimizer = training(Keeper(), tmp_path, log_step)
    signals.listen()
    try:
        optimizer.step()
        os.kill(os.getpid(), number)
        if log_step == 3:
            runner.upstream.on_before_zero_grad()
        with pytest.raises(Interrupted):
            (runner.upstream.log_records if log_step == 3 else runner.upstream.on_before_zero_grad)()
        assert signals.number == number
    finally:
        signals.restore()


def test_a_task_of_s3prls_own_hears_every_signal() -> None:
    """Nothing follows its steps, so nothing would end a wait."""
    signals = Signals()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    StoppedTraining(signals, Keeper()).follow_optimizer(optimizer)
    signals.listen()
    try:
        optimizer.step()
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signals.restore()


def test_the_methods_of_an_optimizer_stay_what_torch_asks_for(tmp_path: Path) -> None:
    """torch's schedulers wrap optimizer.step, which must be a method for them."""
    _, _, _, optimizer = training(Keeper(), tmp_path)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    before = optimizer.param_groups[0]["params"][0].detach().clone()
    optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
    optimizer.step()
    assert torch.equal(optimizer.param_groups[0]["params"][0].detach(), before - 0.05)
