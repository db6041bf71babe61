"""How distortions sound, in numbers: SNR, rooms, pitch and bands against numpy/scipy's own tools."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal

from s3prl_ekd.data.filters import band_taps, convolve, mel_to_hertz, reject_band, reverberate, room_taps
from s3prl_ekd.data.noise import add_at_snr, gaussian
from s3prl_ekd.data.pitch import pitch_shift

RATE, FRAME = 16_000, 320  # 20 ms


def voice(samples: int = 48_000, f0: float = 150.0) -> np.ndarray:
    """Harmonics under a syllable-like envelope with pauses."""
    time = np.arange(samples) / RATE
    tone = sum(np.sin(2 * np.pi * f0 * k * time + k) / k for k in range(1, 20))
    return (0.1 * tone * np.clip(np.sin(2 * np.pi * 3 * time), 0, 1) ** 2).astype(np.float32)


def room(samples: int = 8_000, direct: int = 700, decay: float = 0.1, seed: int = 0) -> np.ndarray:
    """Silence, a direct path, then exponentially decaying noise."""
    rng = np.random.default_rng(seed)
    tail = 0.3 * rng.standard_normal(samples) * np.exp(-np.arange(samples) / (decay * RATE))
    return np.concatenate([np.zeros(direct), [-1.0], tail.clip(-0.9, 0.9)]).astype(np.float32)


def snr(clean: np.ndarray, mixed: np.ndarray) -> float:
    clean, mixed = clean.astype(np.float64), mixed.astype(np.float64)
    return 10 * np.log10((clean**2).sum() / ((mixed - clean) ** 2).sum())


@pytest.mark.parametrize("level", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("wanted", [-5, 0, 10, 15, 19, 40])
def test_the_measured_snr_is_the_drawn_one(wanted: int, level: float) -> None:
    clip = level * voice() / np.abs(voice()).max()
    for noise in (gaussian(len(clip), 1), room(len(clip) - 701), np.full(len(clip), 0.2, dtype=np.float32)):
        mixed = add_at_snr(clip, noise, wanted)
        assert mixed.dtype == np.float32 and snr(clip, mixed) == pytest.approx(wanted, abs=0.01)


def test_silence_comes_back_unchanged_and_without_nan() -> None:
    silent, clip = np.zeros(RATE, dtype=np.float32), voice(RATE)
    assert np.array_equal(add_at_snr(silent, clip, 10), silent)
    assert np.array_equal(add_at_snr(clip, silent, 10), clip)
    for distorted in (reverberate(silent, room_taps(room())), pitch_shift(silent, 300), reject_band(silent, 500, 900)):
        assert not distorted.any() and np.isfinite(distorted).all()
    assert room_taps(silent).tolist() == [1.0]


def test_nothing_is_written_to() -> None:
    clip = voice(RATE)
    clip.flags.writeable = False
    add_at_snr(clip, gaussian(RATE, 0), 10)
    reverberate(clip, room_taps(room()))
    pitch_shift(clip, -250)
    reject_band(clip, 1_000, 1_200)


def test_gaussian_noise_is_gaussian_and_a_longer_one_begins_like_a_shorter_one() -> None:
    noise = gaussian(100_000, 3)
    assert abs(noise.mean()) < 0.02 and noise.std() == pytest.approx(1, abs=0.02)
    assert np.mean(noise**4) == pytest.approx(3, abs=0.1) and np.abs(noise).max() > 4  # as heavy in its tails as it is
    white = [np.dot(noise[:-lag], noise[lag:]) / len(noise) for lag in range(1, 33)]
    assert np.abs(white).max() < 0.02  # 5 standard deviations are 0.016
    for samples in (0, 1, 15, 16, 17, 1_000, 1_001, 99_999):
        assert np.array_equal(gaussian(samples, 3), noise[:samples])
    assert not np.array_equal(gaussian(1_000, 4), noise[:1_000])
    assert noise.dtype == np.float32


@pytest.mark.parametrize("samples", [1, 300, 8_191, 100_001])
@pytest.mark.parametrize("taps", [1, 2, 1_025, 30_000])
def test_convolution_is_scipys(samples: int, taps: int) -> None:
    rng = np.random.default_rng(samples + taps)
    clip, filter_ = rng.standard_normal(samples, dtype=np.float32), rng.standard_normal(taps, dtype=np.float32)
    whole = signal.fftconvolve(clip.astype(np.float64), filter_)
    for delay in (0, taps // 2):
        found = convolve(clip, filter_, delay)
        assert found.shape == clip.shape and found.dtype == np.float32
        assert np.abs(found - whole[delay : delay + samples]).max() < 1e-5 * np.abs(whole).max() + 1e-6


@pytest.mark.parametrize("direct", [0, 40, 700, 5_000])
def test_reverb_keeps_an_impulse_in_its_frame(direct: int) -> None:
    """Whatever the distance to the microphone, the loudest sample stays where it was and nothing comes before it."""
    taps = room_taps(room(direct=direct))
    for place in (0, 319, 320, 10_000, 31_999):
        impulse = np.zeros(32_000, dtype=np.float32)
        impulse[place] = 1.0
        heard = reverberate(impulse, taps)
        assert len(heard) == len(impulse) and int(np.abs(heard).argmax()) == place
        if place % FRAME == 0:  # later in a frame, most of a room's tail belongs to the next one
            energy = np.add.reduceat(heard**2, np.arange(0, 32_000, FRAME))
            assert energy.argmax() == place // FRAME
        assert heard[place] > 0 and np.abs(heard[:place]).max(initial=0) < 1e-4


def test_reverb_keeps_level_and_adds_the_rooms_tail() -> None:
    clip = voice()
    heard = reverberate(clip, room_taps(room(decay=0.2)))
    assert np.square(heard).mean() == pytest.approx(np.square(clip).mean(), rel=1e-4)
    pauses = np.abs(clip) < 1e-4
    assert np.square(heard[pauses]).mean() > 100 * np.square(clip[pauses]).mean()


def test_only_60_db_of_a_room_are_kept() -> None:
    response = room(samples=160_000, decay=0.05)
    taps = room_taps(response)
    full = (response[700:] / response[700]).astype(np.float64)
    assert len(taps) < len(full) / 3
    assert np.square(full[len(taps) :]).sum() < 1e-6 * np.square(full).sum()
    assert np.array_equal(taps, full[: len(taps)].astype(np.float32))


def peak_hertz(wave: np.ndarray) -> float:
    middle = wave[4_000:-4_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 2**20))
    return float(spectrum.argmax()) * RATE / 2**20


@pytest.mark.parametrize("cents", [-700, -500, -333, -50, 50, 100, 211, 500, 700])
@pytest.mark.parametrize("hertz", [110.0, 440.0, 3_000.0])
def test_a_tone_moves_by_the_drawn_cents(cents: int, hertz: float) -> None:
    tone = (0.3 * np.sin(2 * np.pi * hertz * np.arange(48_000) / RATE)).astype(np.float32)
    shifted = pitch_shift(tone, cents)
    assert shifted.shape == tone.shape and shifted.dtype == np.float32
    assert 1200 * np.log2(peak_hertz(shifted) / hertz) == pytest.approx(cents, abs=6)
    assert shifted.std() == pytest.approx(tone.std(), rel=1e-3)
    inner = signal.hilbert(shifted[6_000:-6_000].astype(np.float64))
    assert np.abs(inner).std() < 0.1 * np.abs(inner).mean()  # no beating: phases run on from frame to frame


@pytest.mark.parametrize("cents", [-500, -100, 100, 500])
def test_pitch_shift_keeps_time(cents: int) -> None:
    """Onsets of bursts stay within half a frame, and an impulse stays within its frame's length."""
    noise = gaussian(64_000, 0) * (np.sin(2 * np.pi * 2.3 * np.arange(64_000) / RATE) > 0.3)
    shifted = pitch_shift(noise, cents)
    smooth = np.hanning(400)
    before, after = (signal.fftconvolve(w.astype(np.float64) ** 2, smooth, "same") for w in (noise, shifted))
    lags = signal.correlate(after - after.mean(), before - before.mean(), "full", "fft")
    assert abs(int(lags.argmax()) - (len(noise) - 1)) < FRAME / 2
    for place in (5_000, 5_100, 5_200):
        impulse = np.zeros(10_000, dtype=np.float32)
        impulse[place] = 1.0
        energy = pitch_shift(impulse, cents).astype(np.float64) ** 2
        assert abs((energy * np.arange(10_000)).sum() / energy.sum() - place) < FRAME / 2


def test_no_alias_and_no_shift_of_less_than_a_cent() -> None:
    tone = (0.3 * np.sin(2 * np.pi * 7_500 * np.arange(32_000) / RATE)).astype(np.float32)
    tone += (0.3 * np.sin(2 * np.pi * 500 * np.arange(32_000) / RATE)).astype(np.float32)
    frequencies, density = signal.welch(pitch_shift(tone, 500), RATE, nperseg=4_096)
    strong = frequencies[density > 1e-4 * density.max()]
    assert strong.min() > 600 and strong.max() < 740  # 7.5 kHz would be 10 kHz: gone, not folded to 6 kHz
    assert pitch_shift(tone, 0) is tone


@pytest.mark.parametrize("samples", [1, 100, 4_000])
def test_short_clips(samples: int) -> None:
    clip = voice(samples) + 0.01
    for distorted in (pitch_shift(clip, 400), reverberate(clip, room_taps(room())), reject_band(clip, 1_000, 1_500)):
        assert distorted.shape == clip.shape and np.isfinite(distorted).all()


@pytest.mark.parametrize("low, high", [(300, 500), (1_000, 1_226), (4_000, 4_600), (7_500, 8_000)])
def test_the_band_is_gone_and_the_rest_untouched(low: float, high: float) -> None:
    clip = gaussian(160_000, 0)
    frequencies, before = signal.welch(clip, RATE, nperseg=4_096)
    _, after = signal.welch(reject_band(clip, low, high), RATE, nperseg=4_096)
    change = 10 * np.log10(after / before)
    inside = (frequencies > low + 60) & (frequencies < high - 60)
    outside = (frequencies < low - 60) | (frequencies > high + 60)
    assert change[inside].max() < -50
    assert np.abs(change[outside]).max() < 0.1


def test_band_rejection_moves_nothing() -> None:
    taps = band_taps(1_000, 1_300)
    assert np.allclose(taps, taps[::-1]) and int(taps.argmax()) == len(taps) // 2  # symmetric: zero phase
    impulse = np.zeros(10_000, dtype=np.float32)
    impulse[5_000] = 1.0
    assert int(np.abs(reject_band(impulse, 1_000, 1_300)).argmax()) == 5_000


def test_the_mel_scale_is_the_usual_one() -> None:
    librosa = pytest.importorskip("librosa")
    assert mel_to_hertz(1_500.0) == pytest.approx(float(librosa.mel_to_hz(1_500.0, htk=True)), rel=1e-6)
