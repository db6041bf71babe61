"""PHI-S: a rotation after which every channel of a target has the same variance, and one scale for all of them.

With its Hadamard matrices. Which teachers and layers it is applied to is ``normalise.py``'s business.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s3prl_ekd.distill.moments import RunningMoments
from s3prl_ekd.distributed import Share
from s3prl_ekd.errors import EkdError


class PhiS(RunningMoments):
    """PCA-Hadamard isotropic standardisation of one (teacher, layer).

    ``y = (H U^T (x - mean)) / phi`` with covariance ``U diag(lambda) U^T``, ``H`` an orthonormal Hadamard matrix
    (all entries ``+-1/sqrt(D)``) and ``phi = sqrt(mean(lambda))``. Since every entry of H has one magnitude, each
    output channel has variance ``mean(lambda) / phi^2 = 1``; since ``H U^T`` is a rotation, errors in all directions
    keep their relative sizes, which standardising channel by channel distorts. (PHI-S, arXiv 2410.01680.)

    Mean, covariance and phi run over the first ``fit_batches`` training batches; until then targets are centred and
    scaled without rotation, then the rotation is computed once and nothing changes any more.

    Args:
        width: D; a Hadamard matrix of that order must be known: 142 of the 256 multiples of 4 up to 1024 are, among
            them 192, 512, 640, 768 and 1024.
        fit_batches: batches to fit on.

    Raises:
        EkdError: no Hadamard matrix of that order.
    """

    covariance: Tensor
    rotation: Tensor

    def __init__(self, width: int, fit_batches: int) -> None:
        super().__init__(width)
        hadamard(width)  # an impossible width is an error before training
        self.fit_batches = fit_batches
        self.batches = 0
        self.register_buffer("covariance", torch.eye(width))
        self.register_buffer("rotation", torch.eye(width))

    def forward(self, x: Tensor, share: Share | None = None) -> Tensor:
        """x (B, T, D) in any precision -> (B, T, D) fp32; ``share``: as in normalise.Standardiser."""
        x = x.float()
        if self.training and self.batches < self.fit_batches:
            self._update(x.detach(), share)
        y = (x - self.mean) / self._phi()
        return y @ self.rotation.t() if self.batches >= self.fit_batches else y

    def _phi(self) -> Tensor:
        return self.covariance.diagonal().mean().clamp(min=1e-12).sqrt()

    @torch.no_grad()
    def _update(self, x: Tensor, share: Share | None) -> None:
        mean = x.flatten(0, -2).mean(0)
        centred = x.flatten(0, -2) - mean
        covariance = centred.t() @ centred / len(centred)
        self._take_in(self.covariance, x, mean, covariance, share)
        self.batches += 1
        if self.batches == self.fit_batches:
            vectors = torch.linalg.eigh(self.covariance.double()).eigenvectors  # columns
            self.rotation.copy_(hadamard(len(mean)).to(vectors) @ vectors.t())
            if share is not None:  # eigenvectors have no sign: unlike GPUs come to other rotations
                share.take_rank_zeros(self.rotation)

    def get_extra_state(self) -> dict[str, Any]:
        """The number of batches: a plain number, since asking a tensor on the device would wait for it."""
        return {"batches": self.batches}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Reverse of :meth:`get_extra_state`."""
        self.batches = int(state["batches"])


def hadamard(order: int) -> Tensor:
    """An orthonormal Hadamard matrix (order, order) in fp64: ``H H^T = I`` and every entry ``+-1/sqrt(order)``.

    Sylvester's doubling ``[[H, H], [H, -H]]`` over the largest Paley matrix that ends in it, of order q + 1, q a prime
    with ``q % 4 == 3``: 768 = 2 * 384 from q = 383, 1024 = 8 * 128 from q = 127.

    Raises:
        EkdError: neither construction has this order.
    """
    base = order
    while base > 1 and not _paley_order(base):
        if base % 2:
            raise EkdError(
                f"ekd.targets.normalise: phi_s knows no Hadamard matrix of {order} channels; use standardise"
            )
        base //= 2
    matrix = _paley(base - 1) if base > 1 else torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / order**0.5


def _paley_order(order: int) -> bool:
    q = order - 1
    return q % 4 == 3 and all(q % divisor for divisor in range(2, int(q**0.5) + 1))


def _paley(q: int) -> Tensor:
    """Paley's first construction ``I + S`` with S skew, from the quadratic residues modulo the prime q."""
    residues = {i * i % q for i in range(1, q)}
    character = torch.tensor([0.0] + [1.0 if i in residues else -1.0 for i in range(1, q)], dtype=torch.float64)
    index = torch.arange(q)
    skew = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0] = 1.0, -1.0
    skew[1:, 1:] = character[(index.unsqueeze(0) - index.unsqueeze(1)) % q]
    return torch.eye(q + 1, dtype=torch.float64) + skew
