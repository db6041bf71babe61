"""``ekd.student_layers``: heads that read other states of the student than its last one, in training and after it."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from distill_lab import heads as linear_heads
from distill_lab import hidden_state, objective, states
from export_student import LARGE
from pretrain_lab import make_expert

from s3prl_ekd.config import load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.export.merge import merge_checkpoints
from s3prl_ekd.export.superb import export_superb
from s3prl_ekd.macs.models import checkpoint_cost, submission_cost
from s3prl_ekd.model import onednn
from s3prl_ekd.model.heads import HeadSet
from s3prl_ekd.student_checkpoint import load_student
from s3prl_ekd.upstream.ekd_student.expert import UpstreamExpert
from s3prl_ekd.variants import packaged

READS = [1, 0, 2]


@pytest.mark.parametrize("by_onednn", [False, True])
def test_each_head_is_two_linears_on_the_state_that_it_reads(by_onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_onednn:
        monkeypatch.setattr(onednn, "is_faster", lambda *args: True)
    student = {number: torch.randn(2, 7, 16) for number in range(3)}
    heads = HeadSet(16, 24, READS)
    out = heads(student)
    for head, number in enumerate(READS):
        rows = slice(16 * head, 16 * head + 16)
        hidden = F.gelu(F.linear(student[number], heads.expand.weight[rows], heads.expand.bias[rows]))
        expected = hidden @ heads.weight[head] + heads.bias[head]
        torch.testing.assert_close(out[:, head], expected, atol=1e-5, rtol=1e-5)


def test_heads_of_equal_states_are_those_of_one_state() -> None:
    """The same weights in the same places, whether one product serves all heads or each has its own."""
    apart, together = HeadSet(16, 24, [0, 1, 2]), HeadSet(16, 24, [2, 2, 2])
    together.load_state_dict(apart.state_dict())
    state = torch.randn(2, 7, 16)
    torch.testing.assert_close(apart({n: state for n in range(3)}), together({2: state}), atol=1e-6, rtol=1e-5)


def test_heads_of_one_state_round_as_s3prls_output_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit: oneDNN computes GELU of a tensor without gaps alone, and rounds otherwise."""
    heads, state = HeadSet(192, 192, [2, 2, 2]), torch.randn(4, 149, 192)
    monkeypatch.setattr(onednn, "is_faster", lambda *args: False)
    with torch.no_grad():
        hidden = F.gelu(heads.expand(state)).view(4 * 149, 3, 192).transpose(0, 1)
        expected = torch.baddbmm(heads.bias.unsqueeze(1), hidden, heads.weight).view(3, 4, 149, 192).transpose(0, 1)
        assert torch.equal(heads({2: state}), expected)


def test_a_head_trains_what_is_below_the_state_that_it_reads(lab: Path) -> None:
    expert = make_expert(lab, student_layers=READS).eval()
    assert expert.model.reads == tuple(READS) * 3
    _, predictions = expert.model(next(iter(expert.loader)).wave)
    layers = expert.model.encoder.layers
    reached = {}
    for head, number in enumerate(READS):
        expert.model.zero_grad()
        predictions["hubert"][:, head].square().mean().backward(retain_graph=True)
        reached[number] = [bool(layer.ffn_in.weight.grad.any()) for layer in layers]
    assert reached == {0: [False, False], 1: [True, False], 2: [True, True]}


def test_the_gradient_share_is_that_at_the_state_that_the_head_reads() -> None:
    subject = objective()
    given = [hidden_state(seed) for seed in range(len(subject.heads))]
    predictions = {}
    for index, target in enumerate(subject.target_sets):
        rows = [linear_heads(state, subject.target_sets)[target.name] for state in given[2 * index : 2 * index + 2]]
        predictions[target.name] = torch.stack([rows[0][:, 0], rows[1][:, 1]], dim=1)
    loss, values = subject(predictions, given, states(), log=True)
    loss.backward()
    norms = torch.stack([state.grad.norm() for state in given])
    found = torch.tensor([values[head]["gradient_share"] for head in subject.heads])
    torch.testing.assert_close(found, norms / norms.sum(), atol=1e-5, rtol=1e-4)


def test_a_student_goes_on_and_starts_another_with_heads_that_read_the_same(lab: Path, tmp_path: Path) -> None:
    expert = make_expert(lab, student_layers=READS)
    with torch.no_grad():
        for parameter in expert.model.parameters():
            parameter.add_(0.01)
    loss, _ = expert(next(iter(expert.loader)), records={}, global_step=1, log_step=1)
    loss.backward()
    assert all(parameter.grad is not None for parameter in expert.model.parameters())
    state = _saved(expert, tmp_path)
    resumed = make_expert(lab, student_layers=READS)
    resumed.load_model(state)
    batch = next(iter(make_expert(lab).loader)).wave
    for one, other in zip(_predict(expert, batch), _predict(resumed, batch), strict=True):
        assert torch.equal(one, other)
    again = make_expert(lab, student_layers=READS, initialise_from=str(tmp_path)).model
    assert torch.equal(again.heads["hubert"].weight, expert.model.heads["hubert"].weight)
    other = make_expert(lab, student_layers=[0, 1, 2], initialise_from=str(tmp_path)).model
    assert not torch.equal(other.heads["hubert"].weight, expert.model.heads["hubert"].weight)


@pytest.mark.parametrize("norms", [{}, LARGE], ids=["as Base", "as Large"])
def test_every_reader_of_a_checkpoint_gives_its_heads_the_states_that_they_read(
    lab: Path, tmp_path: Path, norms: dict[str, Any]
) -> None:
    expert = make_expert(lab, student_layers=READS, student=norms, initialise_from=None if norms else "hubert")
    _saved(expert, tmp_path)
    file = tmp_path / "states-3.ckpt"
    wavs = [0.1 * torch.randn(16_000) for _ in range(2)]
    with torch.no_grad():
        _, predictions = expert.model.eval()(torch.stack(wavs))
        expected = [head for of_set in predictions.values() for head in of_set.unbind(1)]
        upstream = UpstreamExpert(str(file), with_heads=True).eval()(wavs)["hidden_states"]
        folder = export_superb(file, tmp_path / "submission", keep_heads=True)
        submitted = _load(folder)(wavs)["hidden_states"]
        merged = merge_checkpoints([file, file], tmp_path / "elsewhere" / "merged.ckpt", [0.5, 0.5])
        of_merged = UpstreamExpert(str(merged), with_heads=True).eval()(wavs)["hidden_states"]
    for given in (upstream, submitted, of_merged):
        assert len(given) == 3 + 9
        for one, other in zip(given[3:], expected, strict=True):
            torch.testing.assert_close(one[:, : other.shape[1]], other, atol=1e-4, rtol=1e-4)
    assert submission_cost(folder) == checkpoint_cost(file, heads=True)


@pytest.mark.parametrize("reads", [[1, 0], [1, 0, 3], [-1, 0, 2]])
def test_a_checkpoint_whose_heads_read_what_is_not_there_is_one_line(
    lab: Path, tmp_path: Path, reads: list[int]
) -> None:
    state = _saved(make_expert(lab, student_layers=READS), tmp_path)
    state["EKD"]["head_sets"][0]["reads"] = reads
    torch.save(state, tmp_path / "states-3.ckpt")
    with pytest.raises(EkdError, match=r"states-3.ckpt: damaged student checkpoint .*hubert: reads "):
        load_student(tmp_path / "states-3.ckpt")


def test_without_the_key_a_checkpoint_is_as_before(lab: Path, tmp_path: Path) -> None:
    state = _saved(make_expert(lab), tmp_path)
    assert [set(one) for one in state["EKD"]["head_sets"]] == [{"name", "labels", "width"}] * 3
    assert load_student(tmp_path / "states-3.ckpt").heads["hubert"].reads == (2, 2, 2)


@pytest.mark.parametrize(("changes", "said"), [
    ({"student_layers": [1, 2]}, r"\[1, 2\] for the layers \[4, 8, 12\] of hubert; expected one for each"),
    ({"student_layers": [0, 1, 1]}, r"\[0, 1, 1\] of .* 2 layers; expected numbers from 0 to 2, 2 among them"),
    ({"student_layers": [0, 2, 3]}, "expected numbers from 0 to 2"),
    ({"student_layers": [-1, 0, 2]}, "expected numbers from 0 to 2"),
    ({"student_layers": [0, 1, 2], "balance": {}}, "balance: weighs gradients at one state"),
])  # fmt: skip
def test_mistakes_are_one_line(changes: dict[str, Any], said: str) -> None:
    values = load_model_config(packaged("config_model.yaml")).model_dump(mode="json")
    values["ekd"] |= changes
    with pytest.raises(EkdError, match=said):
        load_model_config(values)


def _saved(expert: Any, folder: Path) -> dict[str, Any]:
    state = expert.add_state_to_save({"Step": 2, "Args": Namespace(expdir=str(folder))})
    torch.save(state, folder / "states-3.ckpt")
    return state


def _predict(expert: Any, wave: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(expert.model.eval()(wave)[1].values())


def _load(folder: Path) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("layer_to_layer_expert", folder / "expert.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.UpstreamExpert(str(folder / "model.pt"))
