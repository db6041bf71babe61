"""Original fairseq files as teachers: read without fairseq, without running anything, and without being kept."""

from __future__ import annotations

import argparse
import copyreg
import io
import operator
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq_files import FAIRSEQ_SHAPE, LARGE, fairseq_content, forget, load, model_config, same, stub_fairseq

from s3prl_ekd.errors import EkdError
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.fairseq_file import Refused, Shell, ShellUnpickler, plain
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder


@pytest.fixture
def fairseq(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    return stub_fairseq(monkeypatch)


@pytest.mark.parametrize("container", ["omegaconf", "structured", "dict", "namespace"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_fairseq_file_is_read_without_fairseq(
    container: str, legacy: bool, fairseq: types.SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    encoder = random_encoder(LARGE, seed=0)
    content = fairseq_content(encoder, fairseq)
    model, task = model_config(encoder), {"_name": "hubert_pretraining", "normalize": True, "label_rate": 50}
    if container == "omegaconf":
        model["latent_temp"] = (2.0, 0.5, 0.999995)  # fairseq's; a tuple's type is pickled by omegaconf 2.4
        content |= {"args": None, "cfg": omegaconf.OmegaConf.create({"model": model, "task": task, "common": None})}
    elif container == "structured":
        node = omegaconf.OmegaConf.structured(fairseq.HubertConfig)
        omegaconf.OmegaConf.set_struct(node, False)
        node = omegaconf.OmegaConf.create({"model": node, "task": task}, flags={"allow_objects": True})
        omegaconf.OmegaConf.set_struct(node, False)
        with omegaconf.open_dict(node.model):
            for key, value in model.items():
                if key not in ("extractor_mode", "_name"):
                    node.model[key] = value
        content |= {"args": None, "cfg": node}
    elif container == "dict":
        content |= {"cfg": {"model": model, "task": task}}
    else:
        content |= {"args": argparse.Namespace(arch="hubert", normalize=True, **model)}
    file = tmp_path / "hubert.pt"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    forget(monkeypatch)
    described = sources.describe(str(file))
    assert (described.kind, described.family, described.shape) == ("fairseq", "hubert", LARGE)
    assert same(sources.load(described), encoder)


def test_a_fine_tuned_fairseq_wav2vec2_gives_its_encoder(tmp_path: Path) -> None:
    encoder = random_encoder(TINY.with_(layers=2), seed=0)
    content = fairseq_content(encoder, None)
    weights = {name: tensor for name, tensor in content["model"].items() if "label_embs" not in name}
    content["model"] = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in weights.items()}
    content["model"]["w2v_encoder.proj.weight"] = torch.zeros(32, 96)
    inner = {"model": model_config(encoder) | {"_name": "wav2vec2"}, "task": {"normalize": False}}
    content["cfg"] = {"model": {"_name": "wav2vec_ctc", "w2v_args": inner}, "task": {"normalize": False}}
    torch.save(content, tmp_path / "ctc.pt")
    assert sources.describe(str(tmp_path / "ctc.pt")).family == "wav2vec2"
    assert same(load(tmp_path / "ctc.pt"), encoder)


@pytest.mark.parametrize(("shape", "expected"), [(FAIRSEQ_SHAPE, False), (LARGE, True)], ids=["group", "layer"])
def test_an_interpolated_normalize_is_guessed_from_the_front_end_and_said(
    shape: EncoderShape, expected: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = random_encoder(shape, seed=0)
    cfg = {"model": model_config(encoder), "task": {"normalize": "${task.normalize}"}}
    torch.save(fairseq_content(encoder, None) | {"cfg": cfg}, tmp_path / "hubert.pt")
    assert sources.describe(str(tmp_path / "hubert.pt")).shape.normalize is expected
    assert f"normalize is '${{task.normalize}}', which says nothing; taken to be {expected}" in caplog.text


class _Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def test_an_enums_member_may_be_named_and_nothing_else_taken() -> None:
    """Python 3.11.0 to 3.11.3 pickle a member as getattr(its enum, its name); getattr of anything else is refused."""
    member = b"\x80\x02cbuiltins\ngetattr\ncfairseq.dataclass\nChoice\nX\x01\x00\x00\x00a\x86R."
    found = ShellUnpickler(io.BytesIO(member)).load()
    assert isinstance(found, Shell) and plain(found) == "a"
    for target in (b"cbuiltins\ngetattr\n", b"cargparse\nNamespace\n)R", b"ctorch\nfloat32\n"):
        code = b"\x80\x02cbuiltins\ngetattr\n" + target + b"X\x01\x00\x00\x00a\x86R."
        with pytest.raises(Refused):
            ShellUnpickler(io.BytesIO(code)).load()


@pytest.mark.parametrize("where", ["cfg", "args", "extra_state", "model"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("function", ["system", "eval", "getattr", "attrgetter", "reconstructor"])
def test_a_malicious_fairseq_file_is_refused_and_runs_nothing(
    where: str, legacy: bool, function: str, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w')"
    exploit = {
        "system": _Call(os.system, f"touch {marker}"),
        "eval": _Call(eval, code),
        "getattr": _Call(getattr, marker, "touch"),
        "attrgetter": _Call(operator.attrgetter, "touch"),
        "reconstructor": _Call(copyreg._reconstructor, Path, object, None),
    }[function]
    encoder = random_encoder(FAIRSEQ_SHAPE, seed=0)
    content = fairseq_content(encoder, None) | {"cfg": {"model": model_config(encoder), "task": {"normalize": False}}}
    content[where] = {"x": exploit}
    file = tmp_path / "bad.pt"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(EkdError, match="bad.pt: refused"):
        sources.describe(str(file))
    assert not marker.exists()


def test_even_an_admitted_name_stays_inert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of an admitted package is never imported or called, whatever it would do."""
    marker = tmp_path / "ran"
    module = types.ModuleType("fairseq.evil")
    module.run = lambda: marker.touch()
    module.run.__module__, module.run.__qualname__ = "fairseq.evil", "run"
    module.run.__name__ = "run"
    monkeypatch.setitem(sys.modules, "fairseq", types.ModuleType("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.evil", module)
    encoder = random_encoder(FAIRSEQ_SHAPE, seed=0)
    content = fairseq_content(encoder, None) | {"cfg": {"model": model_config(encoder), "task": {"normalize": False}}}
    torch.save(content | {"extra_state": _Call(module.run)}, tmp_path / "hubert.pt")
    assert same(load(tmp_path / "hubert.pt"), encoder)  # fairseq.evil is still importable here
    assert not marker.exists()


@pytest.mark.parametrize("pre_norm", [False, True])
def test_unispeech_sats_own_files(pre_norm: bool, tmp_path: Path) -> None:
    encoder = random_encoder(FAIRSEQ_SHAPE.with_(pre_norm=pre_norm), seed=0)
    content = fairseq_content(encoder, None)
    extra = ("spk_proj.weight", "spk_proj.bias", "quant_in_proj.weight", "quant_embedding.weight",
             "encoder.layer_norm_for_extract.weight", "encoder.layer_norm_for_extract.bias")  # fmt: skip
    content["model"] |= {name: torch.zeros(2) for name in extra}
    content["cfg"] = {"model": model_config(encoder) | {"_name": "unispeech_sat"}, "task": {"normalize": False}}
    torch.save(content, tmp_path / "UniSpeech-SAT.pt")
    described = sources.describe(str(tmp_path / "UniSpeech-SAT.pt"))
    assert described.family == "unispeech_sat" and described.shape.padding_rule == "fairseq"
    assert same(sources.load(described), encoder)


def test_the_fine_tuned_wavlm_of_fairseq_counts_frames_as_wavlm(tmp_path: Path) -> None:
    encoder = random_encoder(TINY.with_(layers=2, attention="gated_relative", padding_rule="fairseq"), seed=0)
    content = fairseq_content(encoder, None)
    content["model"] = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in content["model"].items()}
    shape = encoder.shape
    relative = {"_name": "wavlm", "relative_position_embedding": True, "gru_rel_pos": True,
                "num_buckets": shape.relative_buckets, "max_distance": shape.relative_max_distance}  # fmt: skip
    inner = {"model": model_config(encoder) | relative, "task": {"normalize": False}}
    content["cfg"] = {"model": {"_name": "wav2vec_ctc", "w2v_args": inner}, "task": {"normalize": False}}
    torch.save(content, tmp_path / "ctc.pt")
    described = sources.describe(str(tmp_path / "ctc.pt"))
    assert (described.family, described.shape) == ("wavlm", shape)
    assert same(sources.load(described), encoder)


@pytest.mark.parametrize("shells", [False, True])
def test_a_look_at_a_file_leaves_its_weights_on_the_disk(
    shells: bool, fairseq: types.SimpleNamespace, tmp_path: Path
) -> None:
    encoder = random_encoder(FAIRSEQ_SHAPE, seed=0)
    content = fairseq_content(encoder, fairseq if shells else None)
    content["cfg"] = {"model": model_config(encoder), "task": {"normalize": False}}
    content["last_optimizer_state"] = {"exp_avg": torch.ones(4_000_000)}  # 16 MB, whatever else is in the file
    torch.save(content, tmp_path / "hubert.pt")
    code = (
        "import gc, resource, sys; from s3prl_ekd.teachers import sources; gc.disable()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "sources.describe(sys.argv[2]); before = peak(); sources.describe(sys.argv[1]); print(peak() - before)"
    )
    torch.save(content | {"last_optimizer_state": None}, tmp_path / "small.pt")
    command = [sys.executable, "-c", code, str(tmp_path / "hubert.pt"), str(tmp_path / "small.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert float(done.stdout) < 8  # MiB
