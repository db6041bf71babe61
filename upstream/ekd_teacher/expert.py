"""A teacher as an s3prl upstream: a list of waveforms in, hidden states out, as s3prl's own HuBERT and WavLM experts.

What a teacher scores on the tasks is what its student is measured against, so teachers are evaluated like students:
by the encoder that distils them, from every source that a configuration may name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.clips import encode_clips
from s3prl_ekd.teachers.build import load_teacher


class UpstreamExpert(nn.Module):
    """s3prl's upstream interface around a teacher.

    Args:
        ckpt: what ``ekd.teachers[].source`` may say: ``embedded:tiny_hubert``, a hub name, ``hf:OWNER/NAME``, a file,
            a folder, ``random:SOURCE``.
        where: who names it, for messages.

    Raises:
        EkdError: no such teacher, or an s3prl expert, which is an upstream already.
    """

    def __init__(self, ckpt: str | None = None, where: str = "-k", **kwargs: Any) -> None:
        super().__init__()
        if ckpt is None:
            raise EkdError("-u ekd_teacher needs a teacher: -k SOURCE, as ekd.teachers[].source names it")
        self.encoder = load_teacher(str(ckpt), where).requires_grad_()  # -f tunes it; else s3prl asks for no gradients

    def get_downsample_rates(self, key: str) -> int:
        """Samples a frame at 16 kHz: 320 (20 ms) for every key."""
        return self.encoder.shape.hop

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """wavs: 1-D float tensors at 16 kHz -> ``hidden_states``: state 0 (the input of layer 1) and every layer's,
        each (B, T, D); ``last_hidden_state``: the last one.
        """
        layers = range(self.encoder.shape.layers + 1)
        out = encode_clips(self.encoder, wavs, layers)
        hidden_states = [out.states[layer] for layer in layers]
        return {"hidden_states": hidden_states, "last_hidden_state": hidden_states[-1]}
