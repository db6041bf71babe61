"""Formats that teachers come in: original fairseq files, gzip, shards; what is refused; other s3prl upstreams."""

from __future__ import annotations

import argparse
import copyreg
import dataclasses
import enum
import gzip
import json
import operator
import os
import pickle
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
import torch
from safetensors.torch import load_file, save_file

from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.teachers import mapping, sources
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_converted, write_transformers

FAIRSEQ_SHAPE = TINY.with_(padding_rule="fairseq", layers=2)


def same(one: Encoder, other: Encoder) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return sorted(ours) == sorted(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def load(source: Path | str) -> Encoder:
    return sources.load(sources.describe(str(source)))


@pytest.fixture
def fairseq(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """Classes as fairseq pickles them, importable only while a file is written."""
    dictionary, meters, dataclass_module = (
        types.ModuleType(f"fairseq.{name}") for name in ("data.dictionary", "meters", "dataclass")
    )
    for package in ("fairseq", "fairseq.data"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))

    class Dictionary:
        def __init__(self) -> None:
            self.symbols, self.indices = ["<s>", "0"], {"<s>": 0, "0": 1}

    class Meter(dict):
        pass

    class Choice(enum.Enum):
        DEFAULT = "layer_norm"

    @dataclasses.dataclass
    class HubertConfig:
        _name: str = "hubert"
        extractor_mode: Choice = Choice.DEFAULT
        encoder_layers: int = 2
        untie_final_proj: Optional[bool] = None  # noqa: UP045 - pickles as fairseq's do
        label_rate: Any = "${task.label_rate}"

    for module, classes in ((dictionary, [Dictionary]), (meters, [Meter]), (dataclass_module, [Choice, HubertConfig])):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for cls in classes:
            cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
            setattr(module, cls.__name__, cls)
    dataclass_module.Optional, dataclass_module.Any = Optional, Any
    yield types.SimpleNamespace(Dictionary=Dictionary, Meter=Meter, Choice=Choice, HubertConfig=HubertConfig)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on importing fairseq or omegaconf fails, as where neither is installed."""
    for name in list(sys.modules):
        if name.split(".")[0] in {"fairseq", "omegaconf"}:
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "omegaconf", None)


def model_config(encoder: Encoder) -> dict[str, Any]:
    shape = encoder.shape
    return {
        "_name": "hubert",
        "extractor_mode": "layer_norm" if shape.conv_norm == "layer" else "default",
        "encoder_layers": shape.layers,
        "encoder_embed_dim": shape.width,
        "encoder_ffn_embed_dim": shape.ffn_width,
        "encoder_attention_heads": shape.heads,
        "activation_fn": "gelu",
        "layer_norm_first": shape.pre_norm,
        "conv_feature_layers": str(list(shape.conv_layers)),
        "conv_bias": shape.conv_bias,
        "conv_pos": shape.pos_conv_kernel,
        "conv_pos_groups": shape.pos_conv_groups,
    }


def fairseq_content(encoder: Encoder, stubs: types.SimpleNamespace | None) -> dict[str, Any]:
    weights = mapping.from_ours(encoder.state_dict(), mapping.FAIRSEQ, encoder.shape.conv_norm)
    weights |= {"mask_emb": torch.zeros(4), "label_embs_concat": torch.zeros(5, 4), "final_proj.weight": torch.ones(1)}
    content: dict[str, Any] = {
        "model": weights,
        "optimizer_history": [{"optimizer_name": "FP16Optimizer", "num_updates": 400_000}],
        "last_optimizer_state": None,
    }
    if stubs is not None:
        meter = stubs.Meter(loss=2.78)
        content |= {"extra_state": {"metrics": meter}, "task_state": {"dictionaries": [stubs.Dictionary()]}}
    return content


LARGE = FAIRSEQ_SHAPE.with_(conv_norm="layer", pre_norm=True, normalize=True)


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


class _Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


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


def test_gzipped_files_are_unpacked(tmp_path: Path) -> None:
    encoder = random_encoder(FAIRSEQ_SHAPE, seed=0)
    plain = write_converted(encoder, tmp_path / "hubert.pt").read_bytes()
    (tmp_path / "hubert.pt.gz").write_bytes(gzip.compress(plain, 1))
    (tmp_path / "cut.pt.gz").write_bytes(gzip.compress(plain, 1)[:9_000])
    (tmp_path / "other.gz").write_bytes(gzip.compress(b"not a checkpoint"))
    assert same(load(tmp_path / "hubert.pt.gz"), encoder)
    for name in ("cut.pt.gz", "other.gz"):
        with pytest.raises(EkdError, match=str(tmp_path / name)):
            sources.describe(str(tmp_path / name))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [False, True])
def test_transformers_folders_whole_and_sharded(suffix: str, sharded: bool, tmp_path: Path) -> None:
    encoder = random_encoder(TINY.with_(layers=2), seed=0)
    write_transformers(encoder, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    write = save_file if suffix == "safetensors" else torch.save
    if not sharded:
        write(weights, tmp_path / f"{stem}.{suffix}")
        assert same(load(tmp_path), encoder)
        return
    names = sorted(weights)
    shards = {f"{stem}-0000{k + 1}-of-00002.{suffix}": names[k::2] for k in range(2)}
    for file, part in shards.items():
        write({name: weights[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    assert same(load(tmp_path), encoder)
    last = tmp_path / list(shards)[-1]
    last.unlink()
    with pytest.raises(EkdError, match=f"{last.name}: missing"):
        load(tmp_path)


def test_what_cannot_be_a_teacher_is_one_line(tmp_path: Path) -> None:
    def message(source: object) -> str:
        with pytest.raises(EkdError) as caught:
            load(str(source))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    folder = write_transformers(random_encoder(TINY, 0), tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "whisper"}))
    assert "model_type 'whisper' is not supported as a teacher (hubert, wavlm" in message(folder)
    (folder / "config.json").write_text("[1]")
    assert "expected a JSON object" in message(folder)
    encoder = random_encoder(FAIRSEQ_SHAPE, seed=0)
    content = fairseq_content(encoder, None)
    torch.save(content | {"cfg": {"model": model_config(encoder) | {"layer_type": "conformer"}, "task": {}}},
               tmp_path / "conformer.pt")  # fmt: skip
    assert "layer_type is 'conformer'" in message(tmp_path / "conformer.pt")
    torch.save(content | {"cfg": {"model": model_config(encoder) | {"encoder_embed_dim": 48}, "task": {}}},
               tmp_path / "wide.pt")  # fmt: skip
    assert "has shape" in message(tmp_path / "wide.pt") or "lacks" in message(tmp_path / "wide.pt")
    torch.save(content | {"cfg": {"model": "hubert", "task": {}}}, tmp_path / "empty.pt")
    assert "no readable model and task" in message(tmp_path / "empty.pt")
    model = model_config(encoder)
    for bad, expected in (
        ({"encoder_layers": "${model.depth}"}, "encoder_layers is '${model.depth}', expected a positive whole number"),
        ({"encoder_attention_heads": 7}, "describes no encoder (width 96 is not a multiple of heads 7)"),
        ({"conv_feature_layers": "__import__('os').system('true')"}, "conv_feature_layers"),
    ):
        torch.save(content | {"cfg": {"model": model | bad, "task": {}}}, tmp_path / "config.pt")
        assert expected in message(tmp_path / "config.pt")
    named = content | {"cfg": {"model": model, "task": {"normalize": False}}}
    torch.save(named | {"model": content["model"] | {"layer_norm.weight": "text"}}, tmp_path / "text.pt")
    assert "layer_norm.weight is a str, expected a tensor" in message(tmp_path / "text.pt")
    bias = torch.full_like(content["model"]["post_extract_proj.bias"], float("nan"))
    torch.save(named | {"model": content["model"] | {"post_extract_proj.bias": bias}}, tmp_path / "damaged.pt")
    assert message(tmp_path / "damaged.pt").endswith(
        "damaged.pt: damaged: projection.bias holds NaN or infinite numbers"
    )
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    assert "script.pt" in message(tmp_path / "script.pt")
    torch.save({"model_cfg": 3, "model_weight": {}}, tmp_path / "number.pt")
    assert "model_cfg is a int, expected a dictionary" in message(tmp_path / "number.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"model": 1}))
    assert "pickle.pt" in message(tmp_path / "pickle.pt")
    assert "try 's3prl:wav2vec2_conformer_rope'" in message("wav2vec2_conformer_rope")


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


@pytest.mark.parametrize("processor", [True, False])
@pytest.mark.parametrize("conv_norm", ["group", "layer"])
def test_the_extractor_inside_a_processors_file_says_whether_to_normalize(
    processor: bool, conv_norm: str, tmp_path: Path
) -> None:
    shape = TINY.with_(layers=2, conv_norm=conv_norm)
    folder = write_transformers(random_encoder(shape, seed=0), tmp_path)
    said = conv_norm == "group"  # the other way round than either kind has it
    own = folder / "preprocessor_config.json"
    if processor:  # as Wav2Vec2Processor of transformers 5 writes it; it comes before an older file
        own.write_text(json.dumps({"do_normalize": not said}))
        nested = {"processor_class": "Wav2Vec2Processor", "feature_extractor": {"do_normalize": said}}
        (folder / "processor_config.json").write_text(json.dumps(nested))
    else:
        own.write_text(json.dumps({"do_normalize": said}))
    assert sources.describe(str(folder)).shape.normalize is said
    from transformers import AutoFeatureExtractor, __version__

    if processor and not __version__.startswith("4."):
        assert AutoFeatureExtractor.from_pretrained(folder).do_normalize is said
    own.write_text("{}")
    (folder / "processor_config.json").unlink(missing_ok=True)
    assert sources.describe(str(folder)).shape.normalize is True  # the default of transformers' extractor
    own.write_text("[]")
    with pytest.raises(EkdError, match=r"preprocessor_config\.json: holds a list"):
        sources.describe(str(folder))


def test_files_that_are_easily_confused(tmp_path: Path) -> None:
    encoder = random_encoder(TINY.with_(layers=2), seed=0)
    folder = write_transformers(encoder, tmp_path / "folder")
    weights = load_file(folder / "model.safetensors")

    with pytest.raises(EkdError, match=f"named by its folder: {folder}"):
        sources.describe(str(folder / "model.safetensors"))
    torch.save({name: torch.zeros_like(tensor) for name, tensor in weights.items()}, folder / "pytorch_model.bin")
    with pytest.raises(EkdError, match=f"named by its folder: {folder}"):
        sources.describe(str(folder / "pytorch_model.bin"))

    # shards in safetensors beside an older .bin: transformers reads the shards
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(load(folder), encoder)

    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(EkdError, match=r"model\.safetensors: a pointer of Git LFS.*git lfs pull"):
        load(folder)

    two = {f"{part}.{name}": tensor.clone() for part in ("student", "teacher") for name, tensor in weights.items()}
    save_file(two, folder / "model.safetensors")
    with pytest.raises(EkdError, match=r"holds 2 encoders \(student\.feature_extractor.* and teacher\."):
        load(folder)

    content = fairseq_content(encoder, None)
    content["cfg"] = {"model": {"_name": "wav2vec_ctc", "w2v_path": "x.pt", "w2v_args": None}, "task": {}}
    torch.save(content, tmp_path / "ctc.pt")
    with pytest.raises(EkdError, match=r"ctc\.pt: fine-tuned, without its encoder's configuration"):
        sources.describe(str(tmp_path / "ctc.pt"))


@pytest.mark.parametrize(("name", "hint"), [
    ("facebook/hubert-base-ls960", "hf download facebook/hubert-base-ls960 --local-dir DIR"),
    ("multires_hubert_base", "another upstream of s3prl's is 's3prl:multires_hubert_base'"),
    ("hubert_bsae", "did you mean hubert_base"),
])  # fmt: skip
def test_what_may_have_been_meant(name: str, hint: str) -> None:
    with pytest.raises(EkdError, match=re.escape(hint)):
        sources.describe(name)
