"""The options beyond the paper: each has the property it promises, and off means bit for bit the paper's loss."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from distill_lab import CLIPS, WIDTH, ekd, heads, hidden_state, objective, states
from pretrain_lab import make_expert, run

from s3prl_ekd.config import load_model_config
from s3prl_ekd.distill.balance import Balancer, gradient_norms
from s3prl_ekd.distill.dropping import clip_factors, keep_worst
from s3prl_ekd.distill.losses import head_losses, mean_over_heads
from s3prl_ekd.distill.objective import Objective
from s3prl_ekd.distill.residual import plan_residuals
from s3prl_ekd.distill.targets import TeacherLayers, plan_targets
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.student import Student
from s3prl_ekd.student_checkpoint import load_student
from s3prl_ekd.teachers.build import check_teachers
from s3prl_ekd.teachers.stand_ins import TINY
from s3prl_ekd.variants import packaged


def test_everything_off_is_the_papers_loss_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, hidden = objective(), hidden_state()
    predictions = heads(hidden, subject.target_sets)
    loss, values = subject(predictions, [hidden] * len(subject.heads), states())
    expected = mean_over_heads({t.name: head_losses(predictions[t.name], t.gather(states()))
                                for t in subject.target_sets}, 1.0)  # fmt: skip
    assert torch.equal(loss, expected) and values is None
    logged, values = subject(predictions, [hidden] * len(subject.heads), states(), log=True)
    assert torch.equal(logged, expected) and len(values) == 6
    assert not subject.state_dict()
    monkeypatch.setattr("s3prl_ekd.distill.objective.gradient_norms", None)  # its passes are for log steps only
    for seed in range(20):  # a sum in another order is equal to the last bit now and then
        predictions = heads(hidden, subject.target_sets, seed)
        losses = {t.name: head_losses(predictions[t.name], t.gather(states())) for t in subject.target_sets}
        assert torch.equal(
            subject(predictions, [hidden] * len(subject.heads), states())[0], mean_over_heads(losses, 1.0)
        )


def test_logging_leaves_the_gradients_bit_for_bit(lab: Path) -> None:
    expert = make_expert(lab).train()
    batch = next(iter(expert.loader))
    found = []
    for log_step in (1, 10):
        torch.manual_seed(3)
        expert.zero_grad()
        loss, _ = expert(batch, records={}, global_step=1, log_step=log_step)
        loss.backward()
        found.append([parameter.grad.clone() for parameter in expert.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_weights_make_a_weighted_mean_over_heads() -> None:
    subject, hidden = objective(weights={"a": 3.0, "c": 0.0}), hidden_state()
    predictions = heads(hidden, subject.target_sets)
    loss, values = subject(predictions, [hidden] * len(subject.heads), states(), log=True)
    total, weight = 0.0, 0.0
    for target_set, w in zip(subject.target_sets, (3.0, 1.0, 0.0), strict=True):
        for i in range(2):
            p, t = predictions[target_set.name][:, i], target_set.gather(states())[:, i]
            total += w * (F.l1_loss(p, t) - F.logsigmoid(F.cosine_similarity(p, t, dim=-1)).mean()).item()
            weight += w
    assert loss.item() == pytest.approx(total / weight, rel=1e-5)
    assert values["c.1"]["gradient_share"] == 0.0


@pytest.mark.parametrize("dropping", [None, {"probability": 0.0}])
@pytest.mark.parametrize(("l1_weight", "cosine_weight"), [(0.0, 1.0), (2.0, 0.5), (3.0, 0.0)])
def test_each_term_has_its_weight(l1_weight: float, cosine_weight: float, dropping: dict | None) -> None:
    hidden = hidden_state()
    subject = objective(l1_weight=l1_weight, cosine_weight=cosine_weight, teacher_dropping=dropping)
    predictions = heads(hidden, subject.target_sets)
    pairs = [(predictions[t.name], t.gather(states())) for t in subject.target_sets]
    expected = torch.stack([
        l1_weight * F.l1_loss(p, t) - cosine_weight * F.logsigmoid(F.cosine_similarity(p, t, dim=-1)).mean()
        for p, t in pairs
    ]).mean()  # fmt: skip
    loss, logged = subject(predictions, [hidden] * len(subject.heads), states(), log=True)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    plain = objective()(predictions, [hidden] * len(subject.heads), states(), log=True)[1]
    for name, values in plain.items():  # what is logged has no weight
        assert [logged[name][key] for key in ("l1", "cosine")] == pytest.approx([values["l1"], values["cosine"]])


def one_layer(**changes: object) -> Objective:
    """Three teachers of one layer each, so that a set's gradient is one head's."""
    teachers = [TeacherLayers(name, (1,), WIDTH) for name in "abc"]
    return Objective(ekd(**changes), plan_targets("multi_head", teachers), teachers).train()


def path_norms(subject: Objective, log: bool = False) -> tuple[torch.Tensor, dict | None]:
    """Norms of the loss's gradient that comes through each head set, by autograd on a copy of hidden for each."""
    hidden = hidden_state()
    copies = {t.name: hidden.clone() for t in subject.target_sets}
    for copied in copies.values():
        copied.retain_grad()
    predictions = {t.name: heads(copies[t.name], subject.target_sets)[t.name] for t in subject.target_sets}
    given = {name: {1: layers[1]} for name, layers in states().items()}
    loss, values = subject(predictions, [hidden] * len(subject.heads), given, log=log)
    for copied in copies.values():
        copied.grad = None  # what looking at the norms left in retained gradients
    loss.backward()
    return torch.stack([copied.grad.norm() for copied in copies.values()]), values


def test_gradient_share_is_what_autograd_says() -> None:
    norms, values = path_norms(one_layer(), log=True)
    expected = (norms / norms.sum()).tolist()
    assert [values[f"{name}.1"]["gradient_share"] for name in "abc"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scale", [(1.0, 3.0, 10.0), (100.0, 0.01, 1.0)])
def test_balanced_gradients_have_the_asked_shares(scale: tuple[float, ...]) -> None:
    subject = objective(balance={"decay": 0.0}, weights={"a": 2.0, "b": 1.0, "c": 1.0})
    hidden = hidden_state()
    predictions = heads(hidden, subject.target_sets)
    _, values = subject(predictions, [hidden] * len(subject.heads), states(scale=scale), log=True)
    shares = {name: value["gradient_share"] for name, value in values.items()}
    expected = {"a": 0.25, "b": 0.125, "c": 0.125}
    assert shares == pytest.approx({f"{n}.{l}": s for n, s in expected.items() for l in (1, 2)}, rel=1e-4)


def test_the_balanced_loss_itself_sends_these_shares() -> None:
    norms, _ = path_norms(one_layer(balance={"decay": 0.0}))
    before, _ = path_norms(one_layer())
    assert norms.tolist() == pytest.approx([float(before.sum()) / 3] * 3, rel=1e-4)
    assert float(before.max()) > 1.2 * float(before.min())


def test_the_balancers_average_is_corrected_for_its_start_and_rests_in_eval() -> None:
    balancer = Balancer(torch.ones(2), decay=0.99).train()
    assert torch.allclose(balancer(torch.tensor([1.0, 3.0])), torch.tensor([2.0, 2.0 / 3.0]))
    norms = torch.tensor([[1.0, 3.0], [0.2, 0.1], [0.5, 4.0]])  # a mean weighted 0.99^2, 0.99, 1
    balancer(norms[1])
    ages = 0.99 ** torch.tensor([2.0, 1.0, 0.0])
    average = (ages[:, None] * norms).sum(0) / ages.sum()
    assert torch.allclose(balancer(norms[2]), average.sum() / 2 / average)
    before = copy.deepcopy(balancer.state_dict())
    balancer.eval()(torch.tensor([5.0, 5.0]))
    assert all(torch.equal(before[name], value) for name, value in balancer.state_dict().items())


def test_a_head_that_was_dropped_or_overflowed_leaves_the_balance_as_it_was() -> None:
    balancer = Balancer(torch.ones(2), decay=0.9).train()
    balancer(torch.tensor([1.0, 3.0]))
    for _ in range(100):
        balancer(torch.tensor([1.0, 0.0]))
    assert torch.allclose(balancer(torch.tensor([1.0, 3.0])), torch.tensor([2.0, 2.0 / 3.0]))
    before = copy.deepcopy(balancer.state_dict())
    balancer(torch.tensor([float("inf"), 3.0]))
    assert all(torch.equal(before[name], value) for name, value in balancer.state_dict().items())


def test_gradient_norms_do_not_vanish_in_half_precision() -> None:
    hidden = torch.randn(2, 50, 64, dtype=torch.float16, requires_grad=True)
    exact = hidden.detach().float().requires_grad_()
    losses = [[torch.stack([(1e-5 * h.float()).square().mean(), h.float().abs().mean()])] for h in (hidden, exact)]
    norms = [gradient_norms(l, [h] * 2) for l, h in zip(losses, (hidden, exact), strict=True)]
    assert norms[0][1] == pytest.approx(float(norms[1][1]), rel=1e-2)


def test_dropping_keeps_the_worst_teacher_of_every_clip_and_others_by_chance() -> None:
    losses = torch.rand(3, 4000, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    keep = keep_worst(losses, 0.5)
    worst = F.one_hot(losses.argmax(0), 3).t().bool()
    assert keep[worst].all()
    assert float(keep[~worst].float().mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(keep_worst(losses, 1.0), worst) and keep_worst(losses, 0.0).all()
    torch.manual_seed(1)
    assert torch.equal(keep, keep_worst(losses, 0.5))


def test_what_a_clip_kept_makes_a_weighted_mean() -> None:
    keep = torch.tensor([[True, True], [True, False], [True, True]])
    weights = torch.tensor([1.0, 2.0, 3.0])
    factors = clip_factors(keep, weights)
    assert torch.allclose(factors[:, 0], torch.ones(3))
    assert torch.allclose(factors[:, 1], torch.tensor([1.5, 0.0, 1.5]))


@pytest.mark.parametrize(("probability", "reduce"), [(0.0, "mean"), (1.0, "max")])
def test_the_loss_under_dropping(probability: float, reduce: str) -> None:
    """p = 0: the paper's loss; p = 1: the mean over clips of the worst teacher's. What is logged is never dropped."""
    hidden = hidden_state()
    subject = objective(teacher_dropping={"probability": probability}, cosine_weight=0.5)
    predictions = heads(hidden, subject.target_sets)
    by_clip = torch.stack([
        torch.stack([sum(head_losses(predictions[t.name][i : i + 1], t.gather(states())[i : i + 1]).total(0.5)) / 2
                     for i in range(CLIPS)]) for t in subject.target_sets
    ])  # fmt: skip
    expected = by_clip.mean() if reduce == "mean" else by_clip.max(0).values.mean()
    loss, logged = subject(predictions, [hidden] * len(subject.heads), states(), log=True)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    plain = objective(cosine_weight=0.5)(predictions, [hidden] * len(subject.heads), states(), log=True)[1]
    for name, values in plain.items():
        assert [logged[name][key] for key in ("l1", "cosine")] == pytest.approx([values["l1"], values["cosine"]])
    subject.eval()  # nothing is dropped outside training
    assert subject(predictions, [hidden] * len(subject.heads), states())[0].item() == pytest.approx(
        by_clip.mean().item(), rel=1e-5
    )


def test_a_set_without_weight_is_nobodys_worst() -> None:
    """It is never trained, so it would be kept alone, and a clip that keeps it alone teaches nothing."""
    hidden = hidden_state()
    subject = objective(weights={"c": 0.0}, teacher_dropping={"probability": 1.0})
    loss, _ = subject(
        heads(hidden, subject.target_sets), [hidden] * len(subject.heads), states()
    )  # of c the largest targets
    loss.backward()
    assert hidden.grad is not None and (hidden.grad.flatten(1).norm(dim=1) > 1e-3).all()


def test_the_worst_set_is_the_one_whose_heads_are_worst_on_average() -> None:
    """Not in sum: with more layers, a teacher would be kept for their number."""
    teachers = [TeacherLayers("a", (1, 2, 3), WIDTH), TeacherLayers("b", (1,), WIDTH)]
    config = ekd(teacher_dropping={"probability": 1.0})
    subject, hidden = Objective(config, plan_targets("multi_head", teachers), teachers).train(), hidden_state()
    given = {
        t.name: {l: s * torch.randn(CLIPS, 20, WIDTH) for l in t.layers} for t, s in zip(teachers, (1, 2), strict=True)
    }
    predictions = {t.name: torch.zeros(CLIPS, len(t.layers), 20, WIDTH) for t in teachers}
    expected = head_losses(predictions["b"], given["b"][1].unsqueeze(1)).total(1.0)
    assert subject(predictions, [hidden] * len(subject.heads), given)[0].item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def every_option() -> Iterator[dict[str, object]]:
    yield {"targets": {"normalise": "standardise"}}
    yield {"targets": {"normalise": "phi_s", "fit_batches": 3}}
    yield {"targets": {"tap": "ffn", "normalise": "standardise"}}
    yield {"weights": {"hubert": 2.0}, "teacher_dropping": {}}
    yield {"balance": {}, "teacher_dropping": {"probability": 1.0}}
    yield {"residual_heads": [["wavlm", "hubert"]], "targets": {"normalise": "standardise"}, "balance": {}}
    yield {"mode": "layerwise_average", "residual_heads": [["wavlm", "hubert"]], "weights": {"average": 2.0}}


@pytest.mark.parametrize("changes", list(every_option()), ids=lambda changes: "+".join(changes))
def test_the_loss_falls_under_every_option(lab: Path, changes: dict[str, object], tmp_path: Path) -> None:
    expert = make_expert(lab, **changes).train()
    optimizer = torch.optim.AdamW(expert.model.parameters(), lr=1e-3)
    l1, step = [], 0
    for _ in range(6):
        for batch in expert.loader:
            step += 1
            loss, records = expert(batch, records={}, global_step=step, log_step=1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            rows = records["ekd"]["heads"].values()
            assert sum(row["gradient_share"] for row in rows) == pytest.approx(1.0)
            l1.append(sum(row["l1"] for row in rows) / len(rows))
    first = 4 if "targets" in changes else 0  # statistics and rotation settle
    assert sum(l1[-3:]) < 0.97 * sum(l1[first : first + 3])


@pytest.mark.parametrize("file", sorted(packaged("variants").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_variant_is_built_and_learns_at_reduced_width(file: Path) -> None:
    """Its own depth, mode, teachers and options; tiny widths, and random states in the teachers' place."""
    values = load_model_config(file).model_dump(mode="json")
    small = {"width": 16, "ffn_width": 24, "heads": 4, "pos_conv_kernel": 8, "pos_conv_groups": 4}
    values["student"] |= small | {"conv_layers": [[8, kernel, stride] for _, kernel, stride in TINY.conv_layers]}
    config = load_model_config(values)
    teachers = [TeacherLayers(t.name, tuple(t.layers), 12) for t in config.ekd.teachers]
    sets = plan_targets(config.ekd.mode, teachers) + plan_residuals(config.ekd.residual_heads, teachers)
    torch.manual_seed(0)
    student, subject = Student(config.student, sets).train(), Objective(config.ekd, sets, teachers).train()
    wave = 0.1 * torch.randn(2, 4_000)
    given = {t.name: {l: torch.randn(2, 12, 12) for l in t.layers} for t in teachers}
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        out, predictions = student(wave)
        loss, _ = subject(predictions, out.states[config.student.layers], given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.slow
def test_recommended_with_teacher_dropping_by_the_real_command(lab: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((lab / "model.yaml").read_text())
    recommended = yaml.safe_load(packaged("variants/recommended.yaml").read_text())
    values["ekd"] |= recommended["ekd"] | {"teacher_dropping": {"probability": 0.5}}
    (lab / "recommended.yaml").write_text(yaml.safe_dump(values))
    configs = ["-g", str(lab / "recommended.yaml"), "-c", str(lab / "runner.yaml")]
    result = run(tmp_path, "-u", "ekd", "-n", "rec", "-p", "rec", *configs)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "[ekd] teacher wavlm: " in result.stderr and "[ekd] student starts from hubert: conv stack" in result.stderr
    lines = [json.loads(line) for line in (tmp_path / "rec" / "metrics.jsonl").read_text().splitlines()]
    shares = [head["gradient_share"] for head in lines[-1]["heads"].values()]
    assert len(shares) == 9 and sum(shares) == pytest.approx(1.0)
    norms = [head["target_norm"] for head in lines[-1]["heads"].values()]
    assert all(0.6 < norm < 1.0 for norm in norms)  # mean magnitude of a standardised Gaussian: 0.80
    load_student(tmp_path / "rec")


MISTAKES = {
    "ekd.weights.hubrt: no head set has this name; there are hubert, robust_hubert, wavlm": {"weights": {"hubrt": 2.0}},
    "ekd.weights.wavlm: input should be greater than or equal to 0": {"weights": {"wavlm": -1.0}},
    "ekd.weights: at least one head set": {"weights": {"hubert": 0.0, "robust_hubert": 0.0, "wavlm": 0.0}},
    "ekd.teacher_dropping: needs two head sets": {"mode": "layerwise_average", "teacher_dropping": {}},
    "ekd.targets.normalize: unknown key; did you mean normalise": {"targets": {"normalize": "phi_s"}},
    "layers: layer 0 has no feed-forward block": {
        "targets": {"tap": "ffn"}, "teachers": [{"name": "hubert", "source": "hubert_base", "layers": [0, 4]}]
    },
    "ekd.residual_heads[0]: ['hubert', 'x'] must be two of": {"residual_heads": [["hubert", "x"]]},
}  # fmt: skip


@pytest.mark.parametrize("expected", MISTAKES)
def test_mistakes_name_file_and_key(expected: str) -> None:
    values = load_model_config(packaged("config_model.yaml")).model_dump(mode="json")
    values["ekd"] |= MISTAKES[expected]
    with pytest.raises(EkdError) as caught:
        config = load_model_config(values)
        plan = check_teachers(config)
        Objective(config.ekd, plan.target_sets, plan.layers)
    message = str(caught.value)
    assert message.startswith("config_model.yaml: ") and expected in message and "\n" not in message
