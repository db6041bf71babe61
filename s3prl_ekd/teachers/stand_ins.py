"""Small teachers with RANDOM weights, in the formats that real ones come in: for tests and benchmarks."""

from __future__ import annotations

from pathlib import Path

import torch

from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.random_state import seeded
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.teachers.writers import write_converted, write_transformers

# The family's 20 ms frame with a narrow conv stack: 0.9 M parameters, fast enough for two CPU cores
TINY = EncoderShape(
    conv_layers=((64, 10, 5), *((64, 3, 2),) * 4, *((64, 2, 2),) * 2),
    width=96,
    layers=6,
    ffn_width=256,
    heads=4,
    pos_conv_kernel=32,
    pos_conv_groups=8,
)


def random_encoder(shape: EncoderShape, seed: int) -> Encoder:
    """An encoder with random weights whose norms and gates are not at their trivial start."""
    with seeded(seed):
        encoder = Encoder(shape).eval()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder


def write_stand_ins(folder: Path, shape: EncoderShape = TINY) -> dict[str, Path]:
    """Three small teachers with random weights, one of each kind: name -> source for ``ekd.teachers``.

    The robust one is the HuBERT with a little noise on its weights, as RobustHuBERT is tuned from HuBERT.
    """
    hubert = random_encoder(shape.with_(padding_rule="fairseq"), seed=1)
    robust = Encoder(shape)
    robust.load_state_dict(hubert.state_dict())
    with seeded(2), torch.no_grad():
        for parameter in robust.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    wavlm = random_encoder(shape.with_(attention="gated_relative"), seed=3)
    return {
        "hubert": write_converted(hubert, folder / "hubert.pt"),
        "robust_hubert": write_transformers(robust, folder / "robust_hubert"),
        "wavlm": write_transformers(wavlm, folder / "wavlm", "wavlm"),
    }
