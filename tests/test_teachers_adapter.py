"""Any s3prl upstream as a teacher, and the command that shows teachers."""

from __future__ import annotations

import gc
import wave as wave_file
import weakref
from pathlib import Path
from types import ModuleType

import pytest
import torch
from export_student import SMALL
from teacher_oracles import LENGTHS, waves
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.cli import main
from s3prl_ekd.config import load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.frontend import frame_mask
from s3prl_ekd.teachers import adapter, sources
from s3prl_ekd.teachers.adapter import S3prlUpstream, UpstreamShape
from s3prl_ekd.teachers.build import check_teachers, freeze, load_teachers
from s3prl_ekd.teachers.ensemble import FrozenTeachers
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_converted


def test_a_10_ms_upstream_is_pooled_to_20_ms(hub: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    adapter._built.clear()  # it says what it pools when it builds
    described = sources.describe("s3prl:fbank")
    assert (described.kind, described.shape.layers, described.shape.pool, described.shape.hop) == ("s3prl", 0, 2, 320)
    wave, lengths = pad_sequence(waves(), batch_first=True), torch.tensor(LENGTHS)
    states = FrozenTeachers({"t": sources.load(described)}, {"t": [0]})(wave, lengths)["t"][0]
    with torch.no_grad():
        theirs = hub.fbank().eval()(waves())["hidden_states"][0]
    assert states.shape == (3, 24, theirs.shape[-1])
    whole = theirs.shape[1] // 2
    assert torch.equal(states[:, :whole], ((theirs[:, 0::2][:, :whole] + theirs[:, 1::2]) / 2)[:, :24])
    assert "averaged into one of 20 ms" in caplog.text


def test_of_an_odd_number_of_frames_the_last_one_counts(hub: ModuleType) -> None:
    clip = waves()[0].repeat(2)[:8_080]  # 49 frames of 10 ms, 25 of 20 ms
    states = FrozenTeachers({"t": sources.load(sources.describe("s3prl:fbank"))}, {"t": [0]})(clip[None])["t"][0]
    with torch.no_grad():
        theirs = hub.fbank().eval()([clip])["hidden_states"][0]
    assert (theirs.shape[1], states.shape[1]) == (49, 25)
    assert torch.equal(states[:, -1], theirs[:, -1])


@pytest.mark.parametrize("upstream,checkpoint", [("tera_url", "https://host/a.ckpt"), ("hf_hubert_custom", "org/name")])
def test_s3prl_gets_addresses_and_names_as_they_are(
    monkeypatch: pytest.MonkeyPatch, upstream: str, checkpoint: str
) -> None:
    given: list[str] = []
    monkeypatch.setattr(adapter, "find_upstream", lambda name: lambda ckpt: given.append(ckpt) or 1 / 0)
    with pytest.raises(EkdError, match=f"{upstream}.*division by zero"):
        sources.describe(f"s3prl:{upstream}:{checkpoint}")
    assert given == [checkpoint]


def test_building_one_leaves_the_runs_own_random_numbers(hub: ModuleType, seeds_of_gpus: list[int]) -> None:
    """Else the random weights of a student, and its dropout on a GPU, would be others beside such a teacher."""
    adapter._built.clear()
    torch.manual_seed(0)
    seeds_of_gpus.clear()
    before = torch.get_rng_state()
    sources.describe("s3prl:fbank")
    assert torch.equal(torch.get_rng_state(), before)
    assert not seeds_of_gpus


def test_an_ensemble_that_is_dropped_frees_its_upstreams(hub: ModuleType) -> None:
    described = sources.describe("s3prl:fbank")
    teachers = FrozenTeachers({"t": sources.load(described)}, {"t": [0]})
    kept = weakref.ref(teachers.encoders["t"])
    del teachers
    gc.collect()
    assert kept() is None


def write_tera(file: Path) -> Path:
    """A TERA checkpoint as s3prl writes it: 10 ms mel frames, three transformer layers, random weights."""
    from s3prl.upstream.mockingjay.model import TransformerConfig, TransformerModel

    transformer = {
        "input_dim": -1, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02, "layer_norm_eps": 1e-12, "share_layer": False, "pre_layer_norm": False,
    }  # fmt: skip
    feature = {"feat_type": "mel", "channel": 0, "log": True, "delta": 0, "cmvn": True}
    audio = {"target_level": -25, "win_ms": 25, "hop_ms": 10, "n_freq": 201, "n_mels": 16, "n_mfcc": 13,
             "input": feature, "target": feature | {"channel": 1}}  # fmt: skip
    config = {"transformer": transformer, "task": {"sequence_length": 0}, "audio": audio}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = TransformerModel(TransformerConfig(transformer), 16).state_dict()
    torch.save({"Config": config, "Transformer": weights}, file)
    return file


def test_tera_is_pooled_layer_by_layer(hub: ModuleType, tmp_path: Path) -> None:
    source = f"s3prl:tera_local:{write_tera(tmp_path / 'states-1.ckpt')}"
    described = sources.describe(source)
    assert (described.shape.layers, described.shape.width, described.shape.pool) == (3, 24, 2)
    wave = torch.stack([clip[:3_200] for clip in waves()])
    states = FrozenTeachers({"t": sources.load(described)}, {"t": [0, 1, 2, 3]})(wave)["t"]
    with torch.no_grad():
        theirs = hub.tera_local(ckpt=str(tmp_path / "states-1.ckpt")).eval()(list(wave))["hidden_states"]
    for layer, state in states.items():
        assert state.shape == (3, 9, 24)
        pooled = (theirs[layer][:, 0:18:2] + theirs[layer][:, 1:19:2]) / 2
        assert (state - pooled).norm() / pooled.norm() < 1e-5, layer


def test_an_experts_states_are_those_of_our_own_reader(hub: ModuleType, tmp_path: Path) -> None:
    file = write_converted(random_encoder(TINY.with_(padding_rule="fairseq", layers=2), seed=0), tmp_path / "hubert.pt")
    wave, lengths = pad_sequence(waves(), batch_first=True), torch.tensor(LENGTHS)
    states = {}
    for source in (str(file), f"s3prl:hubert_local:{file}"):
        described = sources.describe(source)
        assert (described.shape.layers, described.shape.width) == (2, 96)
        states[source] = FrozenTeachers({"t": sources.load(described)}, {"t": [1, 2]})(wave, lengths)["t"]
    ours, adapted = states.values()
    mask = frame_mask(lengths, wave.shape[1], ours[1].shape[1], sources.describe(str(file)).shape)
    for layer in (1, 2):
        assert (ours[layer] - adapted[layer])[mask].norm() / ours[layer][mask].norm() < 1e-5


def test_an_adapted_teacher_computes_in_fp32_whatever_the_ensemble_does() -> None:
    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(320, 8)

        def forward(self, wavs: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
            frames = pad_sequence(wavs, batch_first=True).unfold(1, 320, 320)
            return {"hidden_states": [self.linear(frames), 2 * self.linear(frames)]}

    expert = Expert()
    expected = expert.linear.weight.clone()
    teachers = FrozenTeachers({"t": S3prlUpstream("x", expert, UpstreamShape(1, 8, 1))}, {"t": [0, 1]}, "bf16")
    states = teachers(torch.randn(2, 3_200))["t"]
    assert states[1].dtype == torch.float32
    assert states[0].shape == (2, 9, 8)
    assert torch.equal(states[1], 2 * states[0])
    assert torch.equal(expert.linear.weight, expected)


def model_config(tmp_path: Path, **ekd: object) -> object:
    file = write_converted(random_encoder(TINY.with_(padding_rule="fairseq", layers=2), seed=0), tmp_path / "hubert.pt")
    teachers = [{"name": "hubert", "source": str(file), "layers": [1, 2]},
                {"name": "fbank", "source": "s3prl:fbank", "layers": [0]}]  # fmt: skip
    ekd = {"teachers": teachers, "mode": "multi_head", "initialise_from": "hubert", **ekd}
    return load_model_config({"student": SMALL, "ekd": ekd})


def test_teachers_of_different_kind_width_and_depth_mix(hub: ModuleType, tmp_path: Path) -> None:
    config = model_config(tmp_path)
    plan = check_teachers(config)
    teachers = freeze(plan, load_teachers(plan))
    states = teachers(torch.stack([clip[:3_200] for clip in waves()]))
    assert {name: sorted(found) for name, found in states.items()} == {"hubert": [1, 2], "fbank": [0]}
    assert states["hubert"][2].shape[:2] == states["fbank"][0].shape[:2]
    with pytest.raises(EkdError, match="student can start from our own encoders only"):
        check_teachers(model_config(tmp_path, initialise_from="fbank"))
    with pytest.raises(EkdError, match="no feed-forward blocks"):
        check_teachers(model_config(tmp_path, targets={"tap": "ffn"}))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3prl:no_such_thing", "source: no_such_thing: s3prl's hub has no such upstream"),
        ("s3prl:hubert_local", "needs a checkpoint"),
        ("s3prl:hubert_local:/no/file.pt", "source: no such file or folder: /no/file.pt"),
        ("s3prl:hf_hubert_custom:/no/folder", "could not be built and run"),
    ],
)
def test_what_s3prl_cannot_build_is_one_line(
    hub: ModuleType, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or a folder is asked for there, for long
    with pytest.raises(EkdError, match=message) as caught:
        sources.describe(source)
    assert "\n" not in str(caught.value)


def test_the_command_lists_and_shows(hub: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in sources.HUB)
    assert "s3prl:NAME:CKPT" in listed

    encoder = random_encoder(TINY.with_(padding_rule="fairseq", layers=2), seed=0)
    file = write_converted(encoder, tmp_path / "[of mine]" / "hubert.pt")  # no markup
    with wave_file.open(str(tmp_path / "clip.wav"), "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes((waves()[0] * 20_000).short().numpy().tobytes())
    assert main(["teachers", str(file), "--audio", str(tmp_path / "clip.wav"), "--precision", "bf16"]) == 0
    shown = capsys.readouterr().out
    assert f"source         {file}\n" in shown
    assert f"{sum(p.numel() for p in encoder.parameters()):,}" in shown
    assert "0.50 s, 24 frames" in shown
    table = [line.split() for line in shown.splitlines() if line.strip()[:1] in {"0", "1", "2"}]
    assert [row[0] for row in table] == ["0", "1", "2"]
    with torch.no_grad():
        wave = (waves()[0] * 20_000).short().float().unsqueeze(0) / 32_768
        state = encoder(wave).states[2]
    assert float(table[2][1]) == pytest.approx(float(state.norm(dim=-1).mean()), abs=2e-3)
    assert 0.99 < float(table[2][4]) <= 1.0

    assert main(["teachers", "s3prl:fbank"]) == 0
    assert "pool 2: frames of 10 ms averaged" in capsys.readouterr().out
    assert main(["teachers", str(tmp_path / "missing.pt")]) == 2
    assert main(["teachers", "--audio", "x.wav"]) == 2
