"""The distilled student as an s3prl upstream: a list of waveforms in, hidden states out.

Thin: the encoder is ``s3prl_ekd.model``'s. s3prl's contract is in its ``upstream/interfaces.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.clips import encode_clips
from s3prl_ekd.student_checkpoint import load_student, untrained_student

logger = logging.getLogger(__name__)


class UpstreamExpert(nn.Module):
    """s3prl's upstream interface around a student.

    Args:
        ckpt: a ``states-N.ckpt`` of ``run_pretrain.py -u ekd``, or its experiment folder (newest checkpoint),
            or a transformers folder (``s3prl-ekd export hf``, a published DistilHuBERT), also ``hf:OWNER/NAME``. None
            gives an untrained student of ``model_config``: random weights, always the same.
        model_config: a config_model.yaml; only read without ``ckpt``.
        heads: also return the predictions of every head under ``predictions`` (needs heads in the checkpoint).
    """

    def __init__(
        self, ckpt: str | None = None, model_config: str | None = None, heads: bool = False, **kwargs: Any
    ) -> None:
        super().__init__()
        self.heads: nn.ModuleDict | None = None
        self.head_labels: list[str] = []
        if ckpt is not None:
            self.encoder, loaded_heads, part = load_student(ckpt)
            if heads:
                self.heads = loaded_heads
                self.head_labels = [f"{s['name']}.{label}" for s in part["head_sets"] for label in s["labels"]]
        elif model_config is not None:
            logger.warning("ekd_student: no checkpoint given, so this is an UNTRAINED student (random weights)")
            self.encoder = untrained_student(model_config)
        else:
            raise EkdError("-u ekd_student needs a checkpoint (-k CKPT), or -g config_model.yaml for an untrained one")

    def get_downsample_rates(self, key: str) -> int:
        """Samples a frame at 16 kHz: 320 (20 ms) for every key."""
        return self.encoder.shape.hop

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """Encode clips of any length from a few milliseconds up.

        Args:
            wavs: 1-D float tensors at 16 kHz, in any order, on one device.

        Returns:
            ``hidden_states``: list of (B, T, D): projected conv features, then each transformer layer;
            ``last_hidden_state`` and ``paper`` (DistilHuBERT's single-layer convention): the last layer;
            with ``heads``: ``predictions``, a dict "<teacher>.<layer>" -> (B, T, D_teacher).
        """
        out = encode_clips(self.encoder, wavs, range(1, self.encoder.shape.layers + 1))
        hidden_states = [out.features, *(out.states[layer] for layer in sorted(out.states))]
        result: dict[str, Any] = {
            "hidden_states": hidden_states,
            "last_hidden_state": hidden_states[-1],
            "paper": hidden_states[-1],
        }
        if self.heads is not None:
            predictions = [part for heads in self.heads.values() for part in heads(hidden_states[-1]).unbind(1)]
            result["predictions"] = dict(zip(self.head_labels, predictions, strict=True))
        return result
