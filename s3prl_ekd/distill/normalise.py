"""Target normalisation: running statistics of each (teacher, layer), and targets standardised by them.

It acts on teacher states before they are averaged, joined or subtracted. The rotation of PHI-S is in ``phi_s.py``.
Shapes: B clips, T frames, D channels of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from s3prl_ekd.config import TargetsConfig
from s3prl_ekd.distill.moments import RunningMoments
from s3prl_ekd.distill.phi_s import PhiS
from s3prl_ekd.distill.targets import TeacherLayers, TeacherStates
from s3prl_ekd.distributed import Share

EPSILON = 1e-6  # added to the variance: a dead channel becomes 0, not infinite


class Standardiser(RunningMoments):
    """Standardises one (teacher, layer): mean 0 and standard deviation 1 in every channel.

    ``y = (x - mean) / sqrt(var + 1e-6)``, after the statistics have taken in the batch (``moments.py``): the exact mean
    and variance of all frames seen until the batch's part of them falls below ``momentum``, then an exponential moving
    average: no warm-up of wrong statistics, and no end to adapting. The idea is UNIC's (arXiv 2408.05088: teacher
    outputs standardised by running statistics); this schedule is ours.
    Buffers only: the statistics go into the checkpoint and move with ``.to(device)``.

    Args:
        width: D.
        momentum: least weight of the newest batch.
    """

    variance: Tensor

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__(width)
        self.momentum = momentum
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x: Tensor, share: Share | None = None) -> Tensor:
        """x (B, T, D) in any precision -> (B, T, D) fp32. Statistics change in training mode only.

        With ``share``, x is one rank's part of a global batch, and the statistics take in the whole batch.
        """
        x = x.float()
        if self.training:
            states = x.detach()
            variance, mean = torch.var_mean(states.flatten(0, -2), dim=0, correction=0)
            self._take_in(self.variance, states, mean, variance, share, least=self.momentum)
        return (x - self.mean) * (self.variance + EPSILON).rsqrt()


class Normaliser(nn.Module):
    """Every teacher's states through a normalisation of their own.

    Args:
        config: ``ekd.targets``; ``none`` makes this the identity, without buffers.
        teachers: names, layers and widths.
    """

    def __init__(self, config: TargetsConfig, teachers: Sequence[TeacherLayers]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        for teacher in teachers if config.normalise != "none" else ():
            for layer in teacher.layers:
                if config.normalise == "standardise":
                    part: nn.Module = Standardiser(teacher.width, config.momentum)
                else:
                    part = PhiS(teacher.width, config.fit_batches)
                self.parts[_key(teacher.name, layer)] = part

    def forward(self, states: TeacherStates, share: Share | None = None) -> TeacherStates:
        """teacher -> layer -> (B, T, D), normalised; the very same object when there is nothing to do."""
        if not self.parts:
            return states
        return {
            name: {layer: self.parts[_key(name, layer)](state, share) for layer, state in layers.items()}
            for name, layers in states.items()
        }


def _key(teacher: str, layer: int) -> str:
    return f"{teacher}:{layer}"
