"""The ``distortion`` section of config_model.yaml as checked models: what is drawn, how often, how strong.

Whether the sources exist is checked by ``data/distort.py``, before training starts.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from s3prl_ekd.checked import Checked
from s3prl_ekd.spelling import repeated


class AdditiveConfig(Checked):
    """What is mixed in: one of its choices is drawn for each clip."""

    noise: list[str] = []
    """Folders, tables or files of noise; each is one choice (MUSAN, WHAM!)."""
    gaussian: bool = True
    """White noise is a choice."""
    clean: bool = True
    """Nothing is a choice."""
    snr: list[Annotated[int, Field(ge=-100, le=100)]] = Field(default=[10, 19], min_length=2, max_length=2)
    """Lowest and highest signal-to-noise ratio; a whole number of dB is drawn."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Weight of a choice in the draw (a noise source as listed, gaussian, clean); 1 where not given."""

    @model_validator(mode="after")
    def _ordered(self) -> AdditiveConfig:
        if self.snr[0] > self.snr[1]:
            raise ValueError(f"snr: {self.snr} must be [lowest, highest]")
        _check_distinct(self.noise)
        return self


class NonAdditiveConfig(Checked):
    """What happens to the clip after that: one of its choices is drawn for each clip."""

    reverb: list[str] = []
    """Folders, tables or files of room responses; all of them together are one choice."""
    pitch_cents: int = Field(default=500, ge=0, le=700)
    """Largest pitch shift up or down, in hundredths of a semitone; 0 takes it from the choices."""
    band_reject: bool = True
    """Rejection of a random band is a choice."""
    band_width: float = Field(default=0.053, gt=0, le=1)
    """Widest band, as a share of the mel scale from 0 to 8 kHz (the authors' 0.5 * 27 / 256)."""
    clean: bool = True
    """Nothing is a choice."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Weight of a choice in the draw (reverb, pitch, band_reject, clean); 1 where not given."""

    @model_validator(mode="after")
    def _distinct(self) -> NonAdditiveConfig:
        _check_distinct(self.reverb)
        return self


def _check_distinct(sources: list[str]) -> None:
    doubled = repeated(sources)
    if doubled is not None:
        raise ValueError(f"a source is listed twice: {doubled}")


class DistortionConfig(Checked):
    """Noise, rooms, pitch and band rejection for robust students (arXiv 2210.07978)."""

    setup: Literal["clean_teacher", "independent", "same"] = "clean_teacher"
    """Teachers hear clean and the student distorted clips; each hears its own distortion; both hear the same."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draws, which depend on (seed, epoch, clip) alone. Where the key is absent, `--seed` of
    run_pretrain.py sets it if it is given."""
    additive: AdditiveConfig | None = None
    """First distortion; absent is always clean."""
    non_additive: NonAdditiveConfig | None = None
    """Second distortion; absent is always clean."""
