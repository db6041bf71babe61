"""The student as an s3prl upstream: contract, clip lengths, checkpoint in and out."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from export_student import SMALL, export_hf, write_student

from s3prl_ekd.config import load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.clips import encode_clips
from s3prl_ekd.model.student import Student
from s3prl_ekd.student_checkpoint import is_student, load_student, newest_checkpoint, untrained_student
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_transformers
from s3prl_ekd.upstream.ekd_student.expert import UpstreamExpert


@pytest.mark.parametrize("training", [False, True])
def test_s3prls_contract(checkpoint: Path, training: bool) -> None:
    expert = UpstreamExpert(str(checkpoint)).train(training)
    for seconds in ([2.0, 1.8, 3.7], [1.0], [0.05, 0.06], [0.05], [0.01]):
        wavs = [torch.rand(int(16_000 * s)) for s in seconds]
        with torch.no_grad():
            result = expert(wavs)
        states = result["hidden_states"]
        assert isinstance(states, list) and len(states) == 3
        assert len({state.shape for state in states}) == 1 and states[0].dim() == 3
        assert abs(states[0].shape[1] - round(max(map(len, wavs)) / expert.get_downsample_rates("x"))) < 5
        assert result["paper"] is result["last_hidden_state"] is states[-1]


@pytest.mark.parametrize("source", ["checkpoint", "exported", "fine-tuned"])
def test_in_train_mode_it_is_what_pretraining_trains(tmp_path: Path, source: str) -> None:
    """Dropout and the conv stack's smaller gradient (``-f``), as s3prl's distiller has it; by eval mode not one bit."""
    rates = {"dropout": 0.2, "attention_dropout": 0.3, "activation_dropout": 0.05, "feature_grad_mult": 0.25}
    file = start = write_student(tmp_path / "states-10.ckpt", student=rates)
    part = torch.load(file, weights_only=True)["EKD"]
    reference = Student(load_model_config(part["config"]).student).encoder
    reference.load_state_dict(part["encoder"])
    if source != "checkpoint":
        start = tmp_path / "exported"
        assert export_hf(file, start) == 0
    if source == "fine-tuned":
        args = Namespace(upstream="ekd_student", upstream_ckpt=str(start))
        weights = {f"encoder.{name}": value for name, value in part["encoder"].items()}
        start = tmp_path / "tuned.ckpt"
        torch.save({"Args": args, "Upstream": weights, "Downstream": {}}, start)
    expert, wavs = UpstreamExpert(str(start)), [torch.randn(9_000), torch.randn(8_000)]

    def gradients(encoder: torch.nn.Module, states: list[torch.Tensor]) -> list[torch.Tensor]:
        states[-1].square().mean().backward()
        return [parameter.grad for parameter in encoder.parameters()]

    torch.manual_seed(3)
    out = encode_clips(reference.train(), wavs, [1, 2])
    expected = gradients(reference, [out.states[1], out.states[2]])
    torch.manual_seed(3)
    states = expert.train()(wavs)["hidden_states"]
    assert torch.equal(states[1], out.states[1]) and torch.equal(states[2], out.states[2])
    for ours, theirs in zip(gradients(expert.encoder, states), expected, strict=True):
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        still = encode_clips(load_student(file).encoder, wavs, [1, 2])
        states = expert.eval()(wavs)["hidden_states"]
    assert torch.equal(states[1], still.states[1]) and torch.equal(states[2], still.states[2])


def test_a_folder_that_names_no_dropout_has_transformers_own(tmp_path: Path) -> None:
    folder = write_transformers(random_encoder(TINY.with_(layers=2), seed=0), tmp_path / "folder")
    encoder = UpstreamExpert(str(folder)).encoder
    layer = encoder.layers[0]
    assert (encoder.hidden_dropout, layer.attention.dropout, layer.dropout.activation) == (0.1, 0.1, 0.1)
    assert encoder.feature_grad_mult == 1.0
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("{", '{"hidden_dropout": 7,', 1))
    with pytest.raises(EkdError, match=r"folder: config.json: hidden_dropout: input should be less than .* found 7$"):
        UpstreamExpert(str(folder))


def test_a_long_clip(checkpoint: Path) -> None:
    with torch.no_grad():
        states = UpstreamExpert(str(checkpoint)).eval()([torch.randn(60 * 16_000)])["hidden_states"]
    assert states[0].shape == (1, 2_999, 96) and torch.isfinite(states[-1]).all()


def test_order_is_kept_and_padding_is_masked(checkpoint: Path) -> None:
    expert = UpstreamExpert(str(checkpoint)).eval()
    wavs = [torch.randn(n) for n in (8_000, 16_000, 12_000)]
    with torch.no_grad():
        forward, backward = expert(wavs)["hidden_states"], expert(wavs[::-1])["hidden_states"]
    for state, other in zip(forward, backward, strict=True):
        assert torch.allclose(state, other.flip(0), atol=1e-5)


def test_s3prls_featurizer_takes_it(checkpoint: Path) -> None:
    import s3prl_ekd

    s3prl_ekd.register()
    from s3prl.nn import Featurizer, S3PRLUpstream

    upstream = S3PRLUpstream("ekd_student", path_or_url=str(checkpoint)).eval()
    assert upstream.num_layers == 3
    lengths = torch.tensor([16_000, 9_000])
    with torch.no_grad():
        states, frames = upstream(torch.randn(2, 16_000), lengths)
        pooled, _ = Featurizer(upstream)(states, frames)
    assert pooled.shape == (2, 50, 96)


def test_predictions_when_asked(checkpoint: Path) -> None:
    with torch.no_grad():
        result = UpstreamExpert(str(checkpoint), heads=True).eval()([torch.randn(16_000)])
        assert "predictions" not in UpstreamExpert(str(checkpoint)).eval()([torch.randn(16_000)])
    expected = [f"{t}.{l}" for t in ("hubert", "robust_hubert", "wavlm") for l in (4, 8, 12)]
    assert list(result["predictions"]) == expected
    assert all(value.shape == (1, 49, 96) for value in result["predictions"].values())


def test_the_untrained_student_is_always_the_same(tmp_path: Path, seeds_of_gpus: list[int]) -> None:
    config = tmp_path / "model.yaml"
    config.write_text(f"base: config_model.yaml\nstudent: {SMALL}\n".replace("'", ""))
    wave = [torch.randn(8_000)]
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            outputs.append(UpstreamExpert(None, model_config=str(config)).eval()(wave)["hidden_states"][-1])
    assert torch.equal(*outputs)
    state = torch.get_rng_state()
    seeds_of_gpus.clear()
    assert not untrained_student(config).training  # it has dropout, as one that is to be trained
    assert torch.equal(state, torch.get_rng_state())  # and takes nothing from the caller's random numbers
    assert not seeds_of_gpus  # nor from a GPU's


def test_a_loaded_student_is_in_eval_mode(checkpoint: Path) -> None:
    student = load_student(checkpoint)
    assert not student.encoder.training and not student.heads.training


def test_another_model_that_was_fine_tuned_downstream_is_no_student(checkpoint: Path, tmp_path: Path) -> None:
    """The student's own weights under its name are one (test_fine_tuned.py)."""
    weights = {f"encoder.{name}": value for name, value in load_student(checkpoint).encoder.state_dict().items()}
    for upstream in ("ekd_student", "hubert_base"):
        args = Namespace(upstream=upstream, upstream_ckpt=str(checkpoint))
        torch.save({"Args": args, "Upstream": weights, "Downstream": {}}, tmp_path / f"{upstream}.ckpt")
    assert is_student(tmp_path / "ekd_student.ckpt") and not is_student(tmp_path / "hubert_base.ckpt")
    assert len(load_student(tmp_path / "ekd_student.ckpt").heads) == 0
    with pytest.raises(EkdError, match="hubert_base.ckpt: not a checkpoint of `run_pretrain.py -u ekd`"):
        load_student(tmp_path / "hubert_base.ckpt")
    for start, problem in ((None, "that began untrained"), ("gone.ckpt", ".* gone.ckpt, is not there")):
        args = Namespace(upstream="ekd_student", upstream_ckpt=start)
        torch.save({"Args": args, "Upstream": weights, "Downstream": {}}, tmp_path / "tuned.ckpt")
        with pytest.raises(EkdError, match=f"tuned.ckpt: a fine-tuned student.? {problem}"):
            load_student(tmp_path / "tuned.ckpt")


def test_a_folder_means_its_newest_checkpoint(checkpoint: Path) -> None:
    folder = UpstreamExpert(str(checkpoint.parent)).encoder.state_dict()
    file = UpstreamExpert(str(checkpoint)).encoder.state_dict()
    assert all(torch.equal(value, folder[name]) for name, value in file.items())
    (checkpoint.parent / "config.json").write_text("{}")  # of whatever tool: where there is a checkpoint, it counts
    assert newest_checkpoint(checkpoint.parent) == checkpoint


def test_the_newest_checkpoint_is_the_one_of_the_highest_step(checkpoint: Path, tmp_path: Path, caplog) -> None:
    """Not the youngest file (copying a folder shuffles times), nor the highest number (the last is states-epoch-N)."""
    for step, name in ((30, "states-epoch-3.ckpt"), (20, "states-20.ckpt")):
        torch.save(torch.load(checkpoint, weights_only=True) | {"Step": step}, tmp_path / name)
    (tmp_path / "states-40.ckpt").write_bytes(checkpoint.read_bytes()[:1_000])
    torch.save({"Step": "50"}, tmp_path / "states-50.ckpt")
    assert newest_checkpoint(tmp_path).name == "states-epoch-3.ckpt"
    assert re.search(r"skipped: \S+states-40.ckpt: cannot be read .*; states-epoch-3.ckpt is taken", caplog.text)
    assert "states-50.ckpt: its Step is '50', expected a whole number" in caplog.text
    for name in ("states-epoch-3.ckpt", "states-20.ckpt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(EkdError, match="states-20.ckpt: the file is empty"):
        newest_checkpoint(tmp_path)


def test_what_a_user_can_get_wrong(tmp_path: Path, checkpoint: Path) -> None:
    def message(path: object) -> str:
        with pytest.raises(EkdError) as caught:
            UpstreamExpert(str(path))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such checkpoint" in message(tmp_path / "none.ckpt")
    assert "no states-" in message(tmp_path)
    torch.save({"Distiller": {}, "Config": {}}, tmp_path / "other.ckpt")
    assert "`run_pretrain.py -u ekd` (it holds Distiller, Config" in message(tmp_path / "other.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:1_000])
    assert "cut.ckpt: cannot be read" in message(tmp_path / "cut.ckpt")
    states = torch.load(checkpoint, weights_only=True)
    states["EKD"]["encoder"].pop("norm.weight")
    torch.save(states, tmp_path / "damaged.ckpt")
    reason = 'Error(s) in loading state_dict for Encoder: Missing key(s) in state_dict: "norm.weight".'
    assert f"damaged student checkpoint ({reason}" in message(tmp_path / "damaged.ckpt")
    for section, key, value in (("shape", "heads", 0), ("encoder", 3, 4)):
        states = torch.load(checkpoint, weights_only=True)
        states["EKD"][section][key] = value
        torch.save(states, tmp_path / "damaged.ckpt")
        assert "damaged.ckpt: damaged student checkpoint (" in message(tmp_path / "damaged.ckpt")
    for part, said in (
        ([1], "EKD is a list, expected a dictionary"),
        (states["EKD"] | {"format": 2}, "checkpoint format 2; this version reads 1"),
        (states["EKD"] | {"heads": []}, "damaged student checkpoint: EKD.heads is a list"),
        ({"format": 1}, "damaged student checkpoint: EKD.shape is missing"),
    ):
        torch.save({"EKD": part}, tmp_path / "other.ckpt")
        assert message(tmp_path / "other.ckpt") == f"{tmp_path}/other.ckpt: {said}"
    torch.save([1], tmp_path / "other.ckpt")
    assert message(tmp_path / "other.ckpt").endswith("other.ckpt: holds a list, not a checkpoint's dictionary")
    with pytest.raises(EkdError, match="-k CKPT"):
        UpstreamExpert(None)


def test_heads_are_states_too_when_asked(checkpoint: Path, tmp_path: Path) -> None:
    """As s3prl's distilhubert; averaged over the teachers, a difference of two of them left out, as the authors'."""
    wave = [torch.randn(16_000)]
    part = torch.load(checkpoint, weights_only=True)
    one = part["EKD"]["head_sets"][0]
    part["EKD"]["head_sets"] = [{**one, "name": "a"}, {**one, "name": "b"}, {**one, "name": "a_minus_b"}]
    names = ("hubert", "robust_hubert", "wavlm")
    heads = part["EKD"]["heads"]
    renamed = dict(zip(names, ("a", "b", "a_minus_b"), strict=True))
    part["EKD"]["heads"] = {f"{renamed[n.partition('.')[0]]}.{n.partition('.')[2]}": v for n, v in heads.items()}
    part["EKD"]["config"]["ekd"]["residual_heads"] = [["a", "b"]]
    torch.save(part, tmp_path / "differences.ckpt")
    for file, count in ((checkpoint, 3), (tmp_path / "differences.ckpt", 2)):
        with torch.no_grad():
            plain = UpstreamExpert(str(file), heads=True).eval()(wave)
            result = UpstreamExpert(str(file), with_heads=True).eval()(wave)
        states, predictions = plain["hidden_states"], list(plain["predictions"].values())
        assert len(states) == 3 and len(predictions) == 9
        expected = [*states, *predictions]
        assert all(torch.equal(a, b) for a, b in zip(result["hidden_states"], expected, strict=True))
        averaged = [sum(predictions[position + 3 * number] for number in range(count)) / count for position in range(3)]
        assert all(torch.equal(a, b) for a, b in zip(result["heads_averaged"][:3], states, strict=True))
        assert all(torch.allclose(a, b) for a, b in zip(result["heads_averaged"][3:], averaged, strict=True))
        assert torch.equal(result["paper"], states[-1])


def test_heads_that_cannot_be_states_are_one_line(tmp_path: Path, hub: object) -> None:
    wide = write_student(tmp_path / "wide.ckpt", teacher_width=64)
    with pytest.raises(EkdError, match=r"wide.ckpt: head set 'hubert' predicts 64 channels, and the hidden .* 96$"):
        hub.ekd_student_with_heads(str(wide))
    folder = write_transformers(random_encoder(TINY.with_(layers=2), seed=0), tmp_path / "folder")
    with pytest.raises(EkdError, match=r"-u ekd_student_with_heads: .*folder holds no heads$"):
        hub.ekd_student_with_heads(str(folder))
    with pytest.raises(EkdError, match=r"-u ekd_student_with_heads needs a checkpoint: -k CKPT$"):
        hub.ekd_student_with_heads(model_config="embedded")


def test_s3prls_featurizer_takes_the_heads(checkpoint: Path, hub: object) -> None:
    from s3prl.nn import Featurizer, S3PRLUpstream

    upstream = S3PRLUpstream("ekd_student_with_heads", path_or_url=str(checkpoint)).eval()
    assert upstream.num_layers == 12
    with torch.no_grad():
        pooled, _ = Featurizer(upstream)(*upstream(torch.randn(2, 16_000), torch.tensor([16_000, 9_000])))
    assert pooled.shape == (2, 50, 96)
