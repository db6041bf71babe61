"""An encoder as a file: s3prl's converted format, and the transformers folder that ``export hf`` makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.teachers import mapping


def fairseq_config(shape: EncoderShape) -> dict[str, Any]:
    """A shape in the words of fairseq's ``model`` configuration, which s3prl's ``model_cfg`` has kept."""
    return {
        "extractor_mode": "layer_norm" if shape.conv_norm == "layer" else "default",
        "encoder_layers": shape.layers,
        "encoder_embed_dim": shape.width,
        "encoder_ffn_embed_dim": shape.ffn_width,
        "encoder_attention_heads": shape.heads,
        "activation_fn": "gelu",
        "layer_norm_first": shape.pre_norm,
        "conv_feature_layers": "[" + ", ".join(map(str, shape.conv_layers)) + "]",
        "conv_bias": shape.conv_bias,
        "conv_pos": shape.pos_conv_kernel,
        "conv_pos_groups": shape.pos_conv_groups,
    }


def write_converted(encoder: Encoder, file: Path) -> Path:
    """s3prl's converted format: task_cfg, model_cfg, model_weight, dictionaries_symbols; for WavLM cfg and model."""
    shape, config = encoder.shape, fairseq_config(encoder.shape)
    weights = mapping.from_ours(encoder.state_dict(), mapping.FAIRSEQ, shape.conv_norm)
    weights["mask_emb"] = torch.zeros(shape.width)
    if shape.attention == "gated_relative":
        relative = {
            "relative_position_embedding": True,
            "gru_rel_pos": True,
            "num_buckets": shape.relative_buckets,
            "max_distance": shape.relative_max_distance,
            "normalize": shape.normalize,
        }
        content: dict[str, Any] = {"cfg": config | relative, "model": weights}
    else:
        symbols = [str(unit) for unit in range(8)]
        weights["final_proj.weight"] = torch.zeros(shape.width, shape.width)
        weights["final_proj.bias"] = torch.zeros(shape.width)
        weights["label_embs_concat"] = torch.zeros(len(symbols) + 4, shape.width)
        content = {
            "task_cfg": {"normalize": shape.normalize, "sample_rate": 16000},
            "model_cfg": config | {"label_rate": 50.0},
            "model_weight": weights,
            "dictionaries_symbols": [["<s>", "<pad>", "</s>", "<unk>", *symbols]],
        }
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)
    return file


def write_transformers(
    encoder: Encoder,
    folder: Path,
    model_type: str = "hubert",
    dtype: torch.dtype = torch.float32,
    mask_vector: Tensor | None = None,
) -> Path:
    """A transformers folder: :func:`transformers_files` and :func:`write_transformers_weights`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in transformers_files(encoder.shape, model_type).items():
        (folder / name).write_text(as_json(content))
    write_transformers_weights(encoder, folder, dtype, mask_vector)
    return folder


def transformers_files(
    shape: EncoderShape, model_type: str = "hubert", attention_mask: bool | None = None
) -> dict[str, dict[str, Any]]:
    """What config.json and preprocessor_config.json of a transformers folder hold.

    Args:
        model_type: hubert, wavlm or wav2vec2.
        attention_mask: whether the feature extractor gives a batch's mask; None: as the published models of this kind
            of front end have it, those with a group norm without one, so that their padding is computed as silence.
    """
    architecture = {"hubert": "HubertModel", "wavlm": "WavLMModel", "wav2vec2": "Wav2Vec2Model"}[model_type]
    dims, kernels, strides = (list(column) for column in zip(*shape.conv_layers, strict=True))
    config = {
        "model_type": model_type,
        "architectures": [architecture],
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.ffn_width,
        "hidden_act": "gelu",
        "conv_dim": dims,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "conv_bias": shape.conv_bias,
        "num_feat_extract_layers": len(dims),
        "feat_extract_norm": shape.conv_norm,
        "feat_extract_activation": "gelu",
        "do_stable_layer_norm": shape.pre_norm,
        "num_conv_pos_embeddings": shape.pos_conv_kernel,
        "num_conv_pos_embedding_groups": shape.pos_conv_groups,
    }
    if model_type == "hubert":  # only HubertModel can leave the norm before its projection out
        config["feat_proj_layer_norm"] = shape.feature_norm
    if model_type == "wavlm":
        config |= {"num_buckets": shape.relative_buckets, "max_bucket_distance": shape.relative_max_distance}
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16000,
        "padding_value": 0.0,
        "do_normalize": shape.normalize,
        "return_attention_mask": shape.conv_norm == "layer" if attention_mask is None else attention_mask,
    }
    return {"config.json": config, "preprocessor_config.json": preprocessor}


def as_json(content: dict[str, Any]) -> str:
    """The text of a JSON file as these folders have it."""
    return json.dumps(content, indent=2) + "\n"


def write_transformers_weights(
    encoder: Encoder, folder: Path, dtype: torch.dtype = torch.float32, mask_vector: Tensor | None = None
) -> None:
    """model.safetensors of a transformers folder.

    Args:
        encoder: its weights.
        folder: is there.
        dtype: of the stored weights.
        mask_vector: (D,) what masked frames are replaced by in training; zeros where it is not known.
    """
    width = encoder.shape.width
    weights = mapping.from_ours(encoder.state_dict(), mapping.TRANSFORMERS, encoder.shape.conv_norm)
    weights["masked_spec_embed"] = torch.zeros(width) if mask_vector is None else mask_vector
    weights = {name: value.detach().to(dtype).contiguous() for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it the owner's alone
