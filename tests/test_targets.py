"""Targets land where they should: teachers whose states say who they are pass through every mode."""

from __future__ import annotations

import pytest
import torch

from s3prl_ekd.config import EkdConfig
from s3prl_ekd.distill.losses import HeadLosses, frame_losses, head_losses, mean_over_heads
from s3prl_ekd.distill.objective import Objective
from s3prl_ekd.distill.targets import TargetSet, TeacherLayers, align_frames, plan_targets
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.encoder import EncoderOutput
from s3prl_ekd.teachers.ensemble import FrozenTeachers
from s3prl_ekd.teachers.stand_ins import TINY

NAMES = ("hubert", "robust", "wavlm")


def labelled_states(width: int = 4) -> dict[str, dict[int, torch.Tensor]]:
    """Three teachers of 13 states each; teacher t's state l is 100 * t + l everywhere."""
    return {name: {l: torch.full((2, 5, width), 100.0 * t + l) for l in range(13)} for t, name in enumerate(NAMES)}


def plan(
    mode: str, widths: tuple[int, ...] = (4, 4, 4), layers: tuple[tuple[int, ...], ...] = ((4, 8, 12),) * 3
) -> list[TargetSet]:
    teachers = [TeacherLayers(n, l, w) for n, l, w in zip(NAMES, layers, widths, strict=True)]
    return plan_targets(mode, teachers)


def test_multi_head_predicts_each_teachers_own_state() -> None:
    sets = plan("multi_head")
    assert [(s.name, s.labels, s.width) for s in sets] == [(n, ("4", "8", "12"), 4) for n in NAMES]
    for t, target_set in enumerate(sets):
        target = target_set.gather(labelled_states())
        assert target.shape == (2, 3, 5, 4)
        assert [target[:, i].unique().tolist() for i in range(3)] == [[100.0 * t + l] for l in (4, 8, 12)]


def test_layerwise_average_averages_the_same_layer_of_every_teacher() -> None:
    (target_set,) = plan("layerwise_average")
    assert target_set.labels == ("4", "8", "12")
    target = target_set.gather(labelled_states())
    assert [target[:, i].unique().tolist() for i in range(3)] == [[100.0 + l] for l in (4, 8, 12)]


def test_layerwise_concat_joins_the_same_layer_of_every_teacher() -> None:
    (target_set,) = plan("layerwise_concat", widths=(4, 4, 4))
    assert target_set.width == 12 and target_set.labels == ("4", "8", "12")
    target = target_set.gather(labelled_states())
    for i, l in enumerate((4, 8, 12)):
        assert target[0, i, 0].tolist() == [l] * 4 + [100.0 + l] * 4 + [200.0 + l] * 4


class Labelled(torch.nn.Module):
    """An encoder of 12 layers whose state l is 100 * t + l everywhere, whatever it hears."""

    def __init__(self, t: int) -> None:
        super().__init__()
        self.t, self.shape = t, TINY.with_(layers=12)

    def forward(self, wave: torch.Tensor, lengths: None, states: tuple[int, ...]) -> EncoderOutput:
        return EncoderOutput(wave, {l: torch.full((len(wave), 5, 4), 100.0 * self.t + l) for l in states})


@pytest.mark.parametrize("mode", ["multi_head", "layerwise_average", "layerwise_concat"])
def test_from_teachers_to_logged_losses_every_state_is_where_it_should_be(mode: str) -> None:
    """Three labelled teachers, each with layers of its own, through the frozen ensemble and the objective."""
    layers = {"hubert": (4, 8, 12), "robust": (1, 2, 3), "wavlm": (12, 0, 7)}
    teachers = FrozenTeachers({name: Labelled(t) for t, name in enumerate(NAMES)}, layers)
    listed = [{"name": n, "source": "-", "layers": list(l)} for n, l in layers.items()]
    config = EkdConfig.model_validate({"teachers": listed, "mode": mode})
    sets = plan(mode, layers=tuple(layers.values()))
    labels = {name: [100.0 * t + l for l in layers[name]] for t, name in enumerate(NAMES)}
    if mode == "multi_head":
        expected = {f"{name}.{l}": [labels[name][i]] * 4 for name in NAMES for i, l in enumerate(layers[name])}
    else:
        columns = list(zip(*labels.values(), strict=True))  # the i-th layer of each teacher
        names = [f"{sets[0].name}.{'+'.join(map(str, pair))}" for pair in zip(*layers.values(), strict=True)]
        whole = [[sum(c) / 3] * 4 for c in columns] if mode == "layerwise_average" else [
            [label for label in c for _ in range(4)] for c in columns
        ]  # fmt: skip
        expected = dict(zip(names, whole, strict=True))
    targets = {name: torch.tensor(value).expand(2, 5, -1) for name, value in expected.items()}
    predictions = {t.name: torch.stack([targets[f"{t.name}.{label}"] for label in t.labels], dim=1) for t in sets}
    everything = torch.zeros(1, requires_grad=True)  # what the gradients are asked at; none of them matters here
    predictions = {name: value + everything for name, value in predictions.items()}
    objective = Objective(config, sets, [TeacherLayers(n, l, 4) for n, l in layers.items()])
    _, values = objective(predictions, [everything] * len(expected), teachers(torch.zeros(2, 16_000)), log=True)
    assert list(values) == list(expected)
    for name, value in expected.items():
        assert values[name]["l1"] == pytest.approx(0.0, abs=1e-4), name
        assert values[name]["target_norm"] == pytest.approx(sum(value) / len(value), rel=1e-5)


def test_teachers_may_differ_in_depth_and_width() -> None:
    layers = ((4, 8, 12), (8, 16, 24), (4, 8, 12))
    assert [s.labels for s in plan("multi_head", (4, 6, 4), layers)][1] == ("8", "16", "24")
    (joined,) = plan("layerwise_concat", (4, 6, 4), layers)
    assert (joined.width, joined.labels) == (14, ("4+8+4", "8+16+8", "12+24+12"))


def test_what_cannot_be_put_together_is_an_error() -> None:
    with pytest.raises(EkdError, match="one width, not hubert 4, robust 6, wavlm 4"):
        plan("layerwise_average", (4, 6, 4))
    with pytest.raises(EkdError, match="equally many"):
        plan("layerwise_concat", layers=((4, 8, 12), (4, 12), (4, 8, 12)))


@pytest.mark.parametrize("difference", [-2, -1, 0, 1, 2])
def test_frames_are_trimmed_to_the_shorter(difference: int) -> None:
    prediction, target = torch.randn(2, 3, 50, 4), torch.randn(2, 3, 50 + difference, 4)
    ours, theirs = align_frames(prediction, target)
    assert ours.shape == theirs.shape == (2, 3, 50 + min(difference, 0), 4)
    assert torch.equal(theirs, target[:, :, : ours.shape[2]])


def test_more_than_two_frames_is_an_error_with_both_shapes() -> None:
    with pytest.raises(EkdError, match=r"\(2, 3, 50, 4\).*\(2, 3, 53, 4\)"):
        align_frames(torch.zeros(2, 3, 50, 4), torch.zeros(2, 3, 53, 4))


def test_the_loss_is_the_unweighted_mean_over_heads_and_teachers() -> None:
    losses = {name: head_losses(torch.randn(1, n, 5, 4), torch.randn(1, n, 5, 4)) for name, n in (("a", 3), ("b", 1))}
    values = [float(l1 + 0.5 * cos) for s in losses.values() for l1, cos in zip(s.l1, s.cosine, strict=True)]
    assert float(mean_over_heads(losses, 0.5)) == pytest.approx(sum(values) / 4)


def test_a_perfect_prediction_costs_only_the_cosine_floor() -> None:
    target = torch.randn(1, 2, 5, 4)
    loss = head_losses(target, target)
    assert loss.l1.abs().max() == 0
    assert torch.allclose(loss.cosine, torch.log1p(torch.exp(torch.tensor(-1.0))).expand(2), atol=1e-5)


def test_the_fused_terms_equal_the_plain_ones() -> None:
    """Values and gradients of the one-pass terms against torch's own operators, in every mix of precisions."""

    def plain(prediction: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        prediction, target = prediction.float(), target.float()
        cosine = torch.cosine_similarity(prediction, target, dim=-1)
        return (prediction - target).abs().mean(-1), -torch.nn.functional.logsigmoid(cosine)

    def ours_by_frame(prediction: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Every frame as a clip of its own."""
        losses = HeadLosses.of_clips(*frame_losses(*(x.reshape(-1, 1, 1, x.shape[-1]) for x in (prediction, target))))
        return losses.l1.view(prediction.shape[:-1]), losses.cosine.view(prediction.shape[:-1])

    generator = torch.Generator().manual_seed(0)
    for ours, theirs in ((torch.float32,) * 2, (torch.bfloat16, torch.float32), (torch.bfloat16,) * 2):
        prediction = torch.randn(2, 3, 5, 8, generator=generator).to(ours)
        target = torch.randn(2, 3, 5, 8, generator=generator).to(theirs)
        prediction[0, 0, 0] = 0.0  # a frame of zeros: its cosine is 0, nothing is divided by 0
        target[0, 0, 1] = prediction[0, 0, 1].to(theirs)  # equal: |p - t| has no slope there
        weights = torch.randn(2, 2, 3, 5, generator=generator)
        found = []
        for terms in (plain, ours_by_frame):
            own = prediction.clone().requires_grad_()
            l1, cosine = terms(own, target)
            (weights[0] * l1 + weights[1] * cosine).sum().backward()
            found.append((l1, cosine, own.grad))
            assert own.grad is not None and own.grad.dtype == ours and l1.dtype == torch.float32
        keep = torch.ones(2, 3, 5, dtype=torch.bool)
        keep[0, 0, 0] = False  # the cosine of a frame of zeros has no slope: what stands for it differs
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one[keep], other[keep], rtol=1e-5 if ours == torch.float32 else 1e-2, atol=1e-6)
            assert one.isfinite().all() and other.isfinite().all()
    double = torch.randn(1, 1, 3, 6, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: ours_by_frame(p, double), torch.randn_like(double).requires_grad_())
