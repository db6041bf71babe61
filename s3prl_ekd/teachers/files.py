"""Teacher files and folders, read: gzip'ed or not, sharded or not, and what kind of teacher a file holds.

Names and shapes of models are in ``mapping.py`` and ``shapes.py``; which sources exist, in ``sources.py``, which also
puts the configuration's key before the errors raised here.
"""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from s3prl_ekd.errors import EkdError
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.teachers import shapes
from s3prl_ekd.teachers.fairseq_file import fairseq_configs, is_fairseq, read_checkpoint_with_shells
from s3prl_ekd.teachers.mapping import check_names
from s3prl_ekd.torch_file import read_torch_file

logger = logging.getLogger(__name__)

CONFIG = "config.json"
EXTRACTORS = ("processor_config.json", "preprocessor_config.json")
"""Where a transformers folder keeps its feature extractor, in the order in which transformers looks: transformers 5
keeps it inside the processor's file where a model has a processor."""
_INDEX = ".index.json"
WEIGHTS = tuple(name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", _INDEX))
"""Where a transformers folder keeps its weights: whole, or the list of its shards; in transformers' order."""

_GZIP = b"\x1f\x8b"
_LFS_POINTER = b"version https://git-lfs"


def read_teacher_file(path: Path, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint's dictionary, unpacked first where the file is gzip'ed.

    Args:
        path: the file.
        mmap: leave the weights on the disk until they are used, for a look at the shape of a model.

    Raises:
        EkdError: unreadable, cut off, no checkpoint, or in need of running code from the file.
    """
    try:
        start = _start(path)
        if path.suffix == ".safetensors" or (path.suffix == ".bin" and (path.parent / "config.json").is_file()):
            raise EkdError(f"{path}: the weight file of a transformers model; give its folder instead: {path.parent}")
        if not start.startswith(_GZIP):
            return read_checkpoint_with_shells(path, mmap)
        with tempfile.TemporaryDirectory() as folder:
            unpacked = Path(folder) / path.name.removesuffix(".gz")
            with gzip.open(path) as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target)
            try:
                return read_checkpoint_with_shells(unpacked, mmap)
            except EkdError as error:
                raise EkdError(str(error).replace(str(unpacked), str(path))) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise EkdError(f"{path}: gzip'ed, but cut off or damaged ({error})") from error


def kind_of_file(
    checkpoint: Mapping[str, Any], path: Path
) -> tuple[Literal["converted", "fairseq"], str, EncoderShape, Mapping[str, Tensor]]:
    """(kind, family, shape, weights) of a checkpoint file in fairseq's names.

    Raises:
        EkdError: none of the layouts that we know, or a variant that our encoder does not compute.
    """
    keys = ", ".join(map(str, list(checkpoint)[:6]))
    if "EKD" in checkpoint:
        raise EkdError(
            f"{path}: is an EKD student, not a teacher; `s3prl-ekd export hf --ckpt {path} --out DIR` makes a folder "
            "that can be one"
        )
    if "model_weight" in checkpoint and "model_cfg" in checkpoint:
        config = _mapping(checkpoint, "model_cfg", path)
        weights = _weights(checkpoint, "model_weight", path)
        normalize = _normalizes(checkpoint.get("task_cfg") or {}, config, path)
        family = "hubert" if "dictionaries_symbols" in checkpoint else _wav2vec2_or_data2vec(weights)
        return "converted", family, shapes.from_fairseq(config, path, normalize, _padding_rule(family)), weights
    if "Distiller" in checkpoint and isinstance(checkpoint.get("Config"), Mapping):
        config = _mapping(checkpoint["Config"], "distiller", path)
        return "converted", "distilhubert", shapes.from_distiller(config, path), _weights(checkpoint, "Distiller", path)
    if is_fairseq(checkpoint):
        model, task = fairseq_configs(checkpoint, path)
        weights = _weights(checkpoint, "model", path)
        family, normalize = _fairseq_family(model, weights), _normalizes(task, model, path)
        return "fairseq", family, shapes.from_fairseq(model, path, normalize, _padding_rule(family)), weights
    if "cfg" in checkpoint and "model" in checkpoint:
        config = _mapping(checkpoint, "cfg", path)
        shape = shapes.from_fairseq(config, path, bool(config.get("normalize", False)))
        family = "wavlm" if shape.attention == "gated_relative" else "unispeech_sat"
        return "converted", family, shape, _weights(checkpoint, "model", path)
    raise EkdError(
        f"{path}: not a teacher file: neither s3prl's converted format (model_cfg + model_weight, WavLM's cfg + model, "
        f"the distiller's Config + Distiller) nor fairseq's (cfg or args + model); its keys: {keys}"
    )


def transformers_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a transformers folder: one file or shards, safetensors or ``.bin``.

    Raises:
        EkdError: none there, a shard is missing, or a file is damaged.
    """
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        weights |= _read_shard(file)
    return weights


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a transformers folder: one, or shards.

    Raises:
        EkdError: none there, or a shard is missing.
    """
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise EkdError(f"{folder}: no weights in it (model.safetensors or pytorch_model.bin)")
    if not found.name.endswith(_INDEX):
        return [found]
    files = [folder / name for name in shard_names(found)]
    for file in files:
        if not file.is_file():
            raise EkdError(f"{file}: missing, though {found.name} names it")
    return files


def has_weights(folder: Path) -> bool:
    """Whether all the weights of a transformers folder are there."""
    try:
        return bool(weight_files(folder))
    except EkdError:
        return False


def shard_names(index: Path) -> list[str]:
    """The files that a ``*.index.json`` shares the weights among, sorted.

    Raises:
        EkdError: it names none.
    """
    files = _mapping(read_json(index), "weight_map", index)
    for weight, name in files.items():
        if not isinstance(name, str):
            raise EkdError(f"{index}: weight_map.{weight} is {name!r}, expected the name of a file")
    return sorted(set(files.values()))


def model_files(folder: Path) -> list[Path]:
    """What makes a teacher of a transformers folder, whatever else lies there: configuration, extractor, weights.

    Raises:
        EkdError: as of :func:`weight_files`.
    """
    described = sorted(folder / name for name in (CONFIG, *EXTRACTORS))
    return [file for file in described if file.is_file()] + weight_files(folder)


def extractor_normalizes(folder: Path) -> bool | None:
    """``do_normalize`` of a transformers folder's feature extractor; None where it has none."""
    for name, key in zip(EXTRACTORS, ("feature_extractor", None), strict=True):
        if (folder / name).is_file():
            content = read_json(folder / name)
            extractor = content.get(key) if key else content
            if isinstance(extractor, Mapping):
                return bool(extractor.get("do_normalize", True))  # transformers' default
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a transformers folder.

    Raises:
        EkdError: it is not there, cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EkdError(f"the folder {path.parent} has no {path.name}, so it is no transformers model") from error
    except OSError as error:  # a folder of that name, no permission
        raise EkdError(f"{path}: cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EkdError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise EkdError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content


def _read_shard(path: Path) -> dict[str, Tensor]:
    _start(path)
    if path.suffix != ".safetensors":
        return read_torch_file(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise EkdError(f"{path}: not a readable safetensors file ({error})") from error


def _start(path: Path) -> bytes:
    """The first bytes of a file, which is not what Git leaves of a large one.

    Raises:
        EkdError: it cannot be read, or is a pointer of Git LFS.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER))
    except OSError as error:
        raise EkdError(f"{path}: cannot be read ({error.strerror})") from error
    if start == _LFS_POINTER:
        raise EkdError(f"{path}: a pointer of Git LFS, not the file itself: git lfs pull")
    return start


def _mapping(content: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = content.get(key)
    if not isinstance(value, Mapping):
        raise EkdError(f"{path}: {key} is a {type(value).__name__}, expected a dictionary")
    return value


def _weights(content: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Tensor]:
    weights = _mapping(content, key, path)
    check_names(weights, f"{path}: {key}")
    return weights


def _fairseq_family(model: Mapping[str, Any], weights: Mapping[str, Any]) -> str:
    name = str(model.get("_name") or model.get("arch") or "")
    if model.get("relative_position_embedding"):
        return "wavlm"
    if name.startswith("unispeech_sat") or any("spk_proj" in key for key in weights):
        return "unispeech_sat"
    if name.startswith("hubert") or any("label_embs_concat" in key for key in weights):
        return "hubert"
    return _wav2vec2_or_data2vec(weights)


def _wav2vec2_or_data2vec(weights: Mapping[str, Any]) -> str:
    return "data2vec" if any(key.endswith("encoder.pos_conv.0.0.weight") for key in weights) else "wav2vec2"


def _padding_rule(family: str) -> Literal["conv", "fairseq"]:
    return "fairseq" if family in {"hubert", "wavlm", "unispeech_sat"} else "conv"


def _normalizes(task: Any, model: Mapping[str, Any], path: Path) -> bool:
    """The ``normalize`` of a fairseq task."""
    found = task.get("normalize", False) if isinstance(task, Mapping) else False
    if isinstance(found, bool):
        return found
    # e.g. "${task.normalize}": guess what the front end's kind implies
    guess = model.get("extractor_mode") == "layer_norm"
    logger.warning("%s: its task's normalize is %r, which says nothing; taken to be %s", path, found, guess)
    return guess
