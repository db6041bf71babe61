"""The Hugging Face folder: transformers computes what we compute; it comes back as student and teacher; the upload."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from export_student import LARGE, SMALL, export_hf, write_student
from hugging_hub import Hub

from s3prl_ekd.cli import main
from s3prl_ekd.errors import EkdError
from s3prl_ekd.export.superb_expert import UpstreamExpert as SubmittedExpert
from s3prl_ekd.student_checkpoint import load_student
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_transformers
from s3prl_ekd.upstream.ekd_student.expert import UpstreamExpert

SAMPLES = (16_000, 11_111, 9_000)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "student"
    assert export_hf(checkpoint, folder, "--training-data", "train-clean-100") == 0
    return folder


@pytest.mark.parametrize("norms", [{}, LARGE], ids=["as Base", "as Large"])
def test_transformers_computes_the_same(
    checkpoint: Path, exported: Path, tmp_path: Path, norms: dict[str, Any]
) -> None:
    from transformers import AutoFeatureExtractor, AutoModel

    if norms:
        checkpoint, exported = write_student(tmp_path / "states-10.ckpt", student=norms), tmp_path / "large"
        assert export_hf(checkpoint, exported) == 0
    model, report = AutoModel.from_pretrained(exported, output_loading_info=True)
    assert type(model).__name__ == "HubertModel"
    assert not report["missing_keys"] and not report["unexpected_keys"]
    extractor = AutoFeatureExtractor.from_pretrained(exported)
    wavs = [torch.randn(count).numpy() for count in SAMPLES]
    inputs = extractor(wavs, sampling_rate=16_000, padding=True, return_tensors="pt")
    assert inputs["attention_mask"].sum(1).tolist() == list(SAMPLES)  # by itself
    encoder, _, _ = load_student(checkpoint)
    with torch.no_grad():
        out = model.eval()(**inputs, output_hidden_states=True)
        theirs = (*out.hidden_states[:-1], out.last_hidden_state)  # after the norm that ends a pre-norm stack
        ours = encoder(inputs["input_values"], torch.tensor(SAMPLES))
        expert = UpstreamExpert(str(checkpoint)).eval()([torch.from_numpy(wav) for wav in wavs])["hidden_states"]
    assert len(theirs) == len(ours.states) == len(expert) == 3
    speech = ours.mask
    for layer in range(3):  # state 0 is the input of layer 1 in both
        torch.testing.assert_close(theirs[layer][speech], ours.states[layer][speech], atol=1e-5, rtol=0)
    for layer in (1, 2):
        torch.testing.assert_close(theirs[layer][speech], expert[layer][speech], atol=1e-5, rtol=0)


def test_comes_back_as_student_and_teacher(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    wavs = [torch.randn(count) for count in SAMPLES]
    with torch.no_grad():
        expected = UpstreamExpert(str(checkpoint)).eval()(wavs)["hidden_states"]
        found = UpstreamExpert(str(exported)).eval()(wavs)["hidden_states"]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)

    teacher = sources.describe(str(exported))
    assert teacher.family == "hubert" and not teacher.shape.feature_norm
    weights, own = sources.load(teacher).state_dict(), load_student(checkpoint)[0].state_dict()
    assert weights.keys() == own.keys() and all(torch.equal(weights[name], own[name]) for name in own)

    again = tmp_path / "again"
    assert export_hf(exported, again) == 0
    assert (again / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    assert "Converted from a transformers model" in (again / "README.md").read_text()
    assert main(["export", "superb", "--ckpt", str(exported), "--out", str(tmp_path / "superb")]) == 0


def test_a_student_as_wide_as_its_conv_channels(tmp_path: Path) -> None:
    """It has no projection, and HubertModel always has one."""
    from transformers import AutoModel

    wide = [[TINY.width, *layer[1:]] for layer in SMALL["conv_layers"]]
    checkpoint = write_student(tmp_path / "states-10.ckpt", student={"conv_layers": wide})
    assert load_student(checkpoint).encoder.projection is None
    for _ in range(2):  # its own folder the second time
        assert export_hf(checkpoint, tmp_path / "student") == 0
    wave = torch.randn(1, 9_000)
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(tmp_path / "student").eval()(wave, output_hidden_states=True).hidden_states
        ours = load_student(checkpoint).encoder(wave).states
        back = load_student(tmp_path / "student").encoder(wave).states
    for layer in ours:
        torch.testing.assert_close(theirs[layer], ours[layer], atol=1e-5, rtol=0)
        torch.testing.assert_close(back[layer], ours[layer], atol=1e-6, rtol=0)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_distilhubert_folder_by_transformers_own_hand(tmp_path: Path, normalize: bool) -> None:
    """As published: a HubertModel saved by transformers, two layers, no norm before the projection."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, conv_dim=[32] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, feat_proj_layer_norm=False,
    )  # fmt: skip
    model = HubertModel(config).eval()
    model.save_pretrained(tmp_path)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=False)
    extractor.save_pretrained(tmp_path)
    clip = 0.001 * torch.randn(12_345) + 0.5  # normalising shows: the group norm's epsilon is near this variance
    wave = extractor(clip.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    assert main(["export", "superb", "--ckpt", str(tmp_path), "--out", str(tmp_path / "superb")]) == 0
    with torch.no_grad():
        theirs = model(wave, output_hidden_states=True).hidden_states
        # their fp32 loses five digits to the offset; ours takes it away first and keeps them
        exact = model.double()(wave.double(), output_hidden_states=True).hidden_states
        student = UpstreamExpert(str(tmp_path)).eval()([clip])["hidden_states"]
        submitted = SubmittedExpert(str(tmp_path / "superb" / "model.pt"))([clip])["hidden_states"]
        teacher = sources.load(sources.describe(str(tmp_path)))(wave).states
    for layer in range(3):
        torch.testing.assert_close(teacher[layer], exact[layer].float(), atol=1e-5, rtol=0)
        if layer:  # state 0 is the projected features here, theirs has the positions added
            torch.testing.assert_close(student[layer], exact[layer].float(), atol=1e-5, rtol=0)
            torch.testing.assert_close(submitted[layer], theirs[layer], atol=1e-4 if normalize else 1e-5, rtol=0)


def test_a_folders_own_dropout_and_masks_stay(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel, HubertConfig, HubertModel

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    rates = {"hidden_dropout": 0.07, "attention_dropout": 0.2, "activation_dropout": 0.0, "layerdrop": 0.03}
    rates |= {"mask_time_prob": 0.075, "mask_feature_prob": 0.004, "mask_feature_length": 6}
    config = HubertConfig(
        **sizes, **rates, conv_dim=[32] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4
    )
    HubertModel(config).save_pretrained(tmp_path / "theirs")
    text = (tmp_path / "theirs" / "config.json").read_text()
    (tmp_path / "theirs" / "config.json").write_text(text.replace('"final_dropout"', '"not_named"'))
    assert export_hf(tmp_path / "theirs", tmp_path / "ours") == 0
    weights = load_student(tmp_path / "theirs").encoder.state_dict()
    began = Namespace(upstream="ekd_student", upstream_ckpt=str(tmp_path / "theirs"), downstream="ctc")
    tuned = {"Args": began, "Upstream": {f"encoder.{name}": value for name, value in weights.items()}}
    torch.save(tuned, tmp_path / "states-5.ckpt")
    assert export_hf(tmp_path / "states-5.ckpt", tmp_path / "tuned") == 0
    for folder in (tmp_path / "ours", tmp_path / "tuned"):
        before, after = (AutoConfig.from_pretrained(one) for one in (tmp_path / "theirs", folder))
        for name in (*rates, "feat_proj_dropout", "final_dropout"):
            assert getattr(after, name) == getattr(before, name), name
        masked, kept = (AutoModel.from_pretrained(one).masked_spec_embed for one in (tmp_path / "theirs", folder))
        assert torch.equal(kept, masked) and masked.any()


def test_the_card_of_a_pre_norm_folder_says_which_its_last_state_is(tmp_path: Path) -> None:
    from transformers import AutoModel

    write_transformers(random_encoder(TINY.with_(pre_norm=True), 0), tmp_path / "theirs")
    assert export_hf(tmp_path / "theirs", tmp_path / "ours") == 0
    assert "; the last one is `last_hidden_state`" in (tmp_path / "ours" / "README.md").read_text()
    wave = torch.randn(1, 9_000)
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(tmp_path / "ours").eval()(wave).last_hidden_state
        ours = load_student(tmp_path / "theirs").encoder(wave).states
    torch.testing.assert_close(theirs, ours[TINY.layers], atol=1e-4, rtol=0)


def test_a_student_that_never_saw_a_mask_is_tuned_without(checkpoint: Path, tmp_path: Path) -> None:
    """By transformers' default, who fine-tunes it would have frames replaced by a vector of zeros."""
    from transformers import AutoConfig, AutoModel

    assert export_hf(checkpoint, tmp_path / "out") == 0
    assert AutoConfig.from_pretrained(tmp_path / "out").apply_spec_augment is False
    model = AutoModel.from_pretrained(tmp_path / "out").train()
    assert not model.masked_spec_embed.any()
    features = torch.randn(2, 400, model.config.hidden_size)
    assert torch.equal(model._mask_hidden_states(features.clone()), features)
    assert export_hf(tmp_path / "out", tmp_path / "again") == 0  # a folder keeps what it says
    assert AutoConfig.from_pretrained(tmp_path / "again").apply_spec_augment is False


def test_the_vector_of_a_student_that_was_trained_with_masks_is_its_own(checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    content = torch.load(checkpoint, weights_only=True)
    vector = torch.randn(content["EKD"]["shape"]["width"])
    content["EKD"]["mask"] = {"vector": vector}
    torch.save(content, tmp_path / "states-10.ckpt")
    assert export_hf(tmp_path / "states-10.ckpt", tmp_path / "out") == 0
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "out").masked_spec_embed, vector)
    assert AutoConfig.from_pretrained(tmp_path / "out").apply_spec_augment is True


def test_what_is_no_student(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EkdError, match="no config.json"):
        UpstreamExpert(str(tmp_path / "empty"))
    assert export_hf(tmp_path / "nothing", tmp_path / "out") == 2


def test_what_hubert_model_does_not_compute(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """data2vec's five positional convolutions would be left out, and HubertModel's one be random."""
    from transformers import Data2VecAudioConfig, Data2VecAudioModel

    config = Data2VecAudioConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, conv_dim=[32] * 7,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    Data2VecAudioModel(config).save_pretrained(tmp_path / "data2vec")
    assert export_hf(tmp_path / "data2vec", tmp_path / "out") == 2
    assert "data2vec: 5 positional convolutions; HubertModel has one" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_push_only_when_asked(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple] = []

    class Hub:
        def create_repo(self, repository: str, **options: object) -> None:
            calls.append(("create", repository, options))

        def upload_folder(self, **options: Any) -> SimpleNamespace:
            calls.append(("upload", options["repo_id"], sorted(file.name for file in options["folder_path"].iterdir())))
            if options["repo_id"] == "me/refused":
                raise OSError("no network")
            return SimpleNamespace(oid="abc123")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    out = tmp_path / "out"
    assert export_hf(checkpoint, out) == 0 and calls == []
    assert export_hf(checkpoint, out, "--push", "me/student", "--private") == 0
    assert "uploaded to me/student (abc123)" in capfd.readouterr().out
    assert calls[0] == ("create", "me/student", {"private": True, "exist_ok": True})
    assert calls[1][2] == ["LICENSE", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert export_hf(checkpoint, out, "--push", "me/refused") == 2
    assert "no network" in capfd.readouterr().err


def test_what_the_hub_says_to_an_upload(
    checkpoint: Path, tmp_path: Path, hugging_hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    pushed = (checkpoint, out, "--push", "me/student")
    for status, message, expected in (
        (401, "Invalid username or password.", ("401", "Unauthorized")),
        (403, "You don't have the rights", ("403 Forbidden: You don't have the rights",)),
    ):
        hugging_hub.refusal = (status, message)
        assert export_hf(*pushed) == 2
        said = capfd.readouterr().err
        assert said.startswith("error: --push me/student: ") and all(words in said for words in expected), said
    hugging_hub.stop()
    assert export_hf(*pushed) == 2
    said = capfd.readouterr().err
    assert "error: --push me/student: " in said and f"({out} is written; log in with: hf auth login)" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--licence", "cc: by"), "--licence 'cc: by': expected an identifier, such as mit or cc-by-4.0"),
        (("--licence", "mit\ntags: x"), "expected an identifier"),  # the card's header is YAML
        (("--private",), "--private: is for --push OWNER/NAME"),
    ],
)
def test_mistakes_leave_nothing(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    assert export_hf(checkpoint, out, *words) == 2
    assert message in capfd.readouterr().err and not out.exists()
