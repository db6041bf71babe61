"""Every further member of the family equals its source implementation, state by state, on unequal-length batches.

Oracles: s3prl's Wav2Vec2Model, Data2VecAudioModel, WavLM (as UniSpeech-SAT) and DistillerModel, and transformers'
classes, all with random weights in their real formats. Files' formats are in test_teachers_formats.py.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from teacher_oracles import LENGTHS, check_states, waves
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.errors import EkdError
from s3prl_ekd.teachers import shapes, sources

CONV = "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2"
SMALL = {
    "conv_feature_layers": CONV,
    "encoder_layers": 3,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "conv_pos": 16,
    "conv_pos_groups": 4,
}
LARGE = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}
FULL = {  # widths; of its 24 layers three
    "encoder_layers": 3,
    "encoder_embed_dim": 1024,
    "encoder_ffn_embed_dim": 4096,
    "encoder_attention_heads": 16,
    "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
}


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights, with norms and gates away from their trivial start."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter) + (0.5 if parameter.dim() == 1 else 0.0))
    return model.eval()


def write_wav2vec2(file: Path, **config: object) -> Path:
    from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Config, Wav2Vec2Model

    config = {**SMALL, **config}
    model = randomised(Wav2Vec2Model(Wav2Vec2Config(**config)))
    normalize = config.get("extractor_mode") == "layer_norm"
    content = {"task_cfg": {"normalize": normalize}, "model_cfg": config, "model_weight": model.state_dict()}
    torch.save(content, file)
    return file


@pytest.mark.parametrize("config", [{}, LARGE, {"conv_bias": True}], ids=["base", "large-lv60", "conv-bias"])
def test_wav2vec2_equals_s3prl(hub: ModuleType, config: dict, tmp_path: Path) -> None:
    file = write_wav2vec2(tmp_path / "wav2vec2.pt", **config, quantize_targets=True)
    expert = hub.wav2vec2_local(ckpt=str(file)).eval()
    with torch.no_grad():
        expected = expert(waves())["hidden_states"]
    assert sources.describe(str(file)).family == "wav2vec2"
    check_states(file, waves(), expected)


@pytest.mark.slow
def test_wav2vec2_large_equals_s3prl(hub: ModuleType, tmp_path: Path) -> None:
    file = write_wav2vec2(tmp_path / "wav2vec2.pt", **LARGE, **FULL, conv_pos=128, conv_pos_groups=16)
    with torch.no_grad():
        expected = hub.wav2vec2_local(ckpt=str(file)).eval()(waves())["hidden_states"]
    check_states(file, waves(), expected)


@pytest.mark.parametrize("config", [{}, LARGE], ids=["base", "large"])
def test_data2vec_equals_s3prl(hub: ModuleType, config: dict, tmp_path: Path) -> None:
    from s3prl.upstream.data2vec.data2vec_model import Data2VecAudioConfig, Data2VecAudioModel

    config = {**SMALL, "extractor_mode": "layer_norm", **config, "conv_pos": 35, "pos_conv_depth": 5}
    known = {field.name for field in dataclasses.fields(Data2VecAudioConfig)}
    assert set(config) <= known
    model = Data2VecAudioModel(Data2VecAudioConfig(**config))
    model.remove_pretraining_modules()
    weights = randomised(model).state_dict() | {"_ema": {"layers.0.fc1.bias": torch.zeros(3)}}
    content = {"task_cfg": {"normalize": True}, "model_cfg": config, "model_weight": weights}
    torch.save(content, tmp_path / "data2vec.pt")
    with torch.no_grad():
        expected = hub.data2vec_local(ckpt=str(tmp_path / "data2vec.pt")).eval()(waves())["hidden_states"]
    described = sources.describe(str(tmp_path / "data2vec.pt"))
    assert (described.family, described.shape.pos_conv_kernel, described.shape.pos_conv_depth) == ("data2vec", 7, 5)
    check_states(tmp_path / "data2vec.pt", waves(), expected)


@pytest.mark.parametrize("large", [False, True])
def test_unispeech_sat_equals_s3prl(hub: ModuleType, large: bool, tmp_path: Path) -> None:
    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    config = SMALL | ({"extractor_mode": "layer_norm", "layer_norm_first": True, "normalize": True} if large else {})
    model = randomised(WavLM(WavLMConfig(config)))
    torch.save({"cfg": config, "model": model.state_dict()}, tmp_path / "sat.pt")
    with torch.no_grad():
        expected = hub.unispeech_sat_local(ckpt=str(tmp_path / "sat.pt")).eval()(waves())["hidden_states"]
    assert sources.describe(str(tmp_path / "sat.pt")).family == "unispeech_sat"
    check_states(tmp_path / "sat.pt", waves(), expected)


def test_distilhubert_equals_s3prl_without_its_heads(hub: ModuleType, tmp_path: Path) -> None:
    from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

    config = {name: value for name, value in SMALL.items() if name != "conv_feature_layers"}
    config |= {"extractor_conv_feature_layers": CONV, "encoder_layers": 2, "final_dim": 24, "n_tasks": 3}
    config |= {"task_emb_type": "expand-last", "out_layer_type": "expand-last", "pred_layer_id": [4, 8, 12]}
    model = randomised(DistillerModel(DistillerConfig(config)))
    torch.save({"Config": {"distiller": config}, "Distiller": model.state_dict()}, tmp_path / "distiller.ckpt")
    expert = hub.distiller_local(ckpt=str(tmp_path / "distiller.ckpt")).eval()
    with torch.no_grad():
        theirs = expert(waves())["hidden_states"]  # projected features, layer 1, layer 2, three heads
    described = sources.describe(str(tmp_path / "distiller.ckpt"))
    assert (described.family, described.shape.layers, described.shape.feature_norm) == ("distilhubert", 2, False)
    check_states(tmp_path / "distiller.ckpt", waves(), theirs[1:3], first=1)


TRANSFORMERS_SMALL = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "layerdrop": 0.0,
}  # fmt: skip
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
TRANSFORMERS_CASES = {
    "wav2vec2-base": ("Wav2Vec2", {}),
    "wav2vec2-large": ("Wav2Vec2", STABLE),
    "unispeech-base": ("UniSpeech", {}),
    "unispeech-sat-base": ("UniSpeechSat", {}),
    "unispeech-sat-large": ("UniSpeechSat", STABLE),
    "data2vec-audio": ("Data2VecAudio", {"num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 7}),
    "distilhubert": ("Hubert", {"num_hidden_layers": 2, "feat_proj_layer_norm": False}),
}


def write_transformers_model(folder: Path, name: str, config: dict) -> torch.nn.Module:
    """A folder as ``save_pretrained`` writes it, with a preprocessor's normalisation; returns the model."""
    import transformers

    settings = getattr(transformers, f"{name}Config")(**{**TRANSFORMERS_SMALL, **config})
    model = randomised(getattr(transformers, f"{name}Model")(settings))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "sampling_rate": 16_000}))
    return model


@pytest.mark.parametrize("case", TRANSFORMERS_CASES)
def test_equals_transformers(case: str, tmp_path: Path) -> None:
    model = write_transformers_model(tmp_path, *TRANSFORMERS_CASES[case])
    model.set_attn_implementation("eager")
    wave, lengths = pad_sequence(waves(), batch_first=True), torch.tensor(LENGTHS)
    mask = (torch.arange(wave.shape[1]) < lengths.unsqueeze(1)).long()
    with torch.no_grad():
        output = model(wave, attention_mask=mask, output_hidden_states=True)
    # transformers 5 lists the last state of pre-norm models before their final norm; like s3prl we mean the output
    check_states(tmp_path, waves(), [*output.hidden_states[:-1], output.last_hidden_state])


@pytest.mark.slow
def test_wav2vec2_large_equals_transformers(tmp_path: Path) -> None:
    large = {"hidden_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 16, "intermediate_size": 4096,
             "conv_dim": [512] * 7, "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16}  # fmt: skip
    model = write_transformers_model(tmp_path, "Wav2Vec2", STABLE | large)
    wave = torch.stack([wav[:3_200] for wav in waves()])
    with torch.no_grad():
        output = model(wave, output_hidden_states=True)
    check_states(tmp_path, list(wave), [*output.hidden_states[:-1], output.last_hidden_state])


# What a configuration leaves out is what its own implementation takes for it: a config.json of transformers holds only
# what differs from the defaults, and fairseq files of old versions lack keys that came later.
FILE = Path("config.json")


@pytest.mark.parametrize("family", shapes.TRANSFORMERS_FAMILIES)
def test_what_a_transformers_folder_leaves_out_is_transformers_own(family: str) -> None:
    from transformers import AutoConfig

    whole = AutoConfig.for_model(family).to_dict()
    assert shapes.from_transformers({"model_type": family}, FILE, None) == shapes.from_transformers(whole, FILE, None)


def test_what_a_fairseq_file_leaves_out_is_its_models_own(hub: ModuleType) -> None:
    from s3prl.upstream.distiller.model import DistillerConfig
    from s3prl.upstream.hubert.hubert_model import HubertConfig
    from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Config
    from s3prl.upstream.wavlm.WavLM import WavLMConfig

    gated = {"relative_position_embedding": True, "gru_rel_pos": True}
    for config, given in ((HubertConfig(label_rate=50.0), {}), (Wav2Vec2Config(), {}), (WavLMConfig(), gated)):
        whole = {key: getattr(value, "value", value) for key, value in vars(config).items()}  # an enum's
        assert shapes.from_fairseq(given, FILE, False) == shapes.from_fairseq(whole | given, FILE, False)
    assert shapes.from_distiller({}, FILE) == shapes.from_distiller(vars(DistillerConfig({})), FILE)


@pytest.mark.parametrize("bad", [
    {"hidden_act": "relu"}, {"feat_extract_activation": "relu"}, {"layer_norm_eps": 1e-6}, {"add_adapter": True},
    {"conv_pos_batch_norm": True}, {"hidden_size": 0}, {"hidden_size": True}, {"hidden_size": 768.0},
    {"conv_stride": []}, {"conv_stride": [5, 2, 2, 2, 2, 2, 0]}, {"conv_stride": [5, 2, 2, 2, 2, 2, True]},
])  # fmt: skip
def test_what_the_encoder_does_not_compute_of_transformers_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(EkdError, match=f"^config.json: {next(iter(bad))} is "):
        shapes.from_transformers({"model_type": "hubert", **bad}, FILE, None)


@pytest.mark.parametrize("bad", [
    {"activation_fn": "relu"}, {"layer_type": "conformer"}, {"quantize_input": True}, {"crop_seq_to_multiple": 2},
    {"gru_rel_pos": False, "relative_position_embedding": True}, {"extractor_mode": "none"}, {"encoder_layers": "12"},
])  # fmt: skip
def test_what_the_encoder_does_not_compute_of_fairseq_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(EkdError, match=f"^config.json: {next(iter(bad))} is "):
        shapes.from_fairseq(bad, FILE, False)


@pytest.mark.parametrize("bad", [{"attention_type": "sparse"}, {"layer_norm_first": True}, {"task_emb_type": "add"}])
def test_what_the_encoder_does_not_compute_of_the_distiller_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(EkdError, match=f"^config.json: {next(iter(bad))} "):
        shapes.from_distiller(bad, FILE)
