"""From a trained encoder to what the package ships: a transformers folder in fp16 with the record of its training."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

from recipes.tiny_teachers.settings import TeacherSettings
from s3prl_ekd.model.encoder import Encoder, count_parameters
from s3prl_ekd.teachers.embedded import RECORD
from s3prl_ekd.teachers.writers import write_transformers


def ship(
    encoder: Encoder, mask_vector: torch.Tensor, folder: Path, settings: TeacherSettings, record: dict[str, Any]
) -> Path:
    """Write config.json, model.safetensors (fp16), preprocessor_config.json and training.json.

    ``record``: ``name``, ``data``, ``licence``, ``command`` and ``stages``, as ``s3prl-ekd teachers`` shows them.
    """
    family = "wavlm" if encoder.shape.attention == "gated_relative" else "hubert"
    write_transformers(encoder, folder, family, torch.float16, mask_vector)
    whole = {
        "name": record["name"],
        "summary": settings.summary,
        "parameters": count_parameters(encoder),
        **record,
        "seed": settings.seed,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    (folder / RECORD).write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    return folder
