"""What a teacher's YAML file may say. Unknown keys and wrong types are errors that name the file and the key."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from s3prl_ekd.checked import Checked, check_values, read_yaml
from s3prl_ekd.config import DistortionConfig, MaskConfig
from s3prl_ekd.errors import EkdError
from s3prl_ekd.shape import EncoderShape

HOP = 320
"""Samples from one unit to the next: 20 ms."""
STAGE = "stage:"
"""``stage:NAME`` is the encoder that an earlier stage of the same file made."""
NOISE = "NOISE"
"""Stands for the command's --noise in a stage's distortion."""


class UnitSettings(Checked):
    """Where a codebook's units come from."""

    encoder: str | None = None
    """``stage:NAME`` or a source as in ``ekd.teachers``; null: MFCC with first and second differences."""
    layer: int = Field(default=0, ge=0)
    """Hidden state that is clustered."""
    clusters: int = Field(ge=2, le=32_767)
    """Number of units."""
    normalize: bool = False
    """Give each feature mean 0 and deviation 1 over its utterance first, so that clusters are of sounds and less of
    voices and microphones."""
    share: float = Field(default=0.2, gt=0, le=1)
    """Share of the utterances that k-means is fitted on."""


class MixSettings(Checked):
    """WavLM's utterance mixing (arXiv 2110.13900, section 3.3)."""

    probability: float = Field(default=0.2, ge=0, le=1)
    """Of a clip to have a part of another one added."""
    longest: float = Field(default=0.5, gt=0, le=1)
    """Longest part added, as a share of the clip."""
    ratio: list[float] = Field(default=[-5.0, 5.0], min_length=2, max_length=2)
    """Lowest and highest energy of the clip over that of the part, in dB."""


class StageSettings(Checked):
    """One run of masked prediction."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Folder of the stage."""
    units: list[UnitSettings] = Field(min_length=1)
    """The targets: one codebook, or several that are predicted side by side (HuBERT's cluster ensembles)."""
    start: str | None = None
    """Encoder to go on from: ``stage:NAME`` or a source; null: random weights."""
    steps: int = Field(ge=2)
    """Optimiser steps."""
    lr: float = Field(default=1e-3, gt=0)
    """Highest learning rate: linear warm-up, then linear decay to 0."""
    warmup: float = Field(default=0.08, gt=0, lt=1)
    """Share of the steps that warm up."""
    batch_seconds: float = Field(default=48.0, gt=0)
    """Audio a batch."""
    crop_seconds: float = Field(default=6.0, ge=0.25)
    """Longest crop; as the distillation's, a quarter of a second at least."""
    mask: MaskConfig = MaskConfig(probability=0.08, length=10)
    """Spans of frames hidden from the transformer."""
    heard_weight: float = Field(default=0.0, ge=0)
    """Weight in the loss of frames that are not hidden (HuBERT's 1 - alpha over alpha; its models have 0). What they
    teach is no more than to name a sound; from random weights that is the start of guessing one."""
    distortion: DistortionConfig | None = None
    """What the encoder hears instead of the clean clip; units are of the clean one."""
    mixing: MixSettings | None = None
    """Parts of other clips on top; units are of the clip alone."""


class TeacherSettings(Checked):
    """One teacher: its shape and the stages that train it; the last stage's encoder is the teacher."""

    summary: str
    """One sentence for the model card."""
    shape: dict[str, object]
    """Fields of :class:`EncoderShape`."""
    stages: list[StageSettings] = Field(min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of weights, masks, crops, mixing and k-means; distortions have ``distortion.seed``."""

    @property
    def encoder_shape(self) -> EncoderShape:
        """The shape as the encoder takes it, with the projection that every transformers folder has."""
        shape = EncoderShape.from_dict(dict(self.shape))
        return shape.with_(square_projection=shape.conv_layers[-1][0] == shape.width)


def read_settings(file: Path) -> TeacherSettings:
    """Read and check a teacher's file.

    Raises:
        EkdError: the file and the key, and what was expected.
    """
    settings: TeacherSettings = check_values(TeacherSettings, read_yaml(file), str(file))
    try:
        shape = settings.encoder_shape
    except (TypeError, ValueError) as error:
        raise EkdError(f"{file}: shape: {error}") from error
    if shape.hop != HOP:
        raise EkdError(f"{file}: shape.conv_layers: a frame every {shape.hop} samples; units are made every {HOP}")
    if shape.normalize:
        raise EkdError(f"{file}: shape.normalize: clips are not normalised in this trainer; expected false")
    known: set[str] = set()
    for index, stage in enumerate(settings.stages):
        sources = {f"units[{book}].encoder": units.encoder for book, units in enumerate(stage.units)}
        for key, source in (sources | {"start": stage.start}).items():
            if source is not None and source.startswith(STAGE) and source.removeprefix(STAGE) not in known:
                raise EkdError(f"{file}: stages[{index}].{key}: {source} is no earlier stage of this file")
        for book, units in enumerate(stage.units):
            if units.encoder is not None and units.encoder.startswith(STAGE) and units.layer > shape.layers:
                raise EkdError(f"{file}: stages[{index}].units[{book}].layer: {units.layer} > {shape.layers}")
        if stage.name in known:
            raise EkdError(f"{file}: stages[{index}].name: {stage.name} is there twice")
        known.add(stage.name)
    return settings
