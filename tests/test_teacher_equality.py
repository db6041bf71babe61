"""Every hidden state of our encoder equals the source implementation's, on unequal-length input.

Oracles: s3prl's own experts (HubertModel, WavLM) and transformers' classes, reading files in their real formats.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from teacher_oracles import TOLERANCE, check_states, relative, waves

from s3prl_ekd.model.clips import normalize_wave
from s3prl_ekd.shape import HUBERT_BASE, HUBERT_LARGE, WAVLM_BASE, WAVLM_LARGE, EncoderShape
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_converted, write_transformers

LARGE = {"conv_norm": "layer", "pre_norm": True, "normalize": True}
SMALL_SHAPES = {
    "hubert-base": TINY,
    "hubert-large": TINY.with_(**LARGE, conv_bias=True),
    "wavlm-base": TINY.with_(attention="gated_relative"),
    "wavlm-large": TINY.with_(**LARGE, attention="gated_relative"),
}
FULL_SHAPES = {
    "hubert-base": HUBERT_BASE,
    "hubert-large": HUBERT_LARGE,
    "wavlm-base": WAVLM_BASE,
    "wavlm-large": WAVLM_LARGE,
}
THIN_SHAPES = FULL_SHAPES | {name: FULL_SHAPES[name].with_(layers=3) for name in ("hubert-large", "wavlm-large")}
"""Of the Large models' 24 layers three: s3prl is asked for all of them."""
WAVES = waves((16_000, 12_345, 7_003, 3_200))
LONG_WAVES = waves((288_000, 40_000))  # 899 frames: more than WavLM's max_distance, beyond which all share a bucket


def check_against_s3prl(shape: EncoderShape, folder: Path, wavs: list[torch.Tensor] = WAVES) -> None:
    import s3prl_ekd

    s3prl_ekd.register()
    from s3prl import hub

    file = write_converted(random_encoder(shape.with_(padding_rule="fairseq"), seed=0), folder / "teacher.pt")
    expert = (hub.wavlm_local if shape.attention == "gated_relative" else hub.hubert_local)(ckpt=str(file)).eval()
    with torch.no_grad():
        expected = expert(list(wavs))["hidden_states"]
    assert check_states(file, wavs, expected) == shape.with_(padding_rule="fairseq")


def check_against_transformers(shape: EncoderShape, folder: Path, wavs: list[torch.Tensor] = WAVES) -> None:
    from transformers import AutoModel, Wav2Vec2FeatureExtractor

    kind = "wavlm" if shape.attention == "gated_relative" else "hubert"
    write_transformers(random_encoder(shape, seed=0), folder, kind)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    inputs = extractor(
        [wav.numpy() for wav in wavs],
        sampling_rate=16_000,
        padding=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    # transformers 5 lists the last state of pre-norm models before their final norm; like s3prl we mean the output
    expected = [*output.hidden_states[:-1], output.last_hidden_state]
    assert check_states(folder, wavs, expected) == shape.with_(normalize_eps=1e-7)


@pytest.mark.parametrize("name", SMALL_SHAPES)
def test_equals_s3prl(name: str, tmp_path: Path) -> None:
    check_against_s3prl(SMALL_SHAPES[name], tmp_path)


@pytest.mark.parametrize("name", SMALL_SHAPES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    check_against_transformers(SMALL_SHAPES[name], tmp_path)


def test_wavlm_equals_both_on_long_clips(tmp_path: Path) -> None:
    """Positions are exact up to 80 frames (1.6 s); what lies further has logarithmic buckets."""
    check_against_s3prl(SMALL_SHAPES["wavlm-base"], tmp_path, LONG_WAVES)
    check_against_transformers(SMALL_SHAPES["wavlm-base"], tmp_path / "hf", LONG_WAVES)


def test_equals_transformers_as_wide_as_its_conv_features(tmp_path: Path) -> None:
    wide = tuple((TINY.width, kernel, stride) for _, kernel, stride in TINY.conv_layers)
    check_against_transformers(TINY.with_(conv_layers=wide, square_projection=True), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SHAPES)
def test_full_shapes_equal_s3prl(name: str, tmp_path: Path) -> None:
    check_against_s3prl(FULL_SHAPES[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", THIN_SHAPES)
def test_full_shapes_equal_transformers(name: str, tmp_path: Path) -> None:
    check_against_transformers(THIN_SHAPES[name], tmp_path)


def test_wav2vec2_equals_transformers(tmp_path: Path) -> None:
    from transformers import AutoModel

    write_transformers(random_encoder(TINY, seed=0), tmp_path, "wav2vec2")
    model = AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    wave = torch.stack([wav[:3_200] for wav in WAVES])
    with torch.no_grad():
        expected = model(wave, output_hidden_states=True).hidden_states
    check_states(tmp_path, list(wave), expected)


@pytest.mark.parametrize("name", SMALL_SHAPES)
def test_a_clip_alone_and_in_an_equal_length_batch_gives_the_same(name: str) -> None:
    encoder = random_encoder(SMALL_SHAPES[name], seed=0)
    wave = torch.stack([wav[:3_200] for wav in WAVES])
    with torch.no_grad():
        together = encoder(wave).states
        alone = encoder(wave[1:2]).states
    for layer in together:
        assert relative(together[layer][1:2], alone[layer]) < TOLERANCE


@pytest.mark.parametrize("short", [16_000, 9_000])
def test_clips_are_normalised_one_by_one(short: int) -> None:
    """As transformers' extractor does; a batch of equal lengths, as a teacher hears in training, is normalised too."""
    from transformers import Wav2Vec2FeatureExtractor

    batch = torch.stack([0.1 * WAVES[0] + 0.3, 0.001 * WAVES[0].flip(0)])
    batch[1, short:] = 0.0
    found = normalize_wave(batch, None if short == batch.shape[1] else torch.tensor([16_000, short]), 1e-7)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    clips = [batch[0].numpy(), batch[1, :short].numpy()]
    expected = extractor(clips, sampling_rate=16_000, padding=True, return_tensors="pt").input_values
    assert relative(found, expected) < TOLERANCE


def test_only_the_states_asked_for_are_kept_and_layers_above_are_not_run() -> None:
    encoder = random_encoder(TINY, seed=0)
    ran: list[int] = []
    for index, layer in enumerate(encoder.layers, start=1):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    wave = WAVES[3].unsqueeze(0)
    with torch.no_grad():
        all_states = encoder(wave).states
        ran.clear()
        some = encoder(wave, states=[0, 3]).states
    assert ran == [1, 2, 3]
    assert sorted(some) == [0, 3]
    assert torch.equal(some[3], all_states[3])
    for wrong in ([2, encoder.shape.layers + 1], [-1]):
        with pytest.raises(ValueError, match=r"asked of an encoder with states 0\.\."):
            encoder(torch.zeros(1, 4_000), states=wrong)


@pytest.mark.parametrize("shape", [HUBERT_BASE, HUBERT_LARGE])
def test_frames_and_hop(shape: EncoderShape) -> None:
    assert (shape.hop, shape.receptive_field) == (320, 400)
    assert [shape.frames(n) for n in (399, 400, 719, 720, 16_000)] == [0, 1, 1, 2, 49]


def test_parameter_counts() -> None:
    from transformers import HubertConfig, HubertModel

    from s3prl_ekd.model.encoder import Encoder, count_parameters
    from s3prl_ekd.shape import DISTILHUBERT

    with torch.device("meta"):
        assert count_parameters(Encoder(DISTILHUBERT)) == 23_491_200
        theirs = HubertModel(HubertConfig())
        assert count_parameters(Encoder(HUBERT_BASE)) == theirs.num_parameters() - 768  # its vector for masked frames
