"""The conv front end as the published models compute it: an oracle for ours, and what a FLOP counter understands."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from s3prl_ekd.model.frontend import ConvFrontEnd


def by_convolutions(frontend: ConvFrontEnd, wave: Tensor) -> Tensor:
    """What fairseq and transformers compute: conv1d, norm, GELU, channels first. wave (B, N) -> (B, T, C)."""
    x = wave.unsqueeze(1)
    for index, conv in enumerate(frontend.convs):
        x = F.conv1d(x, conv.weight, conv.bias, conv.stride)
        if frontend.group_norm and index == 0:
            x = frontend.norms[0](x)
        elif not frontend.group_norm:
            x = frontend.norms[index](x.transpose(1, 2)).transpose(1, 2)
        x = F.gelu(x)
    return x.transpose(1, 2)
