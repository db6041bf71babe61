"""The distilled student as an s3prl upstream: a list of waveforms in, hidden states out.

Thin: the encoder is ``s3prl_ekd.model``'s. s3prl's contract is in its ``upstream/interfaces.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ekd.distill.residual import residual_name
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.clips import encode_clips
from s3prl_ekd.student_checkpoint import load_student, untrained_student
from s3prl_ekd.student_part import start_of

logger = logging.getLogger(__name__)


class UpstreamExpert(nn.Module):
    """s3prl's upstream interface around a student.

    In train mode (``-f``) it has the dropout that the student was trained with, and as much less gradient for its conv
    stack (none where that was frozen); no masks.

    Args:
        ckpt: a ``states-N.ckpt`` of ``run_pretrain.py -u ekd``, or its experiment folder (newest checkpoint),
            or a transformers folder (``s3prl-ekd export hf``, a published DistilHuBERT), also ``hf:OWNER/NAME``. None
            gives an untrained student of ``model_config``: random weights, always the same.
        model_config: a config_model.yaml; only read without ``ckpt``.
        heads: also return the predictions of every head under ``predictions`` (needs heads in the checkpoint).
        with_heads: ``hidden_states`` go on with those predictions, as s3prl's ``distilhubert`` has it.

    Raises:
        EkdError: no such checkpoint, or one without the heads that are asked for.
    """

    def __init__(
        self,
        ckpt: str | None = None,
        model_config: str | None = None,
        heads: bool = False,
        with_heads: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.heads: nn.ModuleDict | None = None
        self.head_labels: list[str] = []
        self.with_heads = with_heads
        self.differences: set[str] = set()  # head sets that predict no teacher's states
        self.student_start: dict[str, Any] | None = None  # what a checkpoint of -f keeps of the student's own
        if ckpt is not None:
            self.encoder, loaded_heads, part = load_student(ckpt, for_training=True)  # by -f
            self.student_start = start_of(part)
            if with_heads:
                self._check_heads(ckpt, part)
            if heads or with_heads:
                self.heads = loaded_heads
                pairs = ((part["config"] or {}).get("ekd", {}).get("residual_heads")) or []
                self.differences = {residual_name(pair) for pair in pairs}
                self.head_labels = [f"{s['name']}.{label}" for s in part["head_sets"] for label in s["labels"]]
        elif with_heads:
            raise EkdError("-u ekd_student_with_heads needs a checkpoint: -k CKPT")
        elif model_config is not None:
            logger.warning("ekd_student: no checkpoint given, so this is an UNTRAINED student (random weights)")
            self.encoder = untrained_student(model_config)
        else:
            raise EkdError("-u ekd_student needs a checkpoint (-k CKPT), or -g config_model.yaml for an untrained one")

    def _check_heads(self, ckpt: str, part: dict[str, Any]) -> None:
        """See that the predictions can stand in one list with the states."""
        if not part["head_sets"]:
            raise EkdError(f"-u ekd_student_with_heads: {ckpt} holds no heads")
        for head_set in part["head_sets"]:
            if head_set["width"] != self.encoder.shape.width:
                raise EkdError(
                    f"-u ekd_student_with_heads: {ckpt}: head set {head_set['name']!r} predicts {head_set['width']} "
                    f"channels, and the hidden states have {self.encoder.shape.width}"
                )

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
            with ``heads``: ``predictions``, a dict "<teacher>.<layer>" -> (B, T, D_teacher);
            with ``with_heads``: ``hidden_states`` go on with every head's prediction, and ``heads_averaged`` has, in
            place of these, the mean over the teachers' first heads, over their second ones, ... (the EKD authors').
        """
        out = encode_clips(self.encoder, wavs)
        hidden_states = [out.features, *(out.states[layer] for layer in range(1, self.encoder.shape.layers + 1))]
        result: dict[str, Any] = {"last_hidden_state": hidden_states[-1], "paper": hidden_states[-1]}
        if self.heads is not None:
            sets = {name: heads(out.states).unbind(1) for name, heads in self.heads.items()}
            result["predictions"] = dict(zip(self.head_labels, chain(*sets.values()), strict=True))
            if self.with_heads:
                alike = zip_longest(*(sets[name] for name in sets if name not in self.differences))
                averaged = [torch.stack([one for one in some if one is not None]).mean(0) for some in alike]
                result["heads_averaged"] = [*hidden_states, *averaged]
                hidden_states = [*hidden_states, *result["predictions"].values()]
        return {"hidden_states": hidden_states, **result}
