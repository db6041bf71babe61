"""Other students and other targets: masks, depth, where a student starts; residual heads, FFN outputs."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from distill_lab import TEACHERS
from export_student import LARGE, SMALL, export_hf, write_student
from pretrain_lab import STUDENT, make_expert
from torch import nn

from s3prl_ekd.config import MaskConfig, load_model_config
from s3prl_ekd.distill.residual import plan_residuals
from s3prl_ekd.distill.targets import TeacherLayers
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.clips import encode_clips
from s3prl_ekd.model.encoder import Dropout, TransformerLayer, count_parameters
from s3prl_ekd.model.heads import HeadSet
from s3prl_ekd.model.masking import SpanMask
from s3prl_ekd.model.student import Student, initialise_student, start_layers, student_shape
from s3prl_ekd.student_checkpoint import load_student
from s3prl_ekd.student_part import same_weights, student_state
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.build import check_teachers, load_initialiser, pinned
from s3prl_ekd.teachers.ensemble import FrozenTeachers
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_transformers
from s3prl_ekd.torch_file import read_torch_file
from s3prl_ekd.variants import packaged

RATES = ("dropout", "attention_dropout", "activation_dropout")


def test_residual_heads_predict_the_difference_of_two_teachers() -> None:
    labelled = {n: {l: torch.full((2, 3, 4), 100.0 * t + l) for l in range(13)} for t, n in enumerate("abc")}
    teachers = [TeacherLayers("a", (4, 8), 4), TeacherLayers("b", (4, 12), 4), TeacherLayers("c", (4, 8), 4)]
    first, second = plan_residuals([["c", "a"], ["b", "a"]], teachers)
    assert (first.name, first.labels) == ("c_minus_a", ("4", "8"))
    assert first.gather(labelled).unique().tolist() == [200.0]
    assert (second.name, second.labels) == ("b_minus_a", ("4", "12-8"))
    assert [second.gather(labelled)[:, i].unique().tolist() for i in range(2)] == [[100.0], [104.0]]


@pytest.mark.parametrize(("pairs", "message"), [
    ([["a", "x"]], r"residual_heads\[0\]: \['a', 'x'\] must be two of the teachers a, b, c"),
    ([["a", "b"], ["c", "c"]], r"residual_heads\[1\]"),
    ([["a", "b"], ["a", "b"]], "a_minus_b is listed twice"),
])  # fmt: skip
def test_residual_mistakes(pairs: list[list[str]], message: str) -> None:
    with pytest.raises(EkdError, match=message):
        plan_residuals(pairs, TEACHERS)


@pytest.mark.parametrize("other", [TeacherLayers("b", (1, 2), 6), TeacherLayers("b", (1,), 8)])
def test_unlike_teachers_have_no_difference(other: TeacherLayers) -> None:
    with pytest.raises(EkdError, match=r"residual_heads\[0\]: differences need one width and equally many layers"):
        plan_residuals([["a", "b"]], [TeacherLayers("a", (1, 2), 8), other])


@pytest.mark.parametrize("attention", ["plain", "gated_relative"])
def test_ffn_targets_are_the_feed_forward_output_before_its_residual(attention: str) -> None:
    encoder = random_encoder(TINY.with_(attention=attention, layers=3), seed=4)
    wave = 0.1 * torch.randn(2, 4_000)
    with torch.no_grad():
        full = encoder(wave)
        found = FrozenTeachers({"t": encoder}, {"t": [1, 3]}, tap="ffn")(wave)["t"]
        for l in (1, 3):
            layer, x = encoder.layers[l - 1], full.states[l - 1]
            bias = encoder.relative_bias(x.shape[1]) if encoder.relative_bias is not None else None
            x = layer.attention_norm(x + layer.attention(x, None, bias))
            assert torch.allclose(found[l], layer.ffn_out(F.gelu(layer.ffn_in(x))), atol=1e-5)
            assert torch.allclose(layer.ffn_norm(x + found[l]), full.states[l], atol=1e-5)


def test_ffn_targets_of_a_foreign_upstream_are_refused() -> None:
    with pytest.raises(EkdError, match="cannot look into"):
        FrozenTeachers({"t": torch.nn.Identity()}, {"t": [1]}, tap="ffn")


@pytest.mark.parametrize(("choice", "count", "expected"), [
    ("first", 2, [1, 2]), ("spread", 2, [1, 7]), ("spread", 3, [1, 5, 9]), ("spread", 12, list(range(1, 13))),
    ([1, 12], 2, [1, 12]),
])  # fmt: skip
def test_layers_that_start_the_student(choice: str | list[int], count: int, expected: list[int]) -> None:
    assert start_layers(choice, count, 12) == expected


def test_a_student_deeper_than_the_teacher_cannot_start_from_it() -> None:
    with pytest.raises(EkdError, match="^ekd.initialise_from: the student has 13 layers, the teacher only 12$"):
        start_layers("spread", 13, 12)


def test_a_student_starts_from_the_chosen_layers(lab: Path) -> None:
    source = read_torch_file(lab / "teachers" / "hubert.pt")["model_weight"]
    for choice, layers in (("spread", [1, 4]), ([6, 2], [6, 2])):
        student = make_expert(lab, initialise_layers=choice).model.encoder
        for ours, theirs in zip(student.layers, layers, strict=True):
            assert torch.equal(ours.ffn_in.weight, source[f"encoder.layers.{theirs - 1}.fc1.weight"])
    with pytest.raises(EkdError, match=r"ekd.initialise_layers: \[7, 1\]: expected 2 layers .* from 1 to 6"):
        make_expert(lab, initialise_layers=[7, 1])


@pytest.mark.parametrize("channels", [TINY.conv_layers[-1][0], TINY.width])
def test_a_student_that_starts_from_a_student_is_that_student(tmp_path: Path, channels: int) -> None:
    """docs/faq.md: a new run from a trained one. Of a teacher with a norm on its conv features the norm is left out.

    One as wide as its conv channels has no projection, but its folder has one, the identity.
    """
    trained, folder = tmp_path / "states-10.ckpt", tmp_path / "trained"
    small = SMALL | {"conv_layers": [[channels, *layer[1:]] for layer in TINY.conv_layers]}
    write_student(trained, student=small)
    assert export_hf(trained, folder) == 0
    values = load_model_config(packaged("config_model.yaml")).model_dump(mode="json")
    values["student"] |= small
    expected = load_student(trained).encoder.state_dict()
    for start in (folder, trained, tmp_path):
        values["ekd"] |= {
            "teachers": [{"name": "a", "source": "embedded:tiny_hubert", "layers": [2]}],
            "initialise_from": str(start),
        }
        plan, started = check_teachers(load_model_config(values)), Student(load_model_config(values).student).encoder
        before = torch.get_rng_state()
        initialise_student(started, load_initialiser(plan, {}).encoder)
        assert torch.equal(before, torch.get_rng_state())
        assert [name for name, value in started.state_dict().items() if not torch.equal(value, expected[name])] == []
        pinned_start = pinned(plan).ekd.initialise_from
        assert pinned_start == str(folder if start == folder else trained)
    if channels == TINY.width:
        encoder = sources.load(sources.describe(str(folder)))
        with torch.no_grad():
            encoder.projection.weight[0, 1] = 0.5
        with pytest.raises(EkdError, match=r"its projection changes the conv features, and .* \(96\) has none"):
            initialise_student(started, encoder)
        return
    initialise_student(started, random_encoder(TINY.with_(layers=2), seed=5))
    assert torch.equal(started.norm.weight, expected["norm.weight"])


@pytest.mark.parametrize("bias", [False, True], ids=["HuBERT Large", "XLS-R"])
def test_a_student_of_large_norms_starts_from_a_large_teacher(lab: Path, tmp_path: Path, bias: bool) -> None:
    """Fed with loud clips off centre, which it hears normalised, a student of all layers has the teacher's own states.

    But for the norm on the conv features, which no student has: here the teacher's is the identity on them.
    """
    teacher = random_encoder(TINY.with_(**LARGE | {"conv_bias": bias}, layers=3, feature_norm=False), seed=3)
    folder = write_transformers(teacher, tmp_path / "large")
    values = load_model_config(packaged("config_model.yaml")).model_dump(mode="json")
    values["student"] |= STUDENT | LARGE | {"conv_bias": bias, "layers": 3, **dict.fromkeys(RATES, 0.0)}
    values["ekd"] |= {"teachers": [{"name": "a", "source": "embedded:tiny_hubert", "layers": [2]}],
                      "initialise_from": str(folder)}  # fmt: skip
    config = load_model_config(values)
    plan, student = check_teachers(config), Student(config.student).eval()
    copied = initialise_student(student.encoder, load_initialiser(plan, {}).encoder)
    assert copied[:4] == ["conv stack", "projection", "positional convolution", "last norm"] and len(copied) == 7
    wave = 3 + 5 * torch.randn(2, 16_000)
    with torch.no_grad():
        out, _ = student(wave)
        expected = FrozenTeachers({"a": teacher}, {"a": [3]})(wave)["a"][3]
        served = encode_clips(student.encoder, list(wave))
    torch.testing.assert_close(out.states[3], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(served.states[3], expected, atol=1e-4, rtol=1e-4)
    values["student"] |= {"conv_bias": not bias}
    with pytest.raises(EkdError, match=f"ekd.initialise_from: conv_bias is {not bias} in the student, {bias} in the"):
        check_teachers(load_model_config(values))


def test_a_student_of_large_norms_trains(lab: Path) -> None:
    expert = make_expert(lab, student=LARGE, initialise_from=None)
    loss, _ = expert(next(iter(expert.loader)), records={}, global_step=1, log_step=1)
    loss.backward()
    gradients = [parameter.grad for parameter in expert.model.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


def test_a_student_starts_from_the_conv_stack_alone(lab: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of any teacher that has its convolutions: of another width, or with WavLM's attention. Frozen, it stays so."""
    caplog.set_level(logging.INFO)
    narrow = {"width": 48, "ffn_width": 64, "heads": 2, "pos_conv_groups": 4, "feature_grad_mult": 0}
    for name in ("hubert", "wavlm"):
        expert = make_expert(lab, student=narrow, initialise_from=name, initialise_parts="conv_stack")
        ours = expert.model.encoder
        fresh = make_expert(lab, student=narrow | {"feature_grad_mult": 1}, initialise_from=None).model.encoder
        assert f"[ekd] student starts from {name}: conv stack" in caplog.messages
        theirs = expert.teachers.encoders[name].frontend.state_dict()
        assert same_weights(ours.frontend.state_dict(), theirs)
        assert not same_weights(fresh.frontend.state_dict(), theirs)
        rest = [
            (own, other) for own, other in zip(ours.parameters(), fresh.parameters(), strict=True) if own.requires_grad
        ]
        assert all(torch.equal(own, other) for own, other in rest)


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_a_frozen_conv_stack_stays_as_it_starts(lab: Path, factor: float) -> None:
    expert = make_expert(lab, student={"feature_grad_mult": factor}).train()
    before = {name: value.clone() for name, value in expert.model.encoder.state_dict().items()}
    optimizer = torch.optim.AdamW(expert.model.parameters(), lr=1e-3)
    for step, batch in enumerate(expert.loader, start=1):
        loss, _ = expert(batch, records={}, global_step=step, log_step=1)
        loss.backward()
        optimizer.step()
    changed = {
        name for name, value in expert.model.encoder.state_dict().items() if not torch.equal(value, before[name])
    }
    frontend = {name for name in before if name.startswith("frontend.")}
    assert frontend and changed == (set(before) if factor else set(before) - frontend)


def test_a_student_takes_the_heads_that_both_have(lab: Path, tmp_path: Path, caplog) -> None:
    first = make_expert(lab)
    with torch.no_grad():
        for parameter in first.model.parameters():
            parameter.add_(0.01)
    state = first.add_state_to_save({"Step": 3, "Args": Namespace(expdir=str(tmp_path))})
    torch.save(state, tmp_path / "states-3.ckpt")
    teachers = [dict(teacher) for teacher in yaml.safe_load((lab / "model.yaml").read_text())["ekd"]["teachers"]]
    teachers[1] |= {"layers": [2, 3, 6]}  # the same sizes, but other targets
    teachers[2] |= {"name": "other"}
    caplog.set_level(logging.INFO)
    changes = {"teachers": teachers}
    plain = make_expert(lab, **changes, initialise_from=None).model
    again = make_expert(lab, **changes, initialise_from=str(tmp_path)).model
    kept, changed, renamed = (teacher["name"] for teacher in teachers)
    assert f"[ekd] heads from there: {kept}; fresh: {changed}, {renamed}" in caplog.text
    for name, source in ((kept, first.model), (changed, plain), (renamed, plain)):
        assert same_weights(again.heads[name].state_dict(), source.heads[name].state_dict()), name
    assert same_weights(again.encoder.state_dict(), first.model.encoder.state_dict())
    assert not same_weights(plain.heads[kept].state_dict(), again.heads[kept].state_dict())


def test_each_dropout_is_where_its_name_says() -> None:
    values = load_model_config(packaged("config_model.yaml")).model_dump(mode="json")
    values["student"] |= STUDENT | {"dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.3}
    encoder = Student(load_model_config(values).student).encoder
    assert encoder.hidden_dropout == 0.1 and [layer.attention.dropout for layer in encoder.layers] == [0.2, 0.2]
    assert {layer.dropout for layer in encoder.layers} == {Dropout(hidden=0.1, attention=0.2, activation=0.3)}
    x = torch.randn(2, 7, TINY.width)
    hidden, activation = (TransformerLayer(TINY, Dropout(**{name: 1.0})).train() for name in ("hidden", "activation"))
    with torch.no_grad():
        hidden.ffn_out.bias.fill_(0.5)
        activation.ffn_out.bias.copy_(torch.randn(TINY.width))
    assert torch.allclose(hidden(x, None, None), hidden.ffn_norm(hidden.attention_norm(x)), atol=1e-5)
    attended = activation.attention_norm(x + activation.attention(x))
    expected = activation.ffn_norm(attended + activation.ffn_out.bias)
    assert torch.allclose(activation(x, None, None), expected, atol=1e-5)
    assert not torch.allclose(activation.eval()(x, None, None), expected, atol=1e-2)
    attention = TransformerLayer(TINY, Dropout(attention=1.0)).attention  # to no frame at all
    assert torch.equal(attention.train()(x), attention.out.bias.expand_as(x))
    assert not torch.allclose(attention.eval()(x), attention.out.bias.expand_as(x))


def test_heads_start_as_torchs_linear_layers_do() -> None:
    torch.manual_seed(0)
    heads, layer = HeadSet(64, 96, [2, 2, 2]), nn.Linear(64, 3 * 96)
    for ours, theirs in ((heads.weight.data, layer.weight.data), (heads.bias.data, layer.bias.data)):
        assert ours.std() == pytest.approx(theirs.std().item(), rel=0.1) and ours.mean().abs() < 0.1 * ours.std()
        assert ours.abs().max() == pytest.approx(theirs.abs().max().item(), rel=0.02)


def test_the_deep_thin_student_has_the_papers_size() -> None:
    config = load_model_config(packaged("variants/deep_thin.yaml"))
    assert student_shape(config.student).layers == 12
    count = count_parameters(Student(config.student).encoder)
    assert count == 23_328_384 and abs(count / 23_491_200 - 1) < 0.01


def test_masked_spans_are_as_long_and_as_many_as_they_should_be() -> None:
    mask = SpanMask(4, MaskConfig(probability=0.065, length=10)).train()
    torch.manual_seed(0)
    drawn = mask.draw(200, 500, torch.device("cpu"))
    assert float(drawn[:, 10:].float().mean()) == pytest.approx(1 - (1 - 0.065) ** 10, abs=0.01)
    for clip in drawn[:20]:
        runs = torch.tensor_split(clip, (clip[1:] != clip[:-1]).nonzero().flatten() + 1)
        inner = [run for run in runs[:-1] if run[0]]
        assert all(len(run) >= 10 for run in inner)
    features = torch.randn(2, 300, 4)
    torch.manual_seed(1)
    out = mask(features)
    changed = (out != features).any(-1)
    assert torch.equal(out[changed], mask.vector.expand_as(out[changed])) and changed.any() and not changed.all()
    torch.manual_seed(1)
    assert torch.equal(out, mask(features))
    assert mask.eval()(features) is features


def test_a_masked_student_trains_its_vector_and_loads_without_it(lab: Path, tmp_path: Path) -> None:
    config = load_model_config(packaged("config_model.yaml")).model_dump(mode="json")
    config["student"] |= STUDENT | {"mask": {"probability": 0.2, "length": 3}}
    config = load_model_config(config)
    student = Student(config.student).train()
    wave = 0.1 * torch.randn(2, 8_000)
    out, _ = student(wave)
    assert not torch.isnan(out.states[2]).any()
    out.states[2].square().mean().backward()
    assert student.mask.vector.grad.abs().sum() > 0
    file = tmp_path / "states-1.ckpt"
    torch.save({"EKD": student_state(student, config, [])}, file)
    encoder, _, part = load_student(file)
    assert torch.equal(part["mask"]["vector"], student.mask.vector)
    with torch.no_grad():
        assert torch.equal(encoder(wave).states[2], student.eval()(wave)[0].states[2])
