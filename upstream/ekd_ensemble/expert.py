"""Several models side by side as an s3prl upstream: their hidden states, layer by layer, joined along the channels.

What one student of several teachers is set against: a student of each teacher, all of them kept (the paper's
introduction: more parameters, and not always a better score). Teachers can stand so too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ekd.ensemble_file import Member, read_members
from s3prl_ekd.errors import EkdError, naming
from s3prl_ekd.upstream.ekd_student.expert import UpstreamExpert as StudentExpert
from s3prl_ekd.upstream.ekd_teacher.expert import UpstreamExpert as TeacherExpert


class UpstreamExpert(nn.Module):
    """s3prl's upstream interface around several models.

    Args:
        ckpt: the YAML file that lists them; students give the states of ``ekd_student``, teachers of ``ekd_teacher``.

    Raises:
        EkdError: no such file or model, or models with unlike numbers of layers or frames.
    """

    def __init__(self, ckpt: str | None = None, **kwargs: Any) -> None:
        super().__init__()
        if ckpt is None:
            raise EkdError("-u ekd_ensemble needs the list of its models: -k FILE.yaml")
        experts = []
        for number, member in enumerate(read_members(Path(ckpt))):
            with naming(f"{ckpt}: [{number}]"):
                experts.append(_expert(member))
        self.experts = nn.ModuleList(experts)
        shapes = [expert.encoder.shape for expert in experts]
        for number, shape in enumerate(shapes):
            for what in ("layers", "hop"):
                theirs, first = getattr(shape, what), getattr(shapes[0], what)
                if theirs != first:
                    raise EkdError(f"{ckpt}: [{number}]: {what} {theirs}, but {first} of [0]; they must be equal")
        self._hop = shapes[0].hop
        self._equal_width = len({shape.width for shape in shapes}) == 1

    def get_downsample_rates(self, key: str) -> int:
        """Samples a frame at 16 kHz: 320 (20 ms) for every key."""
        return self._hop

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """wavs: 1-D float tensors at 16 kHz -> ``hidden_states``: of every layer the models' states, joined to
        (B, T, D_1 + D_2 + ...); ``last_hidden_state`` and ``paper``: the last one; ``mean`` (``-s mean``): their
        means, (B, T, D), of models of one width.
        """
        found = [expert(wavs)["hidden_states"] for expert in self.experts]
        frames = min(states[0].shape[1] for states in found)  # other convolutions make one more
        layers = [[state[:, :frames] for state in layer] for layer in zip(*found, strict=True)]
        joined = [torch.cat(layer, dim=-1) for layer in layers]
        result = {"hidden_states": joined, "last_hidden_state": joined[-1], "paper": joined[-1]}
        if self._equal_width:
            result["mean"] = [torch.stack(layer).mean(0) for layer in layers]
        return result


def _expert(member: Member) -> StudentExpert | TeacherExpert:
    return StudentExpert(member.source) if member.kind == "ckpt" else TeacherExpert(member.source, where="teacher")
