"""Teachers: frozen whatever the runner calls; sources described before loading; nothing unpickled freely."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.clips import normalize_wave
from s3prl_ekd.model.frontend import ConvFrontEnd
from s3prl_ekd.teachers import mapping, sources
from s3prl_ekd.teachers.ensemble import FrozenTeachers
from s3prl_ekd.teachers.shapes import parse_conv_layers
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_converted, write_transformers


def test_teachers_stay_frozen_whatever_the_runner_calls() -> None:
    teachers = FrozenTeachers({"t": random_encoder(TINY, seed=0)}, {"t": [2, 6]})
    outer = torch.nn.ModuleDict({"teachers": teachers})
    outer.train()
    assert not any(module.training for module in teachers.modules())
    assert not any(parameter.requires_grad for parameter in teachers.parameters())
    states = teachers(torch.randn(2, 3_200, requires_grad=True))["t"]
    assert sorted(states) == [2, 6]
    assert not states[6].requires_grad


def test_teachers_with_one_conv_stack_compute_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, apart = (random_encoder(TINY, seed=seed) for seed in (0, 1, 2))
    other.frontend.load_state_dict(one.frontend.state_dict())
    wave, layers = 0.1 * torch.randn(2, 8_000), {"one": [2], "apart": [2], "other": [6]}
    alone = {name: FrozenTeachers({name: encoder}, {name: layers[name]})(wave)[name]
             for name, encoder in (("one", one), ("apart", apart), ("other", other))}  # fmt: skip
    teachers = FrozenTeachers({"one": one, "apart": apart, "other": other}, layers)
    passes = []
    forward = ConvFrontEnd.forward
    monkeypatch.setattr(ConvFrontEnd, "forward", lambda self, wave: passes.append(1) or forward(self, wave))
    together = teachers(wave)
    assert len(passes) == 2
    for name, states in alone.items():
        assert all(torch.equal(state, together[name][layer]) for layer, state in states.items())
    normalised = random_encoder(TINY.with_(normalize=True), seed=0)
    FrozenTeachers({"one": one, "normalised": normalised}, {"one": [1], "normalised": [1]})(wave)
    assert len(passes) == 4  # same weights, but it hears another waveform


def test_bf16_teachers_stay_close_and_keep_their_norms_in_fp32() -> None:
    wave = 0.1 * torch.randn(2, 8_000)
    exact = FrozenTeachers({"t": random_encoder(TINY, seed=0)}, {"t": range(7)})(wave)["t"]
    halved = FrozenTeachers({"t": random_encoder(TINY, seed=0)}, {"t": range(7)}, "bf16")(wave)["t"]
    for layer, state in halved.items():
        assert state.dtype == torch.bfloat16
        cosine = torch.nn.functional.cosine_similarity(state.float(), exact[layer], dim=-1).mean()
        assert cosine > 0.999, layer


def test_waveform_normalisation_ignores_padding() -> None:
    wave = torch.randn(2, 1_000) * 3 + 1
    lengths = torch.tensor([1_000, 600])
    wave[1, 600:] = 0
    normalized = normalize_wave(wave, lengths, 1e-5)
    alone = normalize_wave(wave[1:, :600], None, 1e-5)
    assert torch.allclose(normalized[1, :600], alone[0], atol=1e-6)
    assert (normalized[1, 600:] == 0).all()


@pytest.mark.parametrize("scheme", [mapping.FAIRSEQ, mapping.TRANSFORMERS])
@pytest.mark.parametrize("conv_norm", ["group", "layer"])
def test_names_map_there_and_back(scheme: tuple, conv_norm: str) -> None:
    shape = TINY.with_(conv_norm=conv_norm, conv_bias=True, attention="gated_relative")
    weights = random_encoder(shape, seed=0).state_dict()
    back = mapping.to_ours(mapping.from_ours(weights, scheme, conv_norm), scheme, "test")
    assert sorted(back) == sorted(weights)
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_task_heads_and_prefixes_are_stripped() -> None:
    encoder = random_encoder(TINY, seed=0)
    weights = mapping.from_ours(encoder.state_dict(), mapping.TRANSFORMERS, "group")
    weights = {f"hubert.{name}": value for name, value in weights.items()} | {"lm_head.weight": torch.zeros(2, 2)}
    assert len(mapping.to_ours(weights, mapping.TRANSFORMERS, "test")) == len(encoder.state_dict())


def test_hub_names_are_the_files_that_s3prl_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import s3prl_ekd

    s3prl_ekd.register()
    from s3prl import hub
    from s3prl.upstream.data2vec import hubconf as data2vec_hub
    from s3prl.upstream.distiller import hubconf as distiller_hub
    from s3prl.upstream.hubert import hubconf as hubert_hub
    from s3prl.upstream.unispeech_sat import hubconf as unispeech_sat_hub
    from s3prl.upstream.wav2vec2 import hubconf as wav2vec2_hub
    from s3prl.upstream.wavlm import hubconf as wavlm_hub

    asked: list[str] = []
    loaders = [
        (hubert_hub, "hubert_custom"), (wavlm_hub, "wavlm_url"), (wav2vec2_hub, "wav2vec2_custom"),
        (unispeech_sat_hub, "unispeech_sat_url"), (data2vec_hub, "data2vec_custom"), (distiller_hub, "distiller_url"),
    ]  # fmt: skip
    for module, loader in loaders:
        monkeypatch.setattr(module, loader, lambda ckpt, **kwargs: asked.append(ckpt))
    for name, entry in sources.HUB.items():
        asked.clear()
        getattr(hub, name)()
        assert asked == [entry.url], name


def test_fairseq_conv_strings_are_parsed_not_evaluated() -> None:
    assert parse_conv_layers("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2", "x")[-1] == (512, 2, 2)
    assert len(parse_conv_layers("[(64, 10, 5), (64, 3, 2)]", "x")) == 2
    with pytest.raises(EkdError, match="conv_feature_layers"):
        parse_conv_layers("__import__('os').system('true')", "x")


class _Exploit:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.marker,))


def test_a_malicious_checkpoint_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"model_weight": {}, "model_cfg": _Exploit(marker)}, tmp_path / "bad.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"model_weight": _Exploit(marker)}))
    for file in ("bad.pt", "plain.pt"):
        with pytest.raises(EkdError, match=file):
            sources.describe(str(tmp_path / file))
    assert not marker.exists()


def test_what_a_user_can_get_wrong_is_one_line_that_names_it(tmp_path: Path) -> None:
    def message(source: object) -> str:
        with pytest.raises(EkdError) as caught:
            sources.load(sources.describe(str(source), "config_model.yaml: ekd.teachers[0].source"))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "did you mean hubert_base" in message("huber_base")
    assert "ekd.teachers[0].source" in message("no/such/file.pt")
    (tmp_path / "cut.pt").write_bytes(write_converted(random_encoder(TINY, 0), tmp_path / "a.pt").read_bytes()[:5_000])
    assert "cut.pt" in message(tmp_path / "cut.pt")
    assert "config.json" in message(tmp_path)
    torch.save({"weights": 1}, tmp_path / "other.pt")
    assert "its keys: weights" in message(tmp_path / "other.pt")

    folder = write_transformers(random_encoder(TINY, 0), tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    assert "'bert' is not supported" in message(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    assert "lacks 'layers.6." in message(folder)
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 104}))
    assert "has shape" in message(folder)
    (folder / "config.json").write_text("{")
    assert "not valid JSON" in message(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    assert "no weights in it" in message(folder)
