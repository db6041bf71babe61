"""Other implementations' configurations -> :class:`EncoderShape`; what our encoder cannot compute is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from s3prl_ekd.errors import EkdError
from s3prl_ekd.shape import BASE_CONV, ConvNorm, EncoderShape, conv_layers

TRANSFORMERS_FAMILIES = ("hubert", "wavlm", "wav2vec2", "unispeech", "unispeech-sat", "data2vec-audio")
# the value that names a front end's norms -> ours
_TRANSFORMERS_NORMS: dict[str, ConvNorm] = {"group": "group", "layer": "layer"}
_FAIRSEQ_NORMS: dict[str, ConvNorm] = {"default": "group", "layer_norm": "layer"}


class _Reader:
    """The values of a configuration, each checked as it is read; its file is for messages."""

    def __init__(self, config: Mapping[str, Any], file: Path) -> None:
        self.config, self.file = config, file

    def require(self, key: str, expected: Any) -> None:
        value = self.config.get(key, expected)
        if value != expected:
            raise EkdError(f"{self.file}: {key} is {value!r}; teachers need {expected!r}")

    def flag(self, key: str, default: bool = False) -> bool:
        return bool(self.config.get(key, default))

    def count(self, key: str, default: int) -> int:
        value = self.config.get(key, default)
        if not _is_count(value):
            raise EkdError(f"{self.file}: {key} is {value!r}, expected a positive whole number")
        return value

    def counts(self, key: str, default: list[int]) -> list[int]:
        values = self.config.get(key, default)
        if not (isinstance(values, list) and values and all(map(_is_count, values))):
            raise EkdError(f"{self.file}: {key} is {values!r}, expected a list of positive whole numbers")
        return values

    def conv_norm(self, key: str, norms: Mapping[str, ConvNorm]) -> ConvNorm:
        """The kind that the value names; the first of ``norms`` where there is none."""
        value = self.config.get(key, next(iter(norms)))
        if value not in list(norms):  # a list of them: the value may be something that no dictionary can look up
            raise EkdError(f"{self.file}: {key} is {value!r}, expected one of {', '.join(norms)}")
        return norms[value]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def from_transformers(config: Mapping[str, Any], file: Path, normalize: bool | None) -> tuple[str, EncoderShape]:
    """Family and shape of a transformers ``config.json``: one of TRANSFORMERS_FAMILIES, bare or with a task head.

    Args:
        config: the file's content.
        file: for messages.
        normalize: the feature extractor's ``do_normalize``; None where the folder has no extractor: as the model's kind
            of front end usually has it.

    Raises:
        EkdError: another model type, or a variant that our encoder does not compute.
    """
    read, family = _Reader(config, file), config.get("model_type")
    if family not in TRANSFORMERS_FAMILIES:
        raise EkdError(
            f"{file}: model_type {family!r} is not supported as a teacher ({', '.join(TRANSFORMERS_FAMILIES)})"
        )
    data2vec = family == "data2vec-audio"
    read.require("hidden_act", "gelu")
    read.require("feat_extract_activation", "gelu")
    read.require("layer_norm_eps", 1e-5)
    for unsupported in ("conv_pos_batch_norm", "add_adapter"):
        read.require(unsupported, False)
    norm: ConvNorm = "layer" if data2vec else read.conv_norm("feat_extract_norm", _TRANSFORMERS_NORMS)
    positions = read.count("num_conv_pos_embeddings", 5 if data2vec else 128)  # their number, or the kernel
    dims = read.counts("conv_dim", [channels for channels, _, _ in BASE_CONV])
    kernels = read.counts("conv_kernel", [kernel for _, kernel, _ in BASE_CONV])
    strides = read.counts("conv_stride", [stride for _, _, stride in BASE_CONV])
    width = read.count("hidden_size", 768)
    return family, EncoderShape(
        conv_layers=conv_layers(list(zip(dims, kernels, strides, strict=True))),
        conv_norm=norm,
        conv_bias=read.flag("conv_bias"),
        feature_norm=read.flag("feat_proj_layer_norm", True) or family != "hubert",  # nor the others this one
        square_projection=dims[-1] == width,
        width=width,
        layers=read.count("num_hidden_layers", 12),
        ffn_width=read.count("intermediate_size", 3072),
        heads=read.count("num_attention_heads", 12),
        pre_norm=read.flag("do_stable_layer_norm") and not data2vec,  # whose model has no such choice
        pos_conv_kernel=read.count("conv_pos_kernel_size", 19) if data2vec else positions,
        pos_conv_depth=positions if data2vec else 1,
        pos_conv_groups=read.count("num_conv_pos_embedding_groups", 16),
        attention="gated_relative" if family == "wavlm" else "plain",
        normalize=norm == "layer" if normalize is None else normalize,
        normalize_eps=1e-7,
        **(_relative(read, "max_bucket_distance", 800) if family == "wavlm" else {}),
    )


def _relative(read: _Reader, distance_key: str, distance: int) -> dict[str, Any]:
    return {
        "relative_buckets": read.count("num_buckets", 320),
        "relative_max_distance": read.count(distance_key, distance),
    }


def from_fairseq(
    config: Mapping[str, Any], file: Path, normalize: bool, padding_rule: Literal["conv", "fairseq"] = "fairseq"
) -> EncoderShape:
    """Shape of a fairseq ``model`` configuration: s3prl's ``model_cfg``, WavLM's ``cfg``, a fairseq file's.

    Args:
        config: the configuration's plain values.
        file: for messages.
        normalize: the task's ``normalize``.
        padding_rule: fairseq's HubertModel and WavLM count frames one way, its Wav2Vec2Model and data2vec the other.

    Raises:
        EkdError: a variant that our encoder does not compute.
    """
    read = _Reader(config, file)
    read.require("activation_fn", "gelu")
    read.require("layer_type", "transformer")
    read.require("quantize_input", False)
    read.require("crop_seq_to_multiple", 1)
    depth = read.count("pos_conv_depth", 1)
    position = read.count("conv_pos", 128)
    relative = read.flag("relative_position_embedding")
    if relative:
        read.require("gru_rel_pos", True)
    return EncoderShape(
        conv_layers=parse_conv_layers(str(config.get("conv_feature_layers", "")), file),
        conv_norm=read.conv_norm("extractor_mode", _FAIRSEQ_NORMS),
        conv_bias=read.flag("conv_bias"),
        width=read.count("encoder_embed_dim", 768),
        layers=read.count("encoder_layers", 12),
        ffn_width=read.count("encoder_ffn_embed_dim", 3072),
        heads=read.count("encoder_attention_heads", 12),
        pre_norm=read.flag("layer_norm_first"),
        pos_conv_kernel=position if depth == 1 else max(3, position // depth),
        pos_conv_depth=depth,
        pos_conv_groups=read.count("conv_pos_groups", 16),
        attention="gated_relative" if relative else "plain",
        padding_rule=padding_rule,
        normalize=normalize,
        # WavLM.py's default; its checkpoints say 800
        **(_relative(read, "max_distance", 1280) if relative else {}),
    )


def from_distiller(config: Mapping[str, Any], file: Path) -> EncoderShape:
    """Shape of an s3prl distiller checkpoint's ``Config: distiller`` (DistilHuBERT), without its prediction heads.

    Raises:
        EkdError: a variant that our encoder does not compute.
    """
    read = _Reader(config, file)
    read.require("activation_fn", "gelu")
    read.require("attention_type", "original")
    read.require("layer_norm_first", False)
    if config.get("task_emb_type", "expand-last") not in {"expand-last", "self-hidden", "none"}:
        raise EkdError(f"{file}: task_emb_type {config['task_emb_type']!r} changes the encoder's input; not supported")
    renamed = {**config, "conv_feature_layers": config.get("extractor_conv_feature_layers", "")}
    renamed.setdefault("encoder_layers", 1)
    return from_fairseq(renamed, file, normalize=False, padding_rule="conv").with_(feature_norm=False)


def parse_conv_layers(text: str, file: Path | str) -> tuple[tuple[int, int, int], ...]:
    """Read fairseq's ``[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2`` without evaluating it.

    Raises:
        EkdError: anything but sums of repeated lists of triples.
    """
    if not text:
        return BASE_CONV
    layers: list[tuple[int, int, int]] = []
    triple = r"\(\s*\d+\s*,\s*\d+\s*,\s*\d+\s*\)"
    for term in text.split("+"):
        match = re.fullmatch(rf"\s*\[\s*({triple}(?:\s*,\s*{triple})*)\s*,?\s*\]\s*(?:\*\s*(\d+))?\s*", term)
        if match is None:
            raise EkdError(f"{file}: conv_feature_layers {text!r} is not of the form [(512,10,5)] + [(512,3,2)] * 4")
        numbers = [int(number) for number in re.findall(r"\d+", match[1])]
        triples = list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
        layers += triples * int(match[2] or 1)
    return conv_layers(layers)
