"""The teachers that ship with the package: what they are, that they load everywhere, and ``ekd_teacher``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from s3prl_ekd.cli import main
from s3prl_ekd.config import load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.cost import upstream_cost
from s3prl_ekd.evaluate.models import choose_models
from s3prl_ekd.model.encoder import count_parameters
from s3prl_ekd.model.student import student_like
from s3prl_ekd.teachers import embedded, sources
from s3prl_ekd.teachers.build import check_teachers
from s3prl_ekd.teachers.facts import history
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_converted
from s3prl_ekd.upstream.ekd_teacher.expert import UpstreamExpert
from s3prl_ekd.variants import variant_file

NAMES = ("tiny_hubert", "tiny_robust_hubert", "tiny_wavlm")


def test_what_ships() -> None:
    assert embedded.names() == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_is_small_known_and_loads(name: str) -> None:
    folder = embedded.folder(f"embedded:{name}")
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 6_000_000
    record = embedded.record(folder)
    assert record is not None and record["name"] == name
    assert record["data"] and "CC BY 4.0" in record["licence"] and record["command"].startswith("python -m recipes.")
    described = sources.describe(f"embedded:{name}")
    assert described.kind == "embedded" and described.family == ("wavlm" if name == "tiny_wavlm" else "hubert")
    encoder = sources.load(described)
    assert count_parameters(encoder) == record["parameters"]
    assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in encoder.parameters())
    told = dict(history(described))
    for stage in record["stages"]:
        line = told[f"  {stage['stage']['name']}"]
        assert all(f"{units['clusters']} units of " in line for units in stage["stage"]["units"])


@pytest.mark.parametrize("name", NAMES)
def test_transformers_finds_the_same_states(name: str) -> None:
    from transformers import AutoModel

    wave = 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))
    theirs = AutoModel.from_pretrained(embedded.folder(f"embedded:{name}"), dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(wave, output_hidden_states=True).hidden_states
        found = sources.load(sources.describe(f"embedded:{name}"))(wave).states
    for layer, state in found.items():
        torch.testing.assert_close(state, expected[layer], rtol=1e-4, atol=1e-4)


def test_random_weights_of_any_shape(tmp_path: Path, seeds_of_gpus: list[int]) -> None:
    """``random:`` keeps a source's shape and nothing of its weights, the same ones each time."""
    trained = sources.load(sources.describe("embedded:tiny_wavlm"))
    described = sources.describe("random:embedded:tiny_wavlm")
    one, other = sources.load(described), sources.load(described)
    assert (described.kind, described.family, described.shape) == ("random", "wavlm", trained.shape)
    assert torch.equal(one.layers[0].ffn_in.weight, other.layers[0].ffn_in.weight)
    assert not seeds_of_gpus  # the student's dropout there stays that of the run's seed
    assert not torch.allclose(one.layers[0].ffn_in.weight, trained.layers[0].ffn_in.weight)
    file = write_converted(random_encoder(TINY, 0), tmp_path / "hubert.pt")
    assert sources.describe(f"random:{file}").shape.width == TINY.width
    with pytest.raises(EkdError, match="random weights are not available"):
        sources.describe("random:s3prl:fbank")


def test_mistakes_are_named() -> None:
    with pytest.raises(EkdError, match=r"ekd\.teachers\[0\]\.source: 'embedded:tiny_huber' is no embedded teacher.*"
                                       r"tiny_wavlm\); did you mean tiny_hubert\?"):  # fmt: skip
        sources.describe("embedded:tiny_huber", "ekd.teachers[0].source")


def test_the_variant_of_them_has_a_student_of_their_width() -> None:
    config = load_model_config(variant_file("embedded"))
    assert [teacher.source for teacher in config.ekd.teachers] == [f"embedded:{name}" for name in NAMES]
    assert len(check_teachers(config).target_sets) == 3
    said = config.student.model_dump(mode="json")
    like = student_like(sources.describe("embedded:tiny_hubert").shape)
    assert {key: said[key] for key in like} == like and config.ekd.initialise_from == "hubert"


def test_the_command_says_how_it_was_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", "embedded:tiny_wavlm"]) == 0
    text = capsys.readouterr().out
    record = embedded.record(embedded.folder("tiny_wavlm"))
    assert record is not None
    for part in (record["summary"], record["data"], record["licence"], record["command"], "gated_relative attention"):
        assert part in text
    for stage in record["stages"]:
        assert f"{stage['stage']['steps']:,} steps" in text
    assert main(["teachers"]) == 0
    listed = capsys.readouterr().out
    assert all(f"embedded:{name}" in listed for name in NAMES)


class TestUpstream:
    """A teacher as an s3prl upstream."""

    def test_contract_and_states(self) -> None:
        expert = UpstreamExpert("embedded:tiny_hubert").eval()
        wavs = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (16_000, 9_000, 160)]
        with torch.no_grad():
            result = expert(wavs)
            alone = expert.encoder(wavs[0].unsqueeze(0)).states
            together = expert([wavs[0]])["hidden_states"]
        assert len(result["hidden_states"]) == 7 and result["last_hidden_state"] is result["hidden_states"][-1]
        assert {state.shape for state in result["hidden_states"]} == {torch.Size([3, 49, 192])}
        assert expert.get_downsample_rates("hidden_states") == 320
        for layer, state in enumerate(together):
            torch.testing.assert_close(state, alone[layer])

    def test_it_is_in_s3prls_hub(self) -> None:
        import s3prl_ekd

        s3prl_ekd.register()
        from s3prl import hub

        assert "ekd_teacher" in hub.options()
        assert isinstance(hub.ekd_teacher(ckpt="random:embedded:tiny_hubert"), UpstreamExpert)

    def test_f_tunes_it(self) -> None:
        expert = UpstreamExpert("embedded:tiny_wavlm")
        expert([0.1 * torch.randn(8_000)])["last_hidden_state"].square().mean().backward()
        assert all(parameter.grad is not None for parameter in expert.parameters())

    def test_mistakes_are_named(self) -> None:
        with pytest.raises(EkdError, match="-u ekd_teacher needs a teacher: -k SOURCE"):
            UpstreamExpert(None)
        with pytest.raises(EkdError, match="use its name in s3prl.s hub"):
            UpstreamExpert("s3prl:fbank")

    def test_evaluate_names_teachers(self, tmp_path: Path) -> None:
        file = write_converted(random_encoder(TINY, 0), tmp_path / "hubert.pt")
        given = [("teacher", "embedded:tiny_hubert"), ("teacher", f"mine={file}"), ("upstream", "fbank")]
        chosen = choose_models(given)
        assert [(one.label, one.name) for one in chosen] == [
            ("tiny_hubert", "ekd_teacher"), ("mine", "ekd_teacher"), ("fbank", "fbank"),
        ]  # fmt: skip
        assert chosen[0].arguments() == ["-u", "ekd_teacher", "-k", "embedded:tiny_hubert"]
        assert chosen[1].checkpoint == str(file)
        cost = upstream_cost(chosen[0])
        assert cost is not None and cost["params"] == count_parameters(UpstreamExpert("embedded:tiny_hubert").encoder)
        listing = tmp_path / "models.yaml"
        listing.write_text("- {label: small, teacher: hubert.pt}\n- {teacher: 'embedded:tiny_wavlm'}\n")
        assert [one.checkpoint for one in choose_models([], listing)] == [str(file), "embedded:tiny_wavlm"]
        for wrong, message in (
            ("s3prl:fbank", "give its name to --upstream instead"),
            ("embedded:tiny", "no embedded teacher"),
        ):
            with pytest.raises(EkdError, match=message):
                choose_models([("teacher", wrong)])
        listing.write_text("- {teacher: hubert.pt, upstream: fbank}\n")
        with pytest.raises(EkdError, match="a teacher is one model"):
            choose_models([], listing)
