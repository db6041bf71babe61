"""Any other s3prl upstream as a teacher, through its own expert: ``s3prl:NAME`` or ``s3prl:NAME:CKPT``.

s3prl builds the expert from its hub (``NAME_local`` upstreams need the checkpoint file). Such an expert is code of
s3prl's that reads its files its own way: the promise that no file is unpickled freely holds for our own readers only.

Layers, width and frame rate are found by one dry forward of a second of noise. State l is the expert's l-th hidden
state. Upstreams with a finer frame (10 ms: 160 samples) are average-pooled to 20 ms.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.compat.hub import find_upstream
from s3prl_ekd.errors import EkdError, naming, one_line
from s3prl_ekd.model.clips import with_frames
from s3prl_ekd.model.encoder import EncoderOutput
from s3prl_ekd.random_state import seeded
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.source_names import split_upstream

logger = logging.getLogger(__name__)

HOP = 320  # samples from one frame of a teacher to the next: 20 ms
_SECOND = 16_000
_SLACK = 5  # frames by which an upstream may differ from ours: s3prl's own tolerance in its interface tests
_FAMILY = EncoderShape()  # its convolutions say how many frames a clip has


@dataclass(frozen=True)
class UpstreamShape:
    """What :class:`EncoderShape` is to our encoders, as far as an upstream can be asked."""

    layers: int
    """Index of the last hidden state."""
    width: int
    """Channels of every hidden state."""
    pool: int
    """Frames of the upstream averaged into one of 20 ms; 1 for an upstream of 20 ms."""
    hop: int = HOP
    """Samples from one frame to the next, after pooling."""

    def frames(self, samples: int) -> int:
        """Frames that a clip of ``samples`` samples has here: what the family's convolutions make of it."""
        return max(_FAMILY.frames(samples), 1)


class S3prlUpstream(nn.Module):
    """An s3prl expert with the interface of our encoders: ``shape`` and ``forward(wave, lengths, states)``.

    It computes in fp32 whatever precision the ensemble is moved to: experts build fp32 inputs inside.
    """

    def __init__(self, name: str, expert: nn.Module, shape: UpstreamShape) -> None:
        super().__init__()
        self.name = name
        self.expert = expert
        self.shape = shape

    @torch.no_grad()
    def forward(
        self, wave: Tensor, lengths: Tensor | None = None, states: Collection[int] | None = None
    ) -> EncoderOutput:
        """wave (B, N) 16 kHz, lengths (B,) samples or None -> state l (B, T, D) fp32 for each l asked for.

        T is what the family's convolutions make of N samples; a frame or two that the upstream lacks at the end are
        filled with its last one.
        """
        counts = [wave.shape[1]] * len(wave) if lengths is None else lengths.tolist()
        found = _hidden_states(self.expert, [clip[:count].float() for clip, count in zip(wave, counts, strict=True)])
        frames = self.shape.frames(wave.shape[1])
        wanted = range(self.shape.layers + 1) if states is None else states
        fitted = {layer: _fit(found[layer], self.shape.pool, frames) for layer in wanted}
        return EncoderOutput(fitted[min(fitted)], fitted)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> S3prlUpstream:
        def device_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(device_only, recurse)


_built: dict[str, S3prlUpstream] = {}  # by source, until they are taken


def take_upstream(source: str, where: str = "source") -> S3prlUpstream:
    """:func:`built_upstream`, handed over: it is not kept, and the caller may move it to a GPU and drop it."""
    upstream = built_upstream(source, where)
    del _built[source]
    return upstream


def drop_upstreams() -> None:
    """Let go of those that were built to be described and that nobody has taken."""
    _built.clear()


def built_upstream(source: str, where: str = "source") -> S3prlUpstream:
    """The expert that a source names, built and measured once: describing it needs it before it is loaded.

    Raises:
        EkdError: s3prl has no such upstream, it could not be built, or it cannot serve as a teacher.
    """
    if source not in _built:
        name, checkpoint = split_upstream(source)
        with naming(where):
            expert, states, rate = _built_and_run(name, checkpoint)
            shape = _shape(name, states, rate)
        if shape.pool > 1:
            logger.info("[ekd] %s: %d frames of %g ms are averaged into one of 20 ms", source, shape.pool, rate / 16)
        _built[source] = S3prlUpstream(name, expert, shape)
    return _built[source]


def _built_and_run(name: str, checkpoint: str) -> tuple[nn.Module, list[Tensor], int]:
    """An expert, its hidden states of a second of noise, and how many samples it says a frame has."""
    factory = find_upstream(name)
    if factory is None:
        raise EkdError(f"s3prl's hub has no upstream {name!r}")
    # of NAME_url and NAME_custom an address, which a Path would change
    arguments: dict[str, Any] = {"ckpt": os.path.expanduser(checkpoint)} if checkpoint else {}
    try:
        with torch.random.fork_rng(devices=[]):  # the run's own draws do not depend on its teachers
            expert = factory(**arguments).eval()
            with seeded(0), torch.no_grad():
                states = _hidden_states(expert, [0.1 * torch.randn(_SECOND)])
            return expert, states, int(expert.get_downsample_rates("hidden_states"))
    except Exception as error:  # an expert is foreign code: it raises what it likes
        raise EkdError(
            f"s3prl's upstream {name!r} could not be built and run ({type(error).__name__}: {one_line(error, 200)})"
        ) from error


def _shape(name: str, states: list[Tensor], rate: int) -> UpstreamShape:
    """The shape of an upstream with these states of a second; EkdError where it cannot be a teacher's."""
    if rate < 1 or HOP % rate:
        raise EkdError(f"{name} has a frame every {rate} samples, which does not divide {HOP} (20 ms)")
    widths = sorted({state.shape[-1] for state in states})
    if len(widths) != 1:
        raise EkdError(f"the hidden states of {name} have different widths {widths}, expected one")
    shape = UpstreamShape(layers=len(states) - 1, width=widths[0], pool=HOP // rate)
    for state in states:
        if abs(state.shape[1] // shape.pool - shape.frames(_SECOND)) > _SLACK:
            raise EkdError(f"{name} gives {state.shape[1]} frames a second, not the {_SECOND // rate} it says")
    return shape


def _hidden_states(expert: nn.Module, clips: list[Tensor]) -> list[Tensor]:
    return list(expert(clips)["hidden_states"])


def _fit(state: Tensor, pool: int, frames: int) -> Tensor:
    """Average groups of ``pool`` frames, then exactly ``frames`` of them. state (B, T', D) -> (B, frames, D)."""
    if pool > 1:
        state = F.avg_pool1d(state.transpose(1, 2), pool, ceil_mode=True).transpose(1, 2)
    return with_frames(state, frames)
