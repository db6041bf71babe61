"""Other formats that teachers come in: gzip, shards, processors; files that are easily confused; what is refused."""

from __future__ import annotations

import errno
import gzip
import json
import os
import pickle
import re
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from fairseq_files import FAIRSEQ_SHAPE, fairseq_content, load, model_config, same
from safetensors.torch import load_file, save_file

from s3prl_ekd.errors import EkdError
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_converted, write_transformers


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


@pytest.mark.parametrize("folder", [False, True])
def test_weights_that_cannot_be_read_are_one_line(
    folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    if folder:
        write_transformers(random_encoder(TINY.with_(layers=2), seed=0), tmp_path)
    else:
        path = tmp_path / "hubert.pt"
        path.write_bytes(b"")
    opened = Path.open

    def refuse(file: Path, *args: Any, **kwargs: Any) -> IO[Any]:
        if file == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, whom no mode bits stop
    with pytest.raises(EkdError, match=f"{path}: cannot be read \\(Permission denied\\)"):
        load(tmp_path if folder else path)


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file that looks like a TorchScript archive")
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
    key = "encoder.layers.0.self_attn.k_proj.bias"
    for bad, expected in (
        (
            torch.ones(96).to(torch.float8_e4m3fn),
            f"{key} is stored as torch.float8_e4m3fn (torch.strided), expected plain",
        ),
        (torch.ones(96, dtype=torch.int8), f"{key} is stored as torch.int8"),
        (torch.ones(96).to_sparse(), f"{key} is stored as torch.float32 (torch.sparse_coo)"),
        (torch.ones(96, 1), "queries, keys and values of layers.0.attention have different shapes"),
    ):
        torch.save(named | {"model": content["model"] | {key: bad}}, tmp_path / "quantised.pt")
        assert expected in message(tmp_path / "quantised.pt")
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


def test_an_unknown_norm_of_the_front_end_is_refused(tmp_path: Path) -> None:
    """Not taken for the other one, which with random weights nothing would tell."""
    folder = write_transformers(random_encoder(TINY, 0), tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    for value in ("batch", None, ["group"]):
        (folder / "config.json").write_text(json.dumps(config | {"feat_extract_norm": value}))
        with pytest.raises(EkdError, match=re.escape(f"feat_extract_norm is {value!r}, expected one of group, layer")):
            sources.describe(f"random:{folder}")
    encoder = random_encoder(FAIRSEQ_SHAPE, seed=0)
    model = model_config(encoder) | {"extractor_mode": "instance_norm"}
    torch.save(fairseq_content(encoder, None) | {"cfg": {"model": model, "task": {}}}, tmp_path / "hubert.pt")
    with pytest.raises(EkdError, match="extractor_mode is 'instance_norm', expected one of default, layer_norm"):
        sources.describe(f"random:{tmp_path / 'hubert.pt'}")


@pytest.mark.parametrize(("conv_norm", "expected"), [("group", False), ("layer", True)])
def test_without_an_extractor_the_front_end_says_whether_to_normalize(
    conv_norm: str, expected: bool, tmp_path: Path
) -> None:
    shape = TINY.with_(layers=2, conv_norm=conv_norm, normalize=not expected)
    folder = write_transformers(random_encoder(shape, seed=0), tmp_path)
    assert sources.describe(str(folder)).shape.normalize is not expected
    (folder / "preprocessor_config.json").unlink()
    assert sources.describe(str(folder)).shape.normalize is expected


def test_odd_folders_and_files_are_one_line(tmp_path: Path) -> None:
    def message(source: Path) -> str:
        with pytest.raises(EkdError) as caught:
            load(source)
        assert "\n" not in str(caught.value) and str(caught.value).startswith("source: ")
        return str(caught.value).removeprefix("source: ")

    folder = write_transformers(random_encoder(TINY.with_(layers=2), 0), tmp_path / "folder")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for key in ("conv_dim", "conv_kernel", "conv_stride"):
        for bad in ([], None, "abc", [0] * 7, [64.0] * 7, [True] * 7, 64):
            file.write_text(json.dumps(config | {key: bad}))
            assert message(folder) == f"{file}: {key} is {bad!r}, expected a list of positive whole numbers"
    file.write_text(json.dumps(config | dict.fromkeys(("conv_dim", "conv_kernel", "conv_stride"), [])))
    assert message(folder).startswith(f"{file}: conv_dim is []")
    file.write_text(json.dumps(config | {"conv_dim": [64]}))
    assert f"the configuration in {folder} describes no encoder" in message(folder)
    file.unlink()
    file.mkdir()
    assert message(folder) == f"{file}: cannot be read (Is a directory)"
    file.rmdir()
    file.write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": 5}}))
    assert message(folder) == f"{index}: weight_map.b is 5, expected the name of a file"
    index.unlink()
    torch.save({1: torch.zeros(2)}, folder / "pytorch_model.bin")
    assert message(folder) == f"{folder}: holds the key 1, expected the name of a weight"

    numbered = {"model_weight": {1: torch.zeros(2)}, "model_cfg": {}}
    layouts = {
        "model_weight": numbered,
        "Distiller": {"Distiller": {1: torch.zeros(2)}, "Config": {"distiller": {}}},
        "model": {"model": {1: torch.zeros(2)}, "cfg": {"model": {}, "task": {}}},
    }
    wavlm = {"model": {1: torch.zeros(2)}, "cfg": {"encoder_layers": 2}}
    for key, content in [*layouts.items(), ("model", wavlm)]:
        torch.save(content, tmp_path / "numbered.pt")
        assert message(tmp_path / "numbered.pt") == (
            f"{tmp_path / 'numbered.pt'}: {key}: holds the key 1, expected the name of a weight"
        )


def test_files_that_are_easily_confused(tmp_path: Path) -> None:
    encoder = random_encoder(TINY.with_(layers=2), seed=0)
    folder = write_transformers(encoder, tmp_path / "folder")
    weights = load_file(folder / "model.safetensors")

    with pytest.raises(EkdError, match=f"give its folder instead: {folder}"):
        sources.describe(str(folder / "model.safetensors"))
    torch.save({name: torch.zeros_like(tensor) for name, tensor in weights.items()}, folder / "pytorch_model.bin")
    with pytest.raises(EkdError, match=f"give its folder instead: {folder}"):
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
    ("facebook/hubert-base-ls960", "hubert-base-ls960; the model of that name on huggingface.co is 'hf:facebook/hub"),
    ("multires_hubert_base", "another upstream of s3prl's is 's3prl:multires_hubert_base'"),
    ("hubert_bsae", "did you mean hubert_base"),
])  # fmt: skip
def test_what_may_have_been_meant(name: str, hint: str) -> None:
    with pytest.raises(EkdError, match=re.escape(hint)):
        sources.describe(name)


@pytest.mark.parametrize(
    "name",
    ["/nowhere/x.pt", "../data", "~/no_such_teacher", "notes.pt", "cfg/notes.ckpt", "one/two/three", "folder/",
     "/ckpt/conformer.pt", "random:/nowhere/x.pt"],
)  # fmt: skip
def test_a_path_that_is_not_there_is_named_in_full(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(EkdError) as error:
        sources.describe(name, "model.yaml: ekd.teachers[0].source")
    full = os.path.abspath(os.path.expanduser(name.removeprefix("random:")))
    assert str(error.value) == f"model.yaml: ekd.teachers[0].source: no such file or folder: {full}"


def test_every_error_of_a_teacher_begins_with_who_named_it(tmp_path: Path) -> None:
    """In the file, in a folder, and in its weights, which are read later."""
    where = "model.yaml: ekd.teachers[0].source"

    def message(source: Path) -> str:
        with pytest.raises(EkdError) as caught:
            sources.load(sources.describe(str(source), where), where)
        assert str(caught.value).startswith(f"{where}: ") and str(caught.value).count(where) == 1
        return str(caught.value).removeprefix(f"{where}: ")

    (tmp_path / "notes.pt").write_text("to do")
    assert message(tmp_path / "notes.pt").startswith(f"{tmp_path / 'notes.pt'}: cannot be read")
    student = tmp_path / "states-60.ckpt"
    torch.save({"EKD": {}, "Step": 60}, student)
    assert message(student) == (
        f"{student}: is an EKD student, not a teacher; `s3prl-ekd export hf --ckpt {student} --out DIR` makes a folder "
        "that can be one"
    )
    (tmp_path / "empty").mkdir()
    assert message(tmp_path / "empty").startswith(f"the folder {tmp_path / 'empty'} has no config.json")
    folder = write_transformers(random_encoder(TINY.with_(layers=2), seed=0), tmp_path / "whole")
    (folder / "model.safetensors").unlink()
    assert message(folder) == f"{folder}: no weights in it (model.safetensors or pytorch_model.bin)"
