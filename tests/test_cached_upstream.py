"""runner.cache_states: a frozen upstream encodes each clip once, alone; what is read is what it computed."""

from __future__ import annotations

import itertools
import os
from argparse import Namespace
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s3prl_ekd.bridge import downstream_runner, state_files, taskkeys
from s3prl_ekd.bridge.cached_upstream import CachedUpstream
from s3prl_ekd.bridge.evaluation_memory import EvaluationMemory
from s3prl_ekd.bridge.state_files import StateFiles
from s3prl_ekd.bridge.upstream_weights import UpstreamWeights
from s3prl_ekd.errors import EkdError
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.teachers.stand_ins import random_encoder

SHAPE = EncoderShape(((8, 10, 5), *((8, 3, 2),) * 4, *((8, 2, 2),) * 2), width=16, layers=2, ffn_width=32, heads=2,
                     pos_conv_groups=2)  # fmt: skip


class Upstream(nn.Module):
    """A frozen upstream as s3prl calls it, without gradients; with them convolutions may round otherwise. It counts."""

    def __init__(self, seed: int = 0, factor: float = 1.0) -> None:
        super().__init__()
        self.encoder, self.factor, self.encoded = random_encoder(SHAPE, seed).eval(), factor, 0

    def get_downsample_rates(self, key: str) -> int:
        return 320

    @torch.no_grad()
    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
        from s3prl_ekd.model.clips import encode_clips

        self.encoded += len(wavs)
        out = encode_clips(self.encoder, wavs, (1, 2))
        return {"hidden_states": [self.factor * state for state in (out.features, out.states[1], out.states[2])]}


def cached(
    folder: Path, model: Upstream | None = None, layer: int | None = None, what: tuple[str, ...] = ("upstream",)
) -> CachedUpstream:
    upstream = CachedUpstream(model or Upstream(), folder, what)

    def select(features: dict) -> list[Tensor] | Tensor:
        return features["hidden_states"] if layer is None else features["hidden_states"][layer]

    upstream.begin("hidden_states", layer, 320, select)
    upstream.model.encoded = 0  # the probe
    return upstream


def clips(*samples: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator) for count in samples]


def test_a_clip_has_the_same_states_alone_and_in_any_company(tmp_path: Path) -> None:
    upstream, wavs = cached(tmp_path), clips(16_000, 9_111, 5_003)
    states = upstream(wavs)["hidden_states"]
    assert [tuple(state.shape) for state in states] == [(3, 50, 16)] * 3
    for index, wav in enumerate(wavs):
        frames = round(len(wav) / 320)
        own = upstream.model([wav])["hidden_states"]
        made = own[0].shape[1]
        assert frames - 1 <= made <= frames
        for state, alone, again in zip(states, own, upstream([wav])["hidden_states"], strict=True):
            assert torch.equal(state[index, :made], alone[0])
            assert torch.equal(state[index, made:frames], alone[0, -1:].expand(frames - made, -1))
            assert torch.equal(state[index, :frames], again[0])
            assert not state[index, frames:].any()


def test_a_clip_that_comes_back_is_read(tmp_path: Path) -> None:
    upstream, wavs = cached(tmp_path), clips(4_000, 3_000)
    first = upstream(wavs)["hidden_states"]
    assert upstream.model.encoded == 2
    assert len(list(tmp_path.rglob("*.npy"))) == 1  # the probe: a random crop would never come back
    upstream(wavs)
    assert upstream.model.encoded == 4 and len(list(tmp_path.rglob("*.npy"))) == 3
    for _ in range(2):
        for state, before in zip(upstream(wavs[::-1])["hidden_states"], first, strict=True):
            assert torch.equal(state[[1, 0]], before)
    assert upstream.model.encoded == 4
    another_run = cached(tmp_path)
    another_run(wavs)
    assert another_run.model.encoded == 0


@pytest.mark.parametrize("layer", [None, 1])
def test_what_the_featurizer_selects_is_kept(tmp_path: Path, layer: int | None) -> None:
    wav = clips(4_000)
    upstream = cached(tmp_path, layer=layer)
    for _ in range(3):
        found, whole = upstream(wav)["hidden_states"], upstream.model(wav)["hidden_states"]
        if layer is None:
            assert len(found) == 3 and torch.equal(found[1], whole[1])
        else:
            assert torch.equal(found, whole[layer])


def test_each_model_has_a_folder_of_its_own(tmp_path: Path) -> None:
    for seed, layer in itertools.product((0, 1), (None, 1)):
        cached(tmp_path, Upstream(seed), layer)
    cached(tmp_path, what=("upstream", "another configuration"))
    assert len(list(tmp_path.iterdir())) == 5
    louder, normalising = Upstream(0, factor=1.1), Upstream(0)
    normalising.encoder.shape = SHAPE.with_(normalize=True)
    for other in (louder, normalising):
        with pytest.raises(EkdError, match="cache_states: .* holds states of another model with the same weights"):
            cached(tmp_path, other)


STATES = {
    "list": lambda x: [x, 2 * x, 3 * x],
    "dict": lambda x: {"a": x, "b": 2 * x},
    "list of one": lambda x: [x],
    "tensor": lambda x: x,
}


@pytest.mark.parametrize("layer", [None, 1, -1])
@pytest.mark.parametrize("kind", STATES)
def test_s3prls_featurizer_reads_what_it_would_read_of_the_clip_alone(
    tmp_path: Path, kind: str, layer: int | None
) -> None:
    from s3prl.upstream.interfaces import Featurizer

    class Other(Upstream):
        def forward(self, wavs: list[Tensor]) -> dict:
            return {"hidden_states": STATES[kind](super().forward(wavs)["hidden_states"][2])}

    build, options = (
        downstream_runner.featurizer_class(Featurizer),
        {"upstream_device": "cpu", "layer_selection": layer},
    )
    plain, upstream = Other(), CachedUpstream(Other(), tmp_path, ["other"])
    if layer == 1 and kind in ("list of one", "tensor"):
        with pytest.raises(EkdError, match="-l 1: the upstream's hidden_states is one state; leave -l out"):
            build(plain, **options)
        return
    theirs, ours = build(plain, **options), build(upstream, **options)
    wavs = clips(9_000, 16_000)
    for _ in range(3):
        for wav, feature in zip(wavs, ours(wavs, upstream(wavs)), strict=True):
            (alone,) = theirs([wav], plain([wav]))
            assert len(feature) == round(len(wav) / 320) and torch.allclose(feature[: len(alone)], alone, atol=1e-6)
    assert (ours.output_dim, ours.downsample_rate) == (theirs.output_dim, theirs.downsample_rate)


def test_states_do_not_depend_on_the_runners_precision(tmp_path: Path) -> None:
    upstream, wav = cached(tmp_path), clips(4_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [upstream(wav)["hidden_states"][2] for _ in range(3)]
    for state in found:
        assert torch.equal(state, upstream.model(wav)["hidden_states"][2])


@pytest.mark.parametrize("rate", [160, 640])
def test_a_rate_that_is_not_the_upstreams_is_said(tmp_path: Path, rate: int) -> None:
    upstream = CachedUpstream(Upstream(), tmp_path, ["mine"])
    with pytest.raises(EkdError, match=f"mine: 49 frames of 16000 samples, expected about .*says {rate} samples"):
        upstream.begin("hidden_states", None, rate, lambda features: features["hidden_states"])


def test_a_file_that_is_not_whole_is_written_again(tmp_path: Path) -> None:
    upstream, wav = cached(tmp_path), clips(4_000)
    expected = [upstream(wav) for _ in range(2)][0]["hidden_states"]
    file = max(tmp_path.rglob("*.npy"), key=lambda path: path.stat().st_mtime_ns)
    for content in (b"", file.read_bytes()[:-5], b"no array"):
        file.write_bytes(content)
        fresh = cached(tmp_path)
        for _ in range(2):
            assert torch.equal(fresh(wav)["hidden_states"][2], expected[2])
        assert np.load(file).shape == (3, 12, 16)
    assert not list(tmp_path.rglob("*.npy.*"))


def test_states_of_other_dimensions_are_computed_again(tmp_path: Path) -> None:
    upstream, wav = cached(tmp_path), clips(4_000)
    expected = upstream(wav)["hidden_states"][2]
    for file in tmp_path.rglob("*.npy"):
        np.save(file, np.zeros((12, 16), dtype=np.float32))
    assert torch.equal(cached(tmp_path)(wav)["hidden_states"][2], expected)


def test_a_full_disk_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upstream, wav = cached(tmp_path), clips(4_000)
    expected = upstream(wav)["hidden_states"][1]

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    for _ in range(3):
        assert torch.equal(upstream(wav)["hidden_states"][1], expected)
    assert caplog.text.count("cannot be written (No space left on device); no more states are kept") == 1
    assert len(list(tmp_path.rglob("*.npy*"))) == 1


def test_states_lie_where_an_earlier_version_left_them(tmp_path: Path) -> None:
    """FOLDER/ab/ab12.npy: in another place a user's cache would be computed again."""
    files, states = StateFiles(tmp_path, "runner.cache_states"), torch.arange(12.0).view(2, 3, 2)
    files.write("ab12", states)
    kept = np.load(tmp_path / "ab" / "ab12.npy", allow_pickle=False)
    assert kept.dtype == np.float32 and np.array_equal(kept, states.numpy())
    assert torch.equal(files.read("ab12"), states)


def test_another_hosts_process_that_writes_the_same_file_is_no_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the same number it takes away the file that was being written here."""
    files, states = StateFiles(tmp_path, "runner.cache_states"), torch.ones(1, 2, 3)
    real = state_files.np.save

    def save(file: IO[bytes], *args: object, **options: object) -> None:
        real(file, *args, **options)
        os.unlink(file.name)

    monkeypatch.setattr(state_files.np, "save", save)
    files.write("ab12", states)
    monkeypatch.undo()
    assert files.read("ab12") is None and not caplog.records
    files.write("ab12", states)
    assert files.read("ab12") is not None


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EkdError, match=r"runner.cache_states: .*/file/x: cannot be made .*-o config.runner.cache_stat"):
        StateFiles(tmp_path / "file" / "x", "runner.cache_states")
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(EkdError, match=r"cannot be written to \(Permission denied\)"):
            StateFiles(tmp_path / "closed", "runner.cache_states")


def test_the_key_is_checked_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"runner": {"cache_states": "states"}}
    taskkeys.check_cache(config, False, "x.yaml")
    assert config["runner"]["cache_states"] == str(tmp_path / "states")
    taskkeys.check_cache({"runner": {}}, True, "x.yaml")
    with pytest.raises(EkdError, match=r"x.yaml: runner.cache_states: an upstream that trains \(-f\)"):
        taskkeys.check_cache(config, True, "x.yaml")
    for wrong in (True, 5, ""):
        with pytest.raises(EkdError, match="x.yaml: runner.cache_states: .*expected a folder"):
            taskkeys.check_cache({"runner": {"cache_states": wrong}}, False, "x.yaml")


def test_the_runner_gets_it_where_it_is_asked_for(tmp_path: Path) -> None:
    class Runner:
        init_ckpt: ClassVar[dict[str, Any]] = {}

        def __init__(self, folder: str | None) -> None:
            kept = {"upstream_model_config": None, "upstream_trainable": False, "past_exp": None}
            self.args = Namespace(upstream="u", device="cpu", **kept)
            self.config = {"runner": {"cache_states": folder}}

        def _get_upstream(self) -> Namespace:
            return Namespace(model=Upstream())

    build = downstream_runner.runner_class(
        Runner, UpstreamWeights(torch.save), EvaluationMemory(torch.save), lambda: None
    )
    assert isinstance(build(None)._get_upstream().model, Upstream)
    assert isinstance(build(str(tmp_path))._get_upstream().model, CachedUpstream)
