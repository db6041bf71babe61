"""A student as one ONNX file with dynamic batch and length, compared with PyTorch in onnxruntime once it is written.

Inputs: ``waveform`` float32 (batch, samples), 16 kHz, zero-padded, at least 400 samples; ``lengths`` int64 (batch,),
the samples of each clip before padding. Outputs: ``hidden_state_0`` (projected conv features), ``hidden_state_1``, ...
each float32 (batch, frames, width): what the ``ekd_student`` upstream gives for the same clips.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from s3prl_ekd.errors import EkdError
from s3prl_ekd.export.superb_expert import ConvFrontEnd, PositionalConv, TransformerLayer
from s3prl_ekd.model.clips import heard
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.model.frontend import frame_mask
from s3prl_ekd.student_checkpoint import load_student
from s3prl_ekd.whole_file import whole_file
from s3prl_ekd.writable import output_file

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
TOLERANCE = 1e-4  # of a state's largest number: onnxruntime adds in another order than PyTorch


class OnnxStudent(nn.Module):
    """The encoder as one straight graph: the frame mask is always applied, for it is data and not known at export."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        shape = self.shape = encoder.shape
        self.frontend = ConvFrontEnd(shape.conv_layers, shape.conv_bias, shape.conv_norm)
        self.feature_norm = encoder.feature_norm
        self.projection = encoder.projection
        self.position = PositionalConv(shape.width, shape.pos_conv_kernel, shape.pos_conv_groups)
        self.norm = encoder.norm
        self.layers = nn.ModuleList(
            TransformerLayer(shape.width, shape.heads, shape.ffn_width, shape.pre_norm) for _ in range(shape.layers)
        )
        self.load_state_dict(encoder.state_dict())

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """waveform (B, N), lengths (B,) -> hidden states, each (B, T, D)."""
        features = self.frontend(heard(self.shape, waveform, lengths))
        mask = frame_mask(lengths, waveform.shape[1], features.shape[1], self.shape)
        if self.feature_norm is not None:
            features = self.feature_norm(features)
        if self.projection is not None:
            features = self.projection(features)
        features = features.masked_fill(~mask.unsqueeze(-1), 0.0)
        states = [features]
        x = features + self.position(features)
        if not self.shape.pre_norm:
            x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
            states.append(x)
        if self.shape.pre_norm:
            states[-1] = self.norm(x)
        return tuple(states)


def export_onnx(checkpoint: Path, out: Path) -> tuple[Path, float]:
    """Write the file and compare it with PyTorch on other sizes than it was traced with.

    Args:
        checkpoint: a student: ``states-N.ckpt``, an experiment folder, or a transformers folder.
        out: the file, ``*.onnx``.

    Returns:
        the file, and the largest difference between onnxruntime and PyTorch, as :func:`compare` gives it.

    Raises:
        EkdError: ONNX is not installed, the shape cannot be exported, or the results differ.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise EkdError(f"export onnx needs {', '.join(missing)}: pip install 's3prl-ekd[onnx]'")
    output_file(out, ".onnx")
    encoder, _, _ = load_student(checkpoint)
    for field, value in {"attention": "plain", "pos_conv_depth": 1}.items():
        if getattr(encoder.shape, field) != value:
            raise EkdError(f"{checkpoint}: {field} is {getattr(encoder.shape, field)!r}; export onnx needs {value!r}")
    model = OnnxStudent(encoder).eval()
    with whole_file(out) as partial:
        _write(model, partial)
        difference = compare(encoder, partial)
        if difference > TOLERANCE:
            raise EkdError(f"{out}: not written: onnxruntime differs from PyTorch by {difference:.1g} of a state")
    return out, difference


def compare(encoder: Encoder, file: Path) -> float:
    """Largest difference between onnxruntime and our encoder, over several batches and lengths.

    Relative to the largest number of each hidden state: state 0, which no norm has seen, goes into the thousands.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for samples in ((16_000,), (48_123,), (16_000, 9_000, 12_345), (400, 400), (3_200,) * 4):
        wave = torch.zeros(len(samples), max(samples))
        for row, count in zip(wave, samples, strict=True):
            row[:count] = torch.randn(count, generator=generator)
        lengths = torch.tensor(samples)
        found = session.run(None, {"waveform": wave.numpy(), "lengths": lengths.numpy()})
        with torch.no_grad():
            expected = encoder(heard(encoder.shape, wave, lengths), lengths)
        states = [expected.features, *(expected.states[layer + 1] for layer in range(encoder.shape.layers))]
        for one, other in zip(found, states, strict=True):
            worst = max(worst, float((torch.from_numpy(one) - other).abs().max() / other.abs().max()))
    return worst


def _write(model: OnnxStudent, out: Path) -> None:
    batch, samples = torch.export.Dim("batch"), torch.export.Dim("samples", min=model.shape.receptive_field)
    example = (torch.randn(2, 16_000), torch.tensor([16_000, 12_000]))
    names = [f"hidden_state_{index}" for index in range(model.shape.layers + 1)]
    for name in ("torch.onnx", "onnx_ir", "onnxscript"):  # a line for every constant they fold
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's deprecations are its own
        torch.onnx.export(
            model,
            example,
            str(out),
            dynamo=True,
            verbose=False,
            external_data=False,
            opset_version=OPSET,
            input_names=["waveform", "lengths"],
            output_names=names,
            dynamic_shapes=({0: batch, 1: samples}, {0: batch}),
        )
