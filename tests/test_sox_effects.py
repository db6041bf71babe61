"""torchaudio.sox_effects without SoX: the numbers are those of SoX itself, by torchaudio 2.0.2 and 2.8.0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sox_signal import bursts

from s3prl_ekd.audio import AudioError
from s3prl_ekd.compat.sox_effects import apply_effects_file, apply_effects_tensor
from s3prl_ekd.errors import EkdError

ASV = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"], ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]]


def _energy(wave: torch.Tensor) -> float:
    return float(wave.double().square().sum())


@pytest.mark.parametrize(
    ("effects", "samples", "energy", "values"),
    [  # the last: at 100, 5000, 15000 and 100 before the end
        (ASV, 40_952, 556.3845, (-0.209221, -0.036515, -0.036515, 0.0)),
        ([["silence", "1", "0.02", "5%", "-1", "0.3", "1%"]], 46_456, 1143.7866, (0.255792, -0.15675, -0.15675, 0.0)),
        (
            [["silence", "1", "0.2", "1%", "-1", "0.05", "2%"]],
            37_142,
            1002.089,
            (-0.260589, -0.148638, -0.148638, 0.029819),
        ),
    ],
)
def test_silence_is_left_out_as_by_sox(effects: list, samples: int, energy: float, values: tuple[float, ...]) -> None:
    wave, rate = apply_effects_tensor(torch.from_numpy(bursts()), 16_000, effects)
    assert (wave.shape, rate, wave.dtype) == ((1, samples), 16_000, torch.float32)
    assert _energy(wave) == pytest.approx(energy, rel=1e-6)
    assert wave[0, [100, 5000, 15_000, -100]].tolist() == pytest.approx(values, abs=2e-6)


@pytest.mark.parametrize(("rate", "energy"), [(8000, 1146.15), (22_050, 1146.127), (44_100, 1146.119)])
def test_another_rate_becomes_16_khz_as_by_sox(rate: int, energy: float) -> None:
    wave, found = apply_effects_tensor(torch.from_numpy(bursts(rate)), rate, [["rate", "16000"]])
    assert (wave.shape, found) == ((1, 66_720), 16_000)
    assert _energy(wave) == pytest.approx(energy, abs=2e-3)
    assert wave[0, 4100].item() == pytest.approx(-0.3, abs=2e-5)


@pytest.mark.parametrize(
    ("effect", "of_files", "of_floats"),
    [
        (
            ["gain", "-3.0"],
            [362, -362, 1087, -362468, 4474670, -7249365, 11876997],
            [1187736, -2375472, 3959120, 0, 0, 0, 8314151],
        ),
        (
            ["norm", "-1"],
            [456, -456, 1369, -456334, 5633448, -9126688, 14952709],
            [2136101, -4272203, 7120338, 0, -1, 0, 14952709],
        ),
        (
            ["channels", "1"],
            [512, -512, 1536, -512000, 6320640, -10240000, 16776704],
            [1677722, -3355443, 5592406, 0, 0, 0, 11744051],
        ),
    ],
)
def test_samples_are_rounded_as_by_sox(effect: list[str], of_files: list[int], of_floats: list[int]) -> None:
    of_16_bits = torch.tensor([[1, -1, 3, -1000, 12345, -20000, 32767]]) / 2**15
    floats = torch.tensor([[0.1, -0.2, 1 / 3, 1e-8, -3e-8, 5e-9, 0.7]])
    for given, expected in ((of_16_bits, of_files), (floats, of_floats)):
        wave, _ = apply_effects_tensor(given, 16_000, [effect])
        assert (wave.double() * 2**24).tolist() == [expected]


def test_channels_norm_pad_reverse_and_full_scale_as_by_sox() -> None:
    stereo = np.concatenate([bursts(), -0.5 * bursts()])
    effects = [["channels", "1"], ["norm", "-1"], ["pad", "0.1", "0.25"], ["reverse"]]
    wave, _ = apply_effects_tensor(torch.from_numpy(stereo), 16_000, effects)
    assert wave.shape == (1, 72_320)
    assert wave[0, [3999, 4000, 6000, 20_000]].tolist() == pytest.approx([0, 0, -0.882359, -0.44118], abs=2e-6)
    assert wave.abs().max().item() == pytest.approx(0.8912509, abs=1e-6)

    loud, _ = apply_effects_tensor(torch.from_numpy(bursts()), 16_000, [["gain", "20"], ["gain", "-6"]])
    assert loud.abs().max().item() == pytest.approx(0.5011872, abs=1e-6)  # cut off at 1 in between


def test_nothing_but_silence_leaves_nothing_and_no_silence_leaves_all() -> None:
    quiet = torch.zeros(1, 8000)
    assert apply_effects_tensor(quiet, 16_000, ASV)[0].shape == (1, 0)
    assert torch.equal(apply_effects_tensor(quiet, 16_000, [["norm"]])[0], quiet)
    tone = torch.from_numpy(bursts()[:, 5000:15_000])
    assert apply_effects_tensor(tone, 16_000, ASV[3:])[0].shape[1] == pytest.approx(10_000, abs=2)


def test_a_file_is_read_by_the_same_functions(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", bursts(8000)[0], 8000, subtype="FLOAT")
    whole, rate = apply_effects_file(tmp_path / "a.wav", ASV)
    direct, _ = apply_effects_tensor(torch.from_numpy(bursts(8000)), 8000, ASV)
    assert rate == 16_000 and torch.equal(whole, direct)
    last, _ = apply_effects_file(tmp_path / "a.wav", ASV, channels_first=False)
    assert torch.equal(last, whole.T)
    with pytest.raises(AudioError, match=r"gone.wav: no such audio file"):
        apply_effects_file(tmp_path / "gone.wav", ASV)


@pytest.mark.parametrize(
    ("effect", "message"),
    [
        (["vad", "-T", "0.25"], "sox effects: 'vad' is not supported; there are channels, gain, norm"),
        (["gain", "-n"], "sox effects: gain -n: could not convert"),
        (["channels", "2"], "sox effects: channels 2: mixes to one channel only"),
        (["rate"], "sox effects: rate: .*missing 1 required"),
        (["silence", "1", "5", "2%"], "sox effects: silence 1 5 2%: "),
        (["silence", "1", "0.1", "-40d", "-1", "0.1", "0.1%"], "is supported as `1 DURATION THRESHOLD% -1"),
    ],
)
def test_what_is_not_here_is_said(effect: list[str], message: str) -> None:
    with pytest.raises(EkdError, match=message):
        apply_effects_tensor(torch.zeros(1, 1600), 16_000, [effect])
