"""One teacher, loaded: what it is, how it was trained, and what it makes of a clip (``s3prl-ekd teachers SOURCE``)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.config import TeacherPrecision
from s3prl_ekd.console import Console
from s3prl_ekd.device import default_device, use_device
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.encoder import count_parameters
from s3prl_ekd.teachers import embedded, sources
from s3prl_ekd.teachers.adapter import S3prlUpstream, UpstreamShape
from s3prl_ekd.teachers.ensemble import FrozenTeachers, TeacherEncoder

MIB = 2**20


def show(
    console: Console,
    source: str,
    clip: tuple[Path, np.ndarray] | None,
    precision: TeacherPrecision | None,
    device_name: str | None,
) -> None:
    """Load a teacher and print its facts, and its states of a clip.

    Args:
        source: as ``ekd.teachers[].source``.
        clip: a file and its samples at 16 kHz, (N,); None: one made up.
        precision: compared with fp32.
        device_name: None: the default one.

    Raises:
        EkdError: no such source or device, or the clip is shorter than a frame.
    """
    wave = synthetic_clip() if clip is None else torch.from_numpy(clip[1]).unsqueeze(0)
    heard = "synthetic" if clip is None else str(clip[0])
    device = use_device(device_name or default_device())
    described = sources.describe(source, "teachers")
    encoder = sources.load(described, "teachers")
    if not isinstance(encoder, S3prlUpstream) and wave.shape[1] < encoder.shape.receptive_field:
        raise EkdError(f"{heard}: {wave.shape[1]} samples, shorter than one frame ({encoder.shape.receptive_field})")
    for key, value in [*facts(described, encoder), *history(described)]:
        console.print(f"{key:<14} {value}", soft_wrap=True)
    layers = list(range(encoder.shape.layers + 1))
    if device.type == "cuda":
        torch.cuda.init()  # else the next line knows no device with a number
        torch.cuda.reset_peak_memory_stats(device)
    exact = _states(encoder, layers, "fp32", wave, device)
    if device.type == "cuda":
        console.print(f"{'peak memory':<14} {torch.cuda.max_memory_allocated(device) / MIB:.0f} MiB on {device}, fp32")
    other = None
    if precision is not None:
        other = _states(sources.load(described, "teachers"), layers, precision, wave, device)
    console.print(f"{'clip':<14} {heard}, {wave.shape[1] / SAMPLE_RATE:.2f} s, {exact[0].shape[1]} frames\n")
    console.print(_table(exact, other, precision))
    console.print("norm: mean over frames of a state's length", style="dim")


def facts(described: sources.TeacherSource, encoder: TeacherEncoder) -> list[tuple[str, str]]:
    """What a loaded teacher is, as (label, text) pairs."""
    shape = encoder.shape
    parameters = count_parameters(encoder)
    rows = [
        ("source", described.pinned),
        ("kind", f"{described.family} ({described.kind})"),
        ("layers", f"{shape.layers}, so that hidden states 0..{shape.layers} can be named"),
        ("width", str(shape.width)),
        ("parameters", f"{parameters:,}"),
        ("memory", f"{parameters * 4 / MIB:.0f} MiB of weights in fp32, {parameters * 2 / MIB:.0f} MiB in bf16"),
    ]
    if isinstance(shape, UpstreamShape):
        rows[-1] = ("memory", f"{parameters * 4 / MIB:.0f} MiB of weights, always fp32")
        pooled = f", pool {shape.pool}: frames of {20 / shape.pool:g} ms averaged" if shape.pool > 1 else ""
        return [*rows, ("normalisation", "the expert's own"), ("frame", f"20 ms{pooled}")]
    normalisation = "each clip to zero mean, unit variance" if shape.normalize else "none, waveform as it is"
    arrangement = "pre-norm" if shape.pre_norm else "post-norm"
    return [
        *rows,
        ("normalisation", normalisation),
        ("frame", f"{shape.hop / SAMPLE_RATE * 1000:g} ms ({shape.hop} samples)"),
        ("architecture", f"{arrangement}, {shape.conv_norm} norm front end, {shape.attention} attention"),
    ]


def history(described: sources.TeacherSource) -> list[tuple[str, str]]:
    """How a teacher was trained, where its folder says so (``training.json``), as (label, text) pairs."""
    record = None if described.path is None or not described.path.is_dir() else embedded.record(described.path)
    if record is None:
        return []
    rows = [("what", record["summary"]), ("data", record["data"]), ("licence", record["licence"])]
    for stage in record["stages"]:
        settings, last = stage["stage"], stage["last"]
        text = f"{settings['steps']:,} steps, {stage['hours_heard']:g} h of audio heard, {stage['minutes']:g} minutes; "
        text += " and ".join(_units(units) for units in settings["units"]) + "; "
        text += f"at the end {100 * last['masked_accuracy']:.1f} % of masked units right"
        rows.append((f"  {settings['name']}", text))
    return [*rows, ("command", record["command"])]


def _units(units: dict[str, Any]) -> str:
    """Of a record's codebook: how many units of what."""
    of = "MFCC" if units["encoder"] is None else f"state {units['layer']} of {units['encoder']}"
    return f"{units['clusters']} units of {of}" + (", normalised by utterance" if units["normalize"] else "")


def synthetic_clip() -> Tensor:
    """(1, N): 2 s of a gliding, pulsing harmonic tone with a little noise; the same ones each time."""
    time = torch.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    pitch = 2 * math.pi * (110 * time + 20 * time.square())
    tone = sum(torch.sin(k * pitch) / k for k in range(1, 9)) * (0.6 + 0.4 * torch.sin(2 * math.pi * 3 * time))
    noise = torch.randn(time.shape, generator=torch.Generator().manual_seed(0))
    return (0.1 * tone + 0.005 * noise).unsqueeze(0)


def _states(
    encoder: TeacherEncoder, layers: list[int], precision: TeacherPrecision, wave: Tensor, device: torch.device
) -> dict[int, Tensor]:
    teachers = FrozenTeachers({"teacher": encoder}, {"teacher": layers}, precision).to(device)
    return {layer: state.float().cpu() for layer, state in teachers(wave.to(device))["teacher"].items()}


def _table(exact: dict[int, Tensor], other: dict[int, Tensor] | None, precision: str | None) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("state", "norm", "std", "largest"):
        table.add_column(column, justify="right")
    if other is not None:
        table.add_column(f"cosine {precision}", justify="right")
        table.add_column("worst frame", justify="right")
    for layer, state in exact.items():
        row = [str(layer), f"{state.norm(dim=-1).mean():.3f}", f"{state.std():.4f}", f"{state.abs().max():.3f}"]
        if other is not None:
            cosine = F.cosine_similarity(state, other[layer], dim=-1)
            row += [f"{cosine.mean():.6f}", f"{cosine.min():.6f}"]
        table.add_row(*row)
    return table
