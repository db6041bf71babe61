"""Parameters and multiply-accumulates of a model as the SUPERB challenge counts them, from its shape alone.

The challenge's profiler runs 32 LibriSpeech test-clean utterances one by one and adds up a formula per torch function;
MACs depend on their lengths only. A count of matrix products and convolutions alone stays 0.2 % below the leaderboard.
Each layer lacks exactly 4 T D + k H T^2 (T frames, D width, H heads; k = 4 for HuBERT Base, 3 for Large): taken to be
the biases of attention's four projections, softmax and scaling, and Base's attention dropout. Both numbers were read
off HuBERT's rows, and then give WavLM's to the last digit too (tests/test_macs.py).
What a folder of somebody else's code computes is counted by running it: ``folder.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from s3prl_ekd.shape import DISTILHUBERT, HUBERT_BASE, HUBERT_LARGE, WAVLM_BASE, WAVLM_LARGE, EncoderShape

# Samples at 16 kHz of the 32 utterances: every 82nd of test-clean's 2620, sorted by length (superb-challenge branch of
# B06901052/DeepSpeed, testing/s3prl_profiling_test.py)
LENGTHS = {
    "short": (20560, 34560, 38480, 42560, 45600, 48720, 52000, 55120),
    "medium": (59120, 62720, 66400, 71200, 75200, 78640, 82800, 87520),
    "long": (92720, 98560, 104400, 111120, 118480, 125040, 132720, 142640),
    "longer": (154000, 166720, 180880, 197920, 217920, 239280, 268160, 326000),
}

# k of the docstring. Large models are told by their norm before each block; they are trained without dropout there.
_PER_SCORE = 3
_PER_SCORE_DROPOUT = 4
_GATE_OUTPUTS = 8  # of WavLM's gate, a linear layer over each head's channels


@dataclass(frozen=True)
class Cost:
    """What the leaderboard shows beside a model's rank."""

    params: int
    """Parameters of the module, used or not."""
    buckets: dict[str, int]
    """MACs over the eight utterances of each bucket: short, medium, long, longer."""

    @property
    def macs(self) -> int:
        """MACs over all 32 utterances."""
        return sum(self.buckets.values())

    def to_dict(self) -> dict[str, int]:
        """``{"params", "macs", "short", "medium", "long", "longer"}``."""
        return {"params": self.params, "macs": self.macs, **self.buckets}


@dataclass(frozen=True)
class Preset:
    """A published model's shape; ``unused`` are parameters of its pre-training that stay in the module."""

    shape: EncoderShape
    heads: tuple[tuple[int, int], ...] = ()
    unused: int = 0

    def cost(self) -> Cost:
        """As the leaderboard counts it."""
        return cost(self.shape, self.heads, self.unused)


def _pretraining(width: int, final: int = 0) -> int:
    """Mask vector; and in HuBERT the projection to ``final`` channels with one vector for each of its 504 units."""
    return width + (width * final + final + 504 * final)


SHAPES = {
    "hubert_base": Preset(HUBERT_BASE, unused=_pretraining(768, 256)),
    "hubert_large": Preset(HUBERT_LARGE, unused=_pretraining(1024, 768)),
    "wavlm_base_plus": Preset(WAVLM_BASE, unused=_pretraining(768)),
    "distilhubert": Preset(DISTILHUBERT, heads=((3, 768),)),  # the leaderboard's row keeps its three heads
}
# Mask vector, quantizer (2 x 320 codes of 128), its projection and the final one: wav2vec 2.0 Base's pre-training
_WAV2VEC2 = 768 + 640 * 128 + (512 * 640 + 640) + (256 * 256 + 256) + (768 * 256 + 256)

# s3prl hub name -> what its checkpoint holds, where that is known without downloading it
HUB_SHAPES = {
    "hubert": SHAPES["hubert_base"],
    "hubert_base": SHAPES["hubert_base"],
    "hubert_large_ll60k": SHAPES["hubert_large"],
    "wavlm": SHAPES["wavlm_base_plus"],
    "wavlm_base": SHAPES["wavlm_base_plus"],
    "wavlm_base_plus": SHAPES["wavlm_base_plus"],
    "wavlm_large": Preset(WAVLM_LARGE, unused=_pretraining(1024)),
    "wav2vec2": Preset(HUBERT_BASE, unused=_WAV2VEC2),
    "wav2vec2_base_960": Preset(HUBERT_BASE, unused=_WAV2VEC2),
    "distilhubert": SHAPES["distilhubert"],
    "distilhubert_base": SHAPES["distilhubert"],
}


# The leaderboard's row of FBANK: no parameters, and MACs a frame, of which there is one every 10 ms of 25 ms
FBANK = Cost(
    params=0,
    buckets={name: sum(21_360 * ((n - 400) // 160 + 1) for n in lengths) for name, lengths in LENGTHS.items()},
)


def matrix_macs(shape: EncoderShape, samples: int, heads: Sequence[tuple[int, int]] = ()) -> int:
    """Multiply-accumulates of all convolutions and matrix products for one clip of ``samples`` samples.

    Args:
        heads: (number of heads, width of each prediction) per head set that is computed too.
    """
    total, channels, length = 0, 1, samples
    for width, kernel, stride in shape.conv_layers:
        length = (length - kernel) // stride + 1
        total += length * width * channels * kernel
        channels = width
    frames, width = shape.frames(samples), shape.width
    if shape.projected:
        total += frames * channels * width
    # an even kernel makes one frame more than it gets, which is thrown away after it was computed
    position_frames = frames + (shape.pos_conv_kernel % 2 == 0)
    position = position_frames * width * (width // shape.pos_conv_groups) * shape.pos_conv_kernel
    total += shape.pos_conv_depth * position
    layer = 4 * frames * width**2 + 2 * frames**2 * width + 2 * frames * width * shape.ffn_width
    if shape.attention == "gated_relative":
        layer += frames * width * _GATE_OUTPUTS
    total += shape.layers * layer
    total += sum(frames * width * count * (width + out) for count, out in heads)
    return total


def challenge_macs(shape: EncoderShape, samples: int, heads: Sequence[tuple[int, int]] = ()) -> int:
    """MACs of one clip as the challenge's profiler counts them."""
    frames = shape.frames(samples)
    per_score = _PER_SCORE if shape.pre_norm else _PER_SCORE_DROPOUT
    attention = 4 * frames * shape.width + per_score * shape.heads * frames**2
    return matrix_macs(shape, samples, heads) + shape.layers * attention


def cost(shape: EncoderShape, heads: Sequence[tuple[int, int]] = (), unused: int = 0) -> Cost:
    """Parameters and MACs of an encoder; ``heads`` as in :func:`matrix_macs`, ``unused`` parameters are added."""
    import torch  # this file has the names of --help, too

    from s3prl_ekd.model.encoder import Encoder, count_parameters

    with torch.device("meta"):  # no memory, no time: only sizes are asked for
        params = count_parameters(Encoder(shape)) + unused
    params += sum(
        shape.width * shape.width * count + shape.width * count + count * out * (shape.width + 1)
        for count, out in heads
    )
    return Cost(
        params, {name: sum(challenge_macs(shape, n, heads) for n in lengths) for name, lengths in LENGTHS.items()}
    )
