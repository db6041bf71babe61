"""Other implementations' parameter names <-> ours: one aligned table per naming scheme.

Two schemes cover the family: fairseq's (s3prl's converted checkpoints, WavLM's files, original fairseq files) and
transformers'. Values are renamed, never changed, but for queries, keys and values, which we keep fused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.encoder import Encoder

# (the source's name, our name); {i} is a number, {p} weight or bias, {part} q, k or v (joined afterwards).
# Read backwards the first row that fits is written.
FAIRSEQ: tuple[tuple[str, str], ...] = (
    ("feature_extractor.conv_layers.{i}.0.{p}",                         "frontend.convs.{i}.{p}"),
    ("feature_extractor.conv_layers.{i}.2.{p}",                         "frontend.norms.{i}.{p}"),  # group norm
    ("feature_extractor.conv_layers.{i}.2.1.{p}",                       "frontend.norms.{i}.{p}"),  # layer norm
    ("layer_norm.{p}",                                                  "feature_norm.{p}"),
    ("post_extract_proj.{p}",                                           "projection.{p}"),
    ("encoder.pos_conv.0.weight_g",                                     "position.g"),
    ("encoder.pos_conv.0.weight_v",                                     "position.v"),
    ("encoder.pos_conv.0.parametrizations.weight.original0",            "position.g"),
    ("encoder.pos_conv.0.parametrizations.weight.original1",            "position.v"),
    ("encoder.pos_conv.0.bias",                                         "position.bias"),
    ("encoder.pos_conv.{i}.0.{p}",                                      "position.convs.{i}.{p}"),  # data2vec
    ("encoder.layer_norm.{p}",                                          "norm.{p}"),
    ("encoder.layers.0.self_attn.relative_attention_bias.weight",       "relative_bias.table.weight"),
    ("encoder.layers.{i}.self_attn.{part}_proj.{p}",                    "layers.{i}.attention.{part}.{p}"),
    ("encoder.layers.{i}.self_attn.out_proj.{p}",                       "layers.{i}.attention.out.{p}"),
    ("encoder.layers.{i}.self_attn.grep_linear.{p}",                    "layers.{i}.attention.gate.{p}"),
    ("encoder.layers.{i}.self_attn.grep_a",                             "layers.{i}.attention.gate_scale"),
    ("encoder.layers.{i}.self_attn_layer_norm.{p}",                     "layers.{i}.attention_norm.{p}"),
    ("encoder.layers.{i}.fc1.{p}",                                      "layers.{i}.ffn_in.{p}"),
    ("encoder.layers.{i}.fc2.{p}",                                      "layers.{i}.ffn_out.{p}"),
    ("encoder.layers.{i}.final_layer_norm.{p}",                         "layers.{i}.ffn_norm.{p}"),
)  # fmt: skip

TRANSFORMERS: tuple[tuple[str, str], ...] = (
    ("feature_extractor.conv_layers.{i}.conv.{p}",                      "frontend.convs.{i}.{p}"),
    ("feature_extractor.conv_layers.{i}.layer_norm.{p}",                "frontend.norms.{i}.{p}"),
    ("feature_projection.layer_norm.{p}",                               "feature_norm.{p}"),
    ("feature_projection.projection.{p}",                               "projection.{p}"),
    ("encoder.pos_conv_embed.conv.parametrizations.weight.original0",   "position.g"),
    ("encoder.pos_conv_embed.conv.parametrizations.weight.original1",   "position.v"),
    ("encoder.pos_conv_embed.conv.weight_g",                            "position.g"),
    ("encoder.pos_conv_embed.conv.weight_v",                            "position.v"),
    ("encoder.pos_conv_embed.conv.bias",                                "position.bias"),
    ("encoder.pos_conv_embed.layers.{i}.conv.{p}",                      "position.convs.{i}.{p}"),  # data2vec
    ("encoder.layer_norm.{p}",                                          "norm.{p}"),
    ("encoder.layers.0.attention.rel_attn_embed.weight",                "relative_bias.table.weight"),
    ("encoder.layers.{i}.attention.{part}_proj.{p}",                    "layers.{i}.attention.{part}.{p}"),
    ("encoder.layers.{i}.attention.out_proj.{p}",                       "layers.{i}.attention.out.{p}"),
    ("encoder.layers.{i}.attention.gru_rel_pos_linear.{p}",             "layers.{i}.attention.gate.{p}"),
    ("encoder.layers.{i}.attention.gru_rel_pos_const",                  "layers.{i}.attention.gate_scale"),
    ("encoder.layers.{i}.layer_norm.{p}",                               "layers.{i}.attention_norm.{p}"),
    ("encoder.layers.{i}.feed_forward.intermediate_dense.{p}",          "layers.{i}.ffn_in.{p}"),
    ("encoder.layers.{i}.feed_forward.output_dense.{p}",                "layers.{i}.ffn_out.{p}"),
    ("encoder.layers.{i}.final_layer_norm.{p}",                         "layers.{i}.ffn_norm.{p}"),
)  # fmt: skip

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PLACEHOLDERS = {"i": r"\d+", "p": "weight|bias", "part": "[qkv]"}

# Parts of training that produce no hidden state: mask vectors, cluster predictors, quantizers, losses, task heads.
PRETRAINING_ONLY = re.compile(
    r"((encoder\.)?(masked_spec_embed|layer_norm_for_extract)|mask_emb|label_embs_concat|final_proj|target_glu"
    r"|output_layer|quantizer|project_q|project_hid|_ema|lm_head|classifier|speaker_proj|dropout_features"
    r"|label_embeddings_concat|projector|layer_weights|untie|logit_scale"
    r"|spk_proj|quant_in_proj|quant_embedding)(\.|$)"  # UniSpeech's own files
)


def to_ours(weights: Mapping[str, Tensor], scheme: tuple[tuple[str, str], ...], source: str) -> dict[str, Tensor]:
    """Rename a state dict to our encoder's names.

    Args:
        weights: source name -> tensor; a model prefix such as ``hubert.`` or ``w2v_encoder.w2v_model.`` is stripped.
        scheme: FAIRSEQ or TRANSFORMERS.
        source: file or folder, for the message.

    Raises:
        EkdError: a weight of an encoder has no place in ours, so that mapping it silently would be wrong.
    """
    check_names(weights, source)
    prefix = _prefix(weights, source)
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in weights.items():
        if not name.startswith(prefix):
            continue  # a task head beside the encoder
        name = name[len(prefix) :]
        if PRETRAINING_ONLY.match(name):
            continue
        ours = _translate(name, scheme)
        if ours is None:
            unknown.append(name)
        elif not isinstance(tensor, Tensor):
            raise EkdError(f"{source}: {name} is a {type(tensor).__name__}, expected a tensor")
        elif tensor.dtype not in _FLOATS or tensor.layout != torch.strided or tensor.is_meta:  # quantised, pruned
            what = f"{tensor.dtype} ({'no values' if tensor.is_meta else tensor.layout})"
            raise EkdError(f"{source}: {name} is stored as {what}, expected plain floats of 16, 32 or 64 bits")
        else:
            renamed[ours] = tensor
    if unknown:
        raise EkdError(
            f"{source}: {len(unknown)} weights have no place in a wav2vec2-family encoder, such as {unknown[0]!r}; "
            "this architecture is not supported as a teacher"
        )
    return _fuse_qkv(renamed, source)


def check_names(weights: Mapping[Any, Any], source: str) -> None:
    """See that every weight has a name.

    Raises:
        EkdError: a key that is no string.
    """
    for name in weights:
        if not isinstance(name, str):
            raise EkdError(f"{source}: holds the key {name!r}, expected the name of a weight")


def from_ours(weights: Mapping[str, Tensor], scheme: tuple[tuple[str, str], ...], conv_norm: str) -> dict[str, Tensor]:
    """Our names -> a source's, for exports and for tests that write real checkpoint formats.

    Args:
        weights: an :class:`Encoder`'s state dict.
        scheme: FAIRSEQ or TRANSFORMERS.
        conv_norm: the shape's; fairseq names its front end's norms by kind.
    """
    unused = ".2.{p}" if conv_norm == "layer" else ".2.1.{p}"
    backwards = tuple((ours, theirs) for theirs, ours in scheme if not theirs.endswith(unused))
    renamed = {}
    for name, tensor in _split_qkv(weights).items():
        theirs = _translate(name, backwards)
        assert theirs is not None, name  # every parameter of an Encoder is in both tables
        if name == "position.g":
            tensor = tensor.view(1, 1, -1)
        elif name.endswith("gate_scale"):
            tensor = tensor.view(1, -1, 1, 1)
        renamed[theirs] = tensor.clone(memory_format=torch.contiguous_format)  # safetensors takes nothing else
    return renamed


def _translate(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, result in table:
        match = _compiled(pattern).fullmatch(name)
        if match:
            return result.format(**match.groupdict())
    return None


@functools.cache
def _compiled(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for key, values in _PLACEHOLDERS.items():
        pattern = pattern.replace(re.escape(f"{{{key}}}"), f"(?P<{key}>{values})")
    return re.compile(pattern)


def _prefix(weights: Mapping[str, Tensor], source: str) -> str:
    first = "feature_extractor.conv_layers."
    prefixes = sorted({name.partition(first)[0] for name in weights if first in name})
    if not prefixes:
        raise EkdError(f"{source}: no wav2vec2-family weights in it (nothing called {first}*)")
    if len(prefixes) > 1:
        named = " and ".join(prefix + first + "*" for prefix in prefixes)
        raise EkdError(f"{source}: holds {len(prefixes)} encoders ({named}); save the one that is to teach by itself")
    return prefixes[0]


def _fuse_qkv(weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    fused = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"(layers\.\d+\.attention)\.([qkv])\.(weight|bias)", name)
        if match is None:
            # g is kept flat, the gate's scale one number a head, whatever singleton axes the source has
            fused[name] = tensor.reshape(-1) if name == "position.g" or name.endswith("gate_scale") else tensor
        elif match[2] == "q":
            parts = [f"{match[1]}.{part}.{match[3]}" for part in "qkv"]
            if all(part in weights for part in parts):
                if len({weights[part].shape for part in parts}) > 1:
                    raise EkdError(f"{source}: queries, keys and values of {match[1]} have different shapes")
                fused[f"{match[1]}.qkv.{match[3]}"] = torch.cat([weights[part] for part in parts])
    return fused


def _split_qkv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of the fusion: ``attention.qkv`` becomes ``attention.q``, ``.k``, ``.v``."""
    split = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"(layers\.\d+\.attention)\.qkv\.(weight|bias)", name)
        if match is None:
            split[name] = tensor
        else:
            for part, values in zip("qkv", tensor.chunk(3), strict=True):
                split[f"{match[1]}.{part}.{match[2]}"] = values
    return split


def load_into(encoder: Encoder, weights: dict[str, Tensor], source: str) -> None:
    """Load renamed weights; every parameter must be there with its shape.

    Raises:
        EkdError: weights are missing, left over, of another shape, or NaN or infinite; the first is named.
    """
    own = encoder.state_dict()
    missing = sorted(set(own) - set(weights))
    extra = sorted(set(weights) - set(own))
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r} too much"
        raise EkdError(f"{source}: the weights do not fit the model that its configuration describes: it {what}")
    for name, tensor in weights.items():
        if own[name].shape != tensor.shape:
            raise EkdError(f"{source}: {name} has shape {tuple(tensor.shape)}, expected {tuple(own[name].shape)}")
        if not torch.isfinite(tensor).all():  # torch's reader does not check the checksums of a damaged file
            raise EkdError(f"{source}: damaged: {name} holds NaN or infinite numbers")
    encoder.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
