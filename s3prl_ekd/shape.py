"""The shape of a wav2vec2-family encoder: plain numbers, no tensors.

One :class:`EncoderShape` describes every member of the family, deep teacher or shallow student. What differs between
HuBERT, WavLM, wav2vec 2.0 and DistilHuBERT is a handful of these fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

# (channels, kernel, stride) of the 7 convolutions: receptive field 400 samples, hop 320 samples (20 ms at 16 kHz)
BASE_CONV = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)

ConvNorm = Literal["group", "layer"]


@dataclass(frozen=True)
class EncoderShape:
    """Numbers that fix an encoder's modules and arithmetic. Defaults: HuBERT Base (94.4 M parameters)."""

    conv_layers: tuple[tuple[int, int, int], ...] = BASE_CONV
    """(channels, kernel, stride) of each convolution, in samples of its input."""
    conv_norm: ConvNorm = "group"
    """group: GroupNorm after the first convolution only (Base models); layer: LayerNorm after each (Large models)."""
    conv_bias: bool = False
    """Whether the convolutions have a bias (wav2vec 2.0 Large LV-60 has)."""
    feature_norm: bool = True
    """LayerNorm on the conv features before the projection; DistilHuBERT's student has none."""
    square_projection: bool = False
    """Whether there is a projection although the conv features have ``width`` channels already: transformers always has
    one, fairseq only between different widths."""
    width: int = 768
    """Channels of every hidden state."""
    layers: int = 12
    """Transformer layers; state l is the output of layer l, state 0 the input of layer 1."""
    ffn_width: int = 3072
    """Channels inside each feed-forward block."""
    heads: int = 12
    """Attention heads; must divide ``width``."""
    pre_norm: bool = False
    """Norm before attention and feed-forward (Large models) instead of after; then one more norm ends the stack."""
    pos_conv_kernel: int = 128
    """Kernel of the positional convolution, in frames."""
    pos_conv_groups: int = 16
    """Channel groups of the positional convolution."""
    pos_conv_depth: int = 1
    """Positional convolutions in a row. 1: weight-normalised (wav2vec 2.0, HuBERT, WavLM); more: plain ones, each with
    a LayerNorm without weights (data2vec-audio, 5 of kernel 19)."""
    attention: Literal["plain", "gated_relative"] = "plain"
    """gated_relative: WavLM's relative-position bias, gated by the layer's input."""
    relative_buckets: int = 320
    """Buckets of the relative-position table (gated_relative only)."""
    relative_max_distance: int = 800
    """Distance in frames from which on all positions share a bucket (gated_relative only)."""
    padding_rule: Literal["conv", "fairseq"] = "conv"
    """How many frames of a zero-padded clip count as speech. conv: as many as the convolutions make of the clip alone
    (transformers, DistilHuBERT); fairseq: a frame counts unless its whole share of samples is padding (s3prl's HuBERT
    and WavLM). They differ by a frame or two; batches of equal length are free of both."""
    normalize: bool = False
    """Whether the model expects each waveform at zero mean and unit variance (Large models)."""
    normalize_eps: float = 1e-5
    """Added to the variance then: 1e-5 in fairseq and s3prl, 1e-7 in transformers' feature extractor."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.width % self.pos_conv_groups:
            raise ValueError(f"width {self.width} is not a multiple of pos_conv_groups {self.pos_conv_groups}")
        if not self.conv_layers:
            raise ValueError("conv_layers is empty")

    @property
    def projected(self) -> bool:
        """Whether the conv features pass a linear layer to ``width`` channels."""
        return self.square_projection or self.conv_layers[-1][0] != self.width

    @property
    def hop(self) -> int:
        """Samples from one frame to the next (320 for the whole family)."""
        hop = 1
        for _, _, stride in self.conv_layers:
            hop *= stride
        return hop

    @property
    def receptive_field(self) -> int:
        """Samples that the first frame sees, hence the shortest clip that gives a frame (400 for the whole family)."""
        field, step = 1, 1
        for _, kernel, stride in self.conv_layers:
            field += (kernel - 1) * step
            step *= stride
        return field

    def frames(self, samples: int) -> int:
        """Frames that the convolutions make of a clip of ``samples`` samples."""
        for _, kernel, stride in self.conv_layers:
            samples = (samples - kernel) // stride + 1
        return max(samples, 0)

    def with_(self, **changes: Any) -> EncoderShape:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, as stored in checkpoints."""
        values = asdict(self)
        values["conv_layers"] = [list(layer) for layer in self.conv_layers]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderShape:
        """The reverse of :meth:`to_dict`.

        Raises:
            ValueError: a key is unknown, or its value of another kind than its default.
        """
        defaults: dict[str, Any] = {field.name: field.default for field in fields(cls)}
        unknown = set(values) - set(defaults)
        if unknown:
            raise ValueError(f"unknown encoder fields: {', '.join(map(str, unknown))}")
        for name, value in values.items():
            kind = type(defaults[name])
            if kind is not tuple and (type(value) is not kind or (kind is int and value < 1)):
                expected = "a number of 1 or more" if kind is int else f"a {kind.__name__}"
                raise ValueError(f"{name}: expected {expected}, found {value!r}")
            if value not in _CHOICES.get(name, (value,)):
                raise ValueError(f"{name}: expected one of {', '.join(_CHOICES[name])}, found {value!r}")
        return cls(**{**values, "conv_layers": conv_layers(values.get("conv_layers", BASE_CONV))})


_CHOICES = {name: get_args(kind) for name, kind in get_type_hints(EncoderShape).items() if get_origin(kind) is Literal}


def conv_layers(layers: Sequence[Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    """Check and freeze a list of (channels, kernel, stride)."""
    frozen = tuple(tuple(int(value) for value in layer) for layer in layers)
    if any(len(layer) != 3 or min(layer) < 1 for layer in frozen):
        raise ValueError(f"conv_layers needs (channels, kernel, stride) triples of positive numbers, not {layers}")
    return frozen  # type: ignore[return-value]


HUBERT_BASE = EncoderShape()
HUBERT_LARGE = EncoderShape(
    conv_norm="layer", width=1024, layers=24, ffn_width=4096, heads=16, pre_norm=True, normalize=True
)
WAV2VEC2_LARGE_LV60 = HUBERT_LARGE.with_(conv_bias=True)
"""wav2vec 2.0 Large on Libri-Light, XLSR-53, XLS-R 300M."""
DATA2VEC_BASE = HUBERT_BASE.with_(conv_norm="layer", normalize=True, pos_conv_kernel=19, pos_conv_depth=5)
DATA2VEC_LARGE = DATA2VEC_BASE.with_(width=1024, layers=24, ffn_width=4096, heads=16)
WAVLM_BASE = HUBERT_BASE.with_(attention="gated_relative")
WAVLM_LARGE = HUBERT_LARGE.with_(attention="gated_relative")
DISTILHUBERT = HUBERT_BASE.with_(layers=2, feature_norm=False)
"""The student of the paper: 23,491,200 parameters without heads."""
