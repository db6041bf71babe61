"""Target normalisation: targets have the statistics that it promises, and a resumed run goes on with them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml
from distill_lab import TEACHERS, WIDTH, ekd, objective, skewed_batches, states
from pretrain_lab import make_expert

from s3prl_ekd.config import TargetsConfig
from s3prl_ekd.distill.balance import Balancer
from s3prl_ekd.distill.normalise import Normaliser, Standardiser
from s3prl_ekd.distill.objective import Objective
from s3prl_ekd.distill.phi_s import PhiS, hadamard
from s3prl_ekd.distill.targets import TeacherLayers, plan_targets
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.encoder import count_parameters
from s3prl_ekd.student_checkpoint import load_student
from s3prl_ekd.torch_file import read_torch_file


def test_standardised_targets_have_mean_0_and_deviation_1_per_channel() -> None:
    subject, batches = Standardiser(WIDTH, momentum=0.0).train(), skewed_batches()
    for batch in batches:
        subject(batch)
    seen = torch.cat([batch.flatten(0, 1) for batch in batches])
    assert torch.allclose(subject.mean, seen.mean(0), rtol=1e-4)
    assert torch.allclose(subject.variance, seen.var(0, correction=0), rtol=1e-3)
    out = subject.eval()(seen[None])[0]
    assert out.mean(0).abs().max() < 1e-3 and (out.std(0) - 1).abs().max() < 1e-3
    assert int(subject.frames) == len(seen)  # eval mode counted nothing


def test_running_statistics_follow_a_shift() -> None:
    subject = Standardiser(WIDTH, momentum=0.2).train()
    generator = torch.Generator().manual_seed(0)
    for step in range(60):
        offset, scale = (0.0, 1.0) if step < 20 else (9.0, 4.0)
        subject(offset + scale * torch.randn(2, 200, WIDTH, generator=generator))
    assert (subject.mean - 9.0).abs().max() < 0.5 and (subject.variance.sqrt() - 4.0).abs().max() < 0.4


@pytest.mark.parametrize("normaliser", [Standardiser(WIDTH, momentum=0.1), PhiS(WIDTH, fit_batches=9)])
def test_one_overflow_does_not_spoil_the_statistics(normaliser: torch.nn.Module) -> None:
    subject, balancer = normaliser.train(), Balancer(torch.ones(2), decay=0.9).train()
    bad = torch.ones(2, 5, WIDTH)
    bad[1, 2, 3] = float("inf")
    subject(bad)  # even as the very first batch
    subject(skewed_batches()[0])
    balancer(torch.tensor([1.0, 3.0]))
    before = copy.deepcopy([subject.state_dict(), balancer.state_dict()])
    subject(bad)
    balancer(torch.tensor([float("nan"), 1.0]))
    balancer(torch.tensor([float("inf"), 1.0]))
    for old, new in zip(before, (subject.state_dict(), balancer.state_dict()), strict=True):
        tensors = {name: value for name, value in new.items() if isinstance(value, torch.Tensor)}
        assert all(torch.equal(old[name], value) and value.isfinite().all() for name, value in tensors.items())


def test_normalisation_is_each_teachers_and_layers_own() -> None:
    subject = Normaliser(TargetsConfig(normalise="standardise"), TEACHERS).train()
    out = subject(states())
    for layers in out.values():
        for state in layers.values():
            assert state.flatten(0, 1).mean(0).abs().max() < 1e-4
            assert (state.flatten(0, 1).std(0, correction=0) - 1).abs().max() < 1e-4
    given = states()
    assert Normaliser(TargetsConfig(), TEACHERS)(given) is given


@pytest.mark.parametrize("normalise", ["standardise", "phi_s"])
def test_statistics_are_kept_for_a_resumed_run_and_not_for_the_student(
    lab: Path, tmp_path: Path, normalise: str
) -> None:
    changes = {"targets": {"normalise": normalise, "fit_batches": 2}, "balance": {}}
    first = make_expert(lab, **changes).train()
    for step, batch in enumerate(first.loader):
        first(batch, records={}, global_step=step + 1, log_step=10)
    saved = first.add_state_to_save({"Step": 3})
    file = tmp_path / "states-3.ckpt"
    torch.save(saved, file)
    second = make_expert(lab, **changes)
    second.load_model(read_torch_file(file))
    ours, theirs = first.objective.state_dict(), second.objective.state_dict()
    tensors = [name for name, value in ours.items() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 9 and all(torch.equal(ours[name], theirs[name]) for name in tensors)
    batch = next(iter(first.loader))
    losses = [float(e.eval()(batch, records={}, global_step=1, log_step=10)[0].detach()) for e in (first, second)]
    assert losses[0] == losses[1]
    encoder, _, _ = load_student(file)
    assert count_parameters(encoder) == count_parameters(first.model.encoder)
    with pytest.raises(EkdError, match="do not fit ekd.targets"):
        make_expert(lab, balance={}).load_model(read_torch_file(file))


def test_a_resumed_run_ends_bit_for_bit_as_one_that_never_stopped(lab: Path, tmp_path: Path) -> None:
    """With everything on that has a state or draws random numbers."""
    changes = {"targets": {"normalise": "phi_s", "fit_batches": 2}, "balance": {}, "teacher_dropping": {}}
    values = yaml.safe_load((lab / "model.yaml").read_text())
    values["student"] |= {"mask": {"probability": 0.1, "length": 3}}
    masked = tmp_path / "lab"
    masked.mkdir()
    (masked / "model.yaml").write_text(yaml.safe_dump(values))
    (masked / "runner.yaml").write_text((lab / "runner.yaml").read_text())

    def train(expert: torch.nn.Module, steps: int, stop: Path | None = None) -> torch.nn.Module:
        """Plain gradient descent, which has no state of its own; saves after the first step where asked to."""
        expert.train()
        for step, batch in zip(range(steps), expert.loader, strict=False):
            loss, _ = expert(batch, records={}, global_step=step + 1, log_step=10)
            expert.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in expert.model.parameters():
                    parameter -= 0.01 * parameter.grad
            if stop is not None and step == 0:
                torch.save(expert.add_state_to_save({"Step": 1}), stop)
        return expert

    whole = train(make_expert(masked, **changes), 3, stop=tmp_path / "states-1.ckpt")
    resumed = make_expert(masked, **changes)
    resumed.load_model(read_torch_file(tmp_path / "states-1.ckpt"))
    train(resumed, 2)
    for part in ("model", "objective"):
        ours, theirs = getattr(resumed, part).state_dict(), getattr(whole, part).state_dict()
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value, name


@pytest.mark.parametrize("order", [1, 2, 12, 20, 96, 768, 1024])
def test_hadamard_matrices_are_orthonormal_with_entries_of_one_size(order: int) -> None:
    matrix = hadamard(order)
    assert torch.allclose(matrix @ matrix.t(), torch.eye(order, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(matrix.abs(), torch.full((), order**-0.5, dtype=torch.float64))


def test_phi_s_gives_every_channel_variance_1_and_can_be_undone() -> None:
    batches = [batch / 10 for batch in skewed_batches(width=12)]
    subject = PhiS(12, fit_batches=len(batches)).train()
    for batch in batches:
        subject(batch)
    seen = torch.cat([batch.flatten(0, 1) for batch in batches])
    assert torch.allclose(subject.covariance, torch.cov(seen.t(), correction=0), rtol=1e-2, atol=1e-2)
    out = subject(seen)
    assert out.mean(0).abs().max() < 1e-3
    assert (out.var(0, correction=0) - 1).abs().max() < 1e-2  # though the channels' variances differed 1e8-fold
    undone = out @ subject.rotation * subject.covariance.diagonal().mean().sqrt() + subject.mean
    assert torch.allclose(undone, seen, atol=1e-2)
    # one rotation and one scale: all distances between frames shrink alike
    ratio = torch.pdist(out[:40]) / torch.pdist(seen[:40])
    assert float(ratio.max() / ratio.min()) == pytest.approx(1.0, abs=1e-3)
    frozen = copy.deepcopy(subject.state_dict())
    subject(100 + batches[0])
    assert torch.equal(frozen["covariance"], subject.covariance) and torch.equal(frozen["mean"], subject.mean)


def test_phi_s_of_small_numbers_has_variance_1_too() -> None:
    seen = 1e-3 * torch.cat([batch.flatten(0, 1) for batch in skewed_batches(width=12)]) / 50
    out = PhiS(12, fit_batches=1).train()(seen)
    assert (out.var(0, correction=0) - 1).abs().max() < 1e-2


@pytest.mark.parametrize("normaliser", [Standardiser(WIDTH, momentum=0.1), PhiS(WIDTH, fit_batches=9)])
def test_half_precision_is_taken_in_as_fp32_and_eval_mode_takes_in_nothing(normaliser: torch.nn.Module) -> None:
    subject, other = normaliser.train(), copy.deepcopy(normaliser).train()
    halves = [batch.bfloat16() for batch in skewed_batches()]
    for half in halves:
        assert torch.equal(subject(half), other(half.float()))
    before = copy.deepcopy(subject.state_dict())
    assert subject.eval()(halves[0]).dtype == torch.float32
    assert all(torch.equal(before[name], value) for name, value in subject.state_dict().items() if "_" not in name)
    assert before.get("_extra_state") == subject.state_dict().get("_extra_state")


@pytest.mark.parametrize("normaliser", [Standardiser(WIDTH, momentum=0.0), PhiS(WIDTH, fit_batches=9)])
def test_no_frame_goes_uncounted_after_a_hundred_hours(normaliser: torch.nn.Module) -> None:
    normaliser.frames.fill_(2**24)  # 93 h; fp32 counts no further
    normaliser.train()(torch.randn(1, 1, WIDTH))
    assert int(normaliser.frames) == 2**24 + 1


def test_phi_s_where_it_makes_no_sense_is_refused() -> None:
    with pytest.raises(EkdError, match=r"config_model.yaml: .*no Hadamard matrix of 6 channels"):
        six = [TeacherLayers("a", (1,), 6)]
        config = ekd(targets={"normalise": "phi_s"})
        Objective(config, plan_targets("multi_head", six), six)
    for changes in ({"mode": "layerwise_average"}, {"residual_heads": [["a", "b"]]}):
        with pytest.raises(EkdError, match="phi_s rotates each teacher its own way"):
            objective(targets={"normalise": "phi_s"}, **changes)
