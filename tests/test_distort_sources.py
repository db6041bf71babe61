"""Noise and room responses: every layout finds its files, crops and loops are right, mistakes show before training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ekd.config import AdditiveConfig, DistortionConfig, NonAdditiveConfig
from s3prl_ekd.data import sources
from s3prl_ekd.data.distort import Distorter
from s3prl_ekd.data.sources import AudioPool, list_files
from s3prl_ekd.errors import EkdError


def write(file: Path, seconds: float = 0.1, rate: int = 16_000, channels: int = 1) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(-0.5, 0.5, int(seconds * rate))
    soundfile.write(file, np.stack([ramp * (1 - 2 * c) for c in range(channels)], axis=1), rate, subtype="FLOAT")
    return file


def found(source: Path, kind: str) -> set[str]:
    return {str(Path(file).relative_to(source)) for file in list_files(str(source), kind, "key")}


def test_musan(tmp_path: Path) -> None:
    names = {"music/fma/music-fma-0000.wav", "noise/free-sound/noise-free-sound-0000.wav", "speech/us-gov/speech-0.wav"}
    for name in names:
        write(tmp_path / name)
    (tmp_path / "music" / "fma" / "ANNOTATIONS").write_text("not audio")
    assert found(tmp_path, "noise") == names
    assert found(tmp_path / "noise", "noise") == {"free-sound/noise-free-sound-0000.wav"}


def test_wham_gives_its_training_part(tmp_path: Path) -> None:
    for part in ("tr", "cv", "tt"):
        write(tmp_path / part / f"{part}.wav")
    assert found(tmp_path, "noise") == {"tr/tr.wav"}
    assert found(tmp_path / "cv", "noise") == {"cv.wav"}
    write(tmp_path / "songs" / "tr" / "a.wav")  # a folder that happens to be called so
    write(tmp_path / "songs" / "b.wav")
    assert found(tmp_path / "songs", "noise") == {"tr/a.wav", "b.wav"}


def test_rirs_noises_gives_rooms_or_noise(tmp_path: Path) -> None:
    rooms = {"simulated_rirs/smallroom/Room001/Room001-00001.wav", "real_rirs_isotropic_noises/RVB2014_type1_rir_a.wav"}
    noises = {"pointsource_noises/noise-free-sound-0000.wav", "real_rirs_isotropic_noises/RVB2014_type1_noise_a.wav"}
    for name in rooms | noises:
        write(tmp_path / name)
    assert found(tmp_path, "rir") == rooms
    assert found(tmp_path, "noise") == noises
    assert found(tmp_path / "simulated_rirs", "rir") == {"smallroom/Room001/Room001-00001.wav"}
    shutil.rmtree(tmp_path / "simulated_rirs")  # not unpacked
    assert found(tmp_path, "rir") == {"real_rirs_isotropic_noises/RVB2014_type1_rir_a.wav"}
    assert found(tmp_path, "noise") == noises


@pytest.mark.parametrize("separator, name", [("\t", "manifest.tsv"), (",", "list.csv")])
def test_tables_with_and_without_kind(tmp_path: Path, separator: str, name: str) -> None:
    """Paths start from the table's folder or from the one above; a folder with a manifest.tsv follows it."""
    folder = tmp_path / "noise"
    write(folder / "a.wav"), write(folder / "b.wav"), write(folder / "unlisted.wav")
    rows = [("path", "kind", "label"), ("noise/a.wav", "noise", "dog"), ("b.wav", "rir", "hall")]
    (folder / name).write_text("\n".join(separator.join(row) for row in rows) + "\n")
    source = folder if name == "manifest.tsv" else folder / name
    assert [Path(file).name for file in list_files(str(source), "noise", "key")] == ["a.wav"]
    assert [Path(file).name for file in list_files(str(source), "rir", "key")] == ["b.wav"]
    (folder / name).write_text(f"file_path{separator}length\na.wav{separator}1\nb.wav{separator}2\n")
    assert len(list_files(str(folder / name), "noise", "key")) == 2
    (folder / name).write_text(f"path{separator}kind\na.wav{separator}noise\nc.wav{separator}noise\n")
    with pytest.raises(EkdError, match="key: .*line 3: no file 'c.wav'"):
        list_files(str(source), "noise", "key")


def test_names_and_tables_of_other_systems(tmp_path: Path) -> None:
    """A name in Latin-1, as old corpora have; a table with a byte order mark, as Windows' editors make."""
    file = write(tmp_path / "noise" / "a.wav")
    name = os.fsencode(file.parent) + b"/caf\xe9.wav"
    os.rename(file, name)
    pool = AudioPool("noise", list_files(str(file.parent), "noise", "key")).check()
    assert len(pool.whole(0)) == len(pool.segment(0, 1_600, 0.0)) == 1_600
    os.rename(name, file)
    (file.parent / "manifest.tsv").write_text("path\na.wav\n", encoding="utf-8-sig")
    assert list_files(str(file.parent), "noise", "key") == [str(file)]


def test_one_file_and_order(tmp_path: Path) -> None:
    files = [str(write(tmp_path / name)) for name in ("b/1.wav", "a/2.flac.wav", "c.WAV")]
    assert list_files(files[0], "noise", "key") == [files[0]]
    assert list_files(str(tmp_path), "noise", "key") == sorted(files)


@pytest.mark.parametrize("cached", [True, False])
def test_segments_are_crops_of_longer_and_loops_of_shorter_files(
    tmp_path: Path, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_CACHE_SAMPLES", 10**9 if cached else 2_000)
    files = [str(write(tmp_path / "long.wav", 2.0)), str(write(tmp_path / "short.wav", 0.1))]
    pool = AudioPool("x", files).check()
    whole = soundfile.read(files[0], dtype="float32")[0]
    for where, start in ((0.0, 0), (0.5, 14_000), (0.999999, 28_000)):
        assert np.array_equal(pool.segment(0, 4_000, where), whole[start : start + 4_000])
    short = soundfile.read(files[1], dtype="float32")[0]  # 1,600 samples
    looped = pool.segment(1, 5_000, 0.25)
    assert np.array_equal(looped, np.tile(short, 5)[400:5_400])
    assert [pool.index(share) for share in (0.0, 0.49, 0.5, 0.999999)] == [0, 0, 1, 1]


def test_the_cache_is_bounded_and_never_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_CACHE_SAMPLES", 5_000)
    pool = AudioPool("x", [str(write(tmp_path / f"{i}.wav")) for i in range(8)]).check()
    first = [pool.whole(i).copy() for i in range(8)]
    assert pool._cached_samples == sum(len(wave) for wave in pool._cache.values()) <= 5_000
    assert all(np.array_equal(first[i], pool.whole(i)) for i in range(8))


def test_other_rates_and_microphone_arrays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A 48 kHz two-channel room response: converted, channel 0 (the mean of this one would be silent)."""
    write(tmp_path / "rooms" / "r.wav", 0.2, rate=48_000, channels=2)
    config = DistortionConfig(non_additive=NonAdditiveConfig(reverb=[str(tmp_path / "rooms")]))
    rooms = Distorter(config, "mine.yaml").rooms
    assert rooms is not None
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    key = "mine.yaml: distortion.non_additive.reverb"
    assert said.startswith(f"[distortion] {key}: {tmp_path / 'rooms' / 'r.wav'} is at 48000 Hz") and "16000" in said
    response = rooms.whole(0)
    assert len(response) == 3_200 and response.dtype == np.float32
    assert np.abs(response - np.linspace(-0.5, 0.5, 3_200))[100:-100].max() < 1e-3


def test_mistakes_are_one_line_with_key_and_file(tmp_path: Path) -> None:
    good = write(tmp_path / "good" / "a.wav").parent
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken" / "b.wav"
    broken.parent.mkdir()
    broken.write_bytes(b"RIFF no audio")

    def message(**sections: object) -> str:
        with pytest.raises(EkdError) as caught:
            Distorter(DistortionConfig(**sections))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def noise(*folders: Path, **keys: object) -> str:
        return message(additive=AdditiveConfig(noise=[str(folder) for folder in folders], **keys))

    key = "config_model.yaml: distortion.additive.noise"
    assert noise(good, tmp_path / "none") == f"{key}[1]: no folder, table or audio file {tmp_path / 'none'}"
    for text in ("file,kind\na.wav,noise\n", "path\n", ""):
        (tmp_path / "table.csv").write_text(text)
        expected = f"{key}[0]: {tmp_path / 'table.csv'} has no rows with a column path or file_path"
        assert noise(tmp_path / "table.csv") == expected
    assert noise(tmp_path / "empty").startswith(f"{key}[0]: not one noise in {tmp_path / 'empty'}")
    assert noise(tmp_path / "broken") == f"{key}: {broken}: cannot be read as audio (Format not recognised)" or (
        noise(tmp_path / "broken").startswith(f"{key}: {broken}: cannot be read as audio")
    )
    room = message(non_additive=NonAdditiveConfig(reverb=[str(good), str(tmp_path / "empty")]))
    assert "distortion.non_additive.reverb[1]: not one room response in" in room
    assert "additive.weights: 'musan' is not among what is drawn" in noise(good, weights={"musan": 2.0})
    off = AdditiveConfig(gaussian=False, clean=False)
    assert "additive.weights: nothing to draw (every kind is off)" in message(additive=off)
    zero = NonAdditiveConfig(band_reject=False, weights={"pitch": 0.0, "clean": 0.0})
    assert "non_additive.weights: nothing to draw (pitch, clean)" in message(non_additive=zero)
