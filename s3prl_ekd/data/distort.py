"""Which distortion each clip gets, and what teacher and student hear.

The recipe of the same authors' robust students (arXiv 2210.07978): one additive distortion, then one non-additive one,
each drawn from its own list with its own clean share. A draw is a function of (seed, epoch, clip) alone: not of
workers, nor of the other utterances of the batch, nor of how long the crop is. How a distortion sounds is in noise.py,
filters.py and pitch.py; which files there are, in sources.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.config import AdditiveConfig, DistortionConfig, NonAdditiveConfig
from s3prl_ekd.data.filters import hertz_to_mel, mel_to_hertz, reject_band, reverberate, room_taps
from s3prl_ekd.data.noise import add_at_snr, gaussian
from s3prl_ekd.data.pitch import pitch_shift
from s3prl_ekd.data.sources import AudioPool, Kind, list_files
from s3prl_ekd.errors import EkdError

logger = logging.getLogger(__name__)

CLEAN, GAUSSIAN, REVERB, PITCH, BAND_REJECT = "clean", "gaussian", "reverb", "pitch", "band_reject"
STUDENT, TEACHER = 0, 1  # the fourth number of a draw's seed: independent draws of one utterance in one epoch


@dataclass(frozen=True)
class Draw:
    """Everything random about one distorted clip; numbers that the chosen kinds do not need are drawn all the same."""

    additive: str
    """A noise source as the configuration lists it, "gaussian" or "clean"."""
    non_additive: str
    """"reverb", "pitch", "band_reject" or "clean"."""
    snr: int
    """In dB, of the additive distortion."""
    noise_file: float
    """In [0, 1): which file of the noise source."""
    noise_start: float
    """In [0, 1): where in that file."""
    noise_seed: int
    """Of the Gaussian noise."""
    room: float
    """In [0, 1): which room response."""
    cents: int
    """Pitch shift."""
    band: tuple[float, float]
    """Rejected band in Hz."""


class Distorter:
    """Draws distortions and applies them; one per run, copied into every worker.

    Args:
        config: the ``distortion`` section of config_model.yaml.
        file: its name, for messages.

    Raises:
        EkdError: a source does not exist, holds no audio or a file that cannot be read; a weight names no choice.
    """

    def __init__(self, config: DistortionConfig, file: str = "config_model.yaml") -> None:
        self.config = config
        key = f"{file}: distortion"
        first = self._first = config.additive or AdditiveConfig(gaussian=False, snr=[0, 0])
        second = self._second = config.non_additive or NonAdditiveConfig(pitch_cents=0, band_reject=False)
        noises = enumerate(first.noise)
        self.noises = {source: _pool([source], "noise", f"{key}.additive.noise", i) for i, source in noises}
        self.rooms = _pool(second.reverb, "rir", f"{key}.non_additive.reverb") if second.reverb else None
        choices = [*self.noises, *_on({GAUSSIAN: first.gaussian, CLEAN: first.clean})]
        self.additive = _shares(choices, first.weights, f"{key}.additive.weights")
        switches = {REVERB: bool(second.reverb), PITCH: second.pitch_cents > 0, BAND_REJECT: second.band_reject}
        choices = _on({**switches, CLEAN: second.clean})
        self.non_additive = _shares(choices, second.weights, f"{key}.non_additive.weights")
        for name, shares in (("additive", self.additive), ("non-additive", self.non_additive)):
            text = ", ".join(f"{choice} {share:.0%}" for choice, share in shares.items())
            logger.info("[distortion] %s: %s", name, text)

    def source_files(self) -> list[Path]:
        """Every file that noises and rooms are drawn from, in the order of the configuration."""
        pools = [*self.noises.values(), *([self.rooms] if self.rooms else [])]
        return [Path(file) for pool in pools for file in pool.files]

    def draw(self, epoch: int, item: int, role: int = STUDENT, window: int = 0) -> Draw:
        """The distortion of an utterance, or of one of its windows under a target cache.

        Args:
            epoch: pass over the data.
            item: row of the length table.
            role: STUDENT, or TEACHER for the second draw of ``setup: independent``.
            window: the sample that the window begins at; 0 where an epoch hears one crop of each utterance.
        """
        later = [window] if window else []  # none more for a crop: a zero at the end would be another draw
        rng = np.random.default_rng([self.config.seed, epoch, item, role, *later])
        (low, high), cents = self._first.snr, self._second.pitch_cents
        first, second, noise_file, noise_start, room, band_size, band_start = rng.random(7).tolist()
        top = hertz_to_mel(SAMPLE_RATE / 2)
        size = band_size * self._second.band_width * top
        start = band_start * (top - size)
        return Draw(
            additive=_pick(self.additive, first),
            non_additive=_pick(self.non_additive, second),
            snr=int(rng.integers(low, high + 1)),
            noise_file=noise_file,
            noise_start=noise_start,
            noise_seed=int(rng.integers(2**63)),
            room=room,
            cents=int(rng.integers(-cents, cents + 1)),
            band=(mel_to_hertz(start), mel_to_hertz(start + size)),
        )

    def apply(self, wave: np.ndarray, draw: Draw) -> np.ndarray:
        """The distorted clip: first the additive, then the non-additive distortion, as in the authors' code.

        Args:
            wave: (samples,) float32; not written to.

        Returns:
            (samples,) float32, ``wave`` itself when both are clean.

        Raises:
            AudioError: a noise or room response cannot be read.
        """
        if draw.additive == GAUSSIAN:
            wave = add_at_snr(wave, gaussian(len(wave), draw.noise_seed), draw.snr)
        elif draw.additive != CLEAN:
            pool = self.noises[draw.additive]
            noise = pool.segment(pool.index(draw.noise_file), len(wave), draw.noise_start)
            wave = add_at_snr(wave, noise, draw.snr)
        if draw.non_additive == REVERB and self.rooms is not None:
            wave = reverberate(wave, room_taps(self.rooms.whole(self.rooms.index(draw.room))))
        elif draw.non_additive == PITCH:
            wave = pitch_shift(wave, draw.cents)
        elif draw.non_additive == BAND_REJECT:
            wave = reject_band(wave, *draw.band)
        return wave

    def hear(self, wave: np.ndarray, epoch: int, item: int, window: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """What student and teacher hear of a clip: two (samples,) arrays, one and the same for ``setup: same``.

        The numbers are those of :meth:`draw`.

        Raises:
            AudioError: a noise or room response cannot be read.
        """
        student = self.apply(wave, self.draw(epoch, item, window=window))
        if self.config.setup == "clean_teacher":
            return student, wave
        if self.config.setup == "same":
            return student, student
        return student, self.apply(wave, self.draw(epoch, item, TEACHER, window))


def _pool(sources: list[str], kind: Kind, key: str, first: int = 0) -> AudioPool:
    """The files of a list's sources, or of a part of it that begins at ``first``."""
    files = [file for i, source in enumerate(sources, first) for file in list_files(source, kind, f"{key}[{i}]")]
    name = sources[0] if len(sources) == 1 else f"{len(sources)} folders of room responses"
    return AudioPool(name, files, key, first_channel=kind == "rir").check()


def _on(switches: Mapping[str, bool]) -> list[str]:
    return [name for name, on in switches.items() if on]


def _shares(choices: list[str], weights: Mapping[str, float], key: str) -> dict[str, float]:
    """Probability of each choice; a weight that is not given is 1."""
    unknown = [name for name in weights if name not in choices]
    if unknown:
        raise EkdError(f"{key}: {unknown[0]!r} is not among what is drawn: {', '.join(choices)}")
    values = [float(weights.get(name, 1.0)) for name in choices]
    if not sum(values):
        raise EkdError(f"{key}: nothing to draw ({', '.join(choices) or 'every kind is off'}), not even clean")
    return {name: value / sum(values) for name, value in zip(choices, values, strict=True)}


def _pick(shares: dict[str, float], number: float) -> str:
    """The choice in whose part of [0, 1) a number lies."""
    for name, share in shares.items():
        number -= share
        if number < 0:
            return name
    return next(name for name in reversed(shares) if shares[name])  # rounding
