"""Batches: equal length, deterministic whatever the workers, resumable; audio converted, bad files survived."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset

from s3prl_ekd.audio import AUDIO_SUFFIXES, AudioError, audio_below, audio_info, find_audio, read_audio
from s3prl_ekd.config import DataConfig
from s3prl_ekd.data import batches
from s3prl_ekd.data.batches import Batch, CropDataset, make_loader
from s3prl_ekd.data.lengths import LengthTable, read_lengths
from s3prl_ekd.data.plan import BatchPlan, BatchSpec
from s3prl_ekd.data.rows import Rows
from s3prl_ekd.errors import EkdError

SAMPLES = np.random.default_rng(0).integers(8_000, 200_000, 103)


def write_corpus(folder: Path, clips: int = 11) -> DataConfig:
    rows = []
    for i in range(clips):
        wave = np.full(16_000 + 1_000 * i, (i + 1) / 100, dtype=np.float32)  # a constant says which file it was
        soundfile.write(folder / f"{i}.wav", wave, 16_000, subtype="FLOAT")
        rows.append(f"{i},{i}.wav,{len(wave)},")
    (folder / "train.csv").write_text(",file_path,length,label\n" + "\n".join(rows) + "\n")
    return DataConfig(num_workers=0, train_batch_size=4, libri_root=str(folder), file_path=str(folder), sets=["train"])


def test_the_loader_counts_the_time_it_is_waited_for_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a batch takes 2 s of, and the step on it 10 s."""
    now = [0.0]
    monkeypatch.setattr(batches, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    config = write_corpus(tmp_path)
    loader, plan = make_loader(read_lengths(config), config, 0)
    read = CropDataset.__getitem__

    def timed(dataset: CropDataset, spec: BatchSpec) -> Batch:
        now[0] += 2.0
        return read(dataset, spec)

    monkeypatch.setattr(CropDataset, "__getitem__", timed)
    for number, _ in enumerate(loader, start=1):
        now[0] += 10.0
        assert loader.waited == 2.0 * number
    assert number == len(plan) == 3


def test_each_epoch_has_every_utterance_once_in_a_new_order() -> None:
    plan = BatchPlan(SAMPLES, batch_size=8)
    first, second = list(plan), list(plan)
    for epoch in (first, second):
        assert sorted(item for spec in epoch for item in spec.items) == list(range(103))
    assert [spec.items for spec in first] != [spec.items for spec in second]
    company = [{frozenset(spec.items) for spec in epoch} for epoch in (first, second)]
    assert len(company[0] & company[1]) < 3  # new neighbours too, and not the same batches in another order
    assert len(plan) == len(first) == 13


def test_long_batches_come_all_through_an_epoch() -> None:
    lengths = [spec.samples for spec in BatchPlan(np.tile(SAMPLES, 10), batch_size=2)]
    assert abs(np.corrcoef(lengths, range(len(lengths)))[0, 1]) < 0.1


def test_crops_come_from_all_over_their_files_and_others_in_each_epoch() -> None:
    plan = BatchPlan(np.full(400, 100_000), batch_size=8, sequence_length=50_000)
    first, second = ({i: s for spec in plan for i, s in zip(spec.items, spec.starts, strict=True)} for _ in range(2))
    shares = np.histogram(list(first.values()), bins=4, range=(0, 50_000))[0] / 400
    assert shares.min() > 0.2
    assert sum(first[item] == second[item] for item in range(400)) < 5


def test_crops_are_equal_length_inside_their_files_and_no_longer_than_asked() -> None:
    for spec in BatchPlan(SAMPLES, batch_size=8, sequence_length=50_000):
        shortest = min(50_000, SAMPLES[list(spec.items)].min())
        assert shortest - 3_200 < spec.samples <= shortest
        for item, start in zip(spec.items, spec.starts, strict=True):
            assert 0 <= start <= SAMPLES[item] - spec.samples


def test_there_are_few_lengths_and_the_longest_crop_is_kept() -> None:
    samples = np.random.default_rng(1).integers(4_000, 400_000, 3_000)
    lengths = {spec.samples for spec in BatchPlan(samples, batch_size=2, sequence_length=250_000)}
    assert 250_000 in lengths
    assert len(lengths) <= 250_000 // 3_200 + 16_000 // 320


def test_cropping_loses_little_audio() -> None:
    """Batches gather like lengths, so cutting to the shortest keeps most of the audio."""
    plan = BatchPlan(np.random.default_rng(0).integers(16_000, 250_000, 5_000), batch_size=24)
    kept = sum(spec.samples * len(spec.items) for spec in plan)
    assert kept > 0.9 * plan.samples.sum()


def test_a_seconds_budget_is_filled_and_never_exceeded() -> None:
    budget = 40.0
    specs = list(BatchPlan(SAMPLES, batch_size=1, batch_seconds=budget))
    seconds = [spec.samples * len(spec.items) / 16_000 for spec in specs]
    assert max(seconds) <= budget
    assert np.mean(seconds) > 0.75 * budget
    assert sorted(item for spec in specs for item in spec.items) == list(range(103))


def test_a_clip_beyond_the_seconds_budget_is_a_batch_of_its_own() -> None:
    specs = list(BatchPlan(np.array([160_000, 80_000, 64_000]), batch_size=1, batch_seconds=2.0))
    assert sorted(spec.items for spec in specs) == [(0,), (1,), (2,)]


def test_batches_of_a_length_have_one_size_under_a_seconds_budget() -> None:
    """But the last of an epoch. Every new pair of size and length costs a GPU its choice of kernels."""
    samples = np.random.default_rng(0).integers(16_000, 250_000, 5_000)
    plan = BatchPlan(samples, batch_size=1, batch_seconds=100.0, sequence_length=200_000)
    sizes: dict[int, list[int]] = {}
    for spec in (spec for _ in range(3) for spec in plan):
        sizes.setdefault(spec.samples, []).append(len(spec.items))
    full = {length: int(100 * 16_000 // length) for length in sizes}
    others = [size for length, found in sizes.items() for size in found if size != full[length]]
    assert len(others) <= 3


def test_resuming_gives_the_batches_that_would_have_come() -> None:
    whole = [spec for plan in [BatchPlan(SAMPLES, 8, seed=3)] for _ in range(2) for spec in plan]
    for stop in (0, 5, 12, 13, 20):
        resumed = BatchPlan(SAMPLES, 8, seed=3)
        resumed.resume_after(whole[stop].epoch, whole[stop].index)
        rest = [*resumed, *resumed][: len(whole) - stop - 1]
        assert rest == whole[stop + 1 :]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_change_what_is_read(tmp_path: Path, workers: int) -> None:
    config = write_corpus(tmp_path).model_copy(update={"num_workers": workers})
    loader, _ = make_loader(read_lengths(config), config, sequence_length=12_000)
    found = [(batch.epoch, batch.index, batch.wave) for _ in range(2) for batch in loader]
    specs = [
        spec for plan in [BatchPlan(read_lengths(config).samples, 4, None, 12_000)] for _ in range(2) for spec in plan
    ]
    assert [(epoch, index) for epoch, index, _ in found] == [(spec.epoch, spec.index) for spec in specs]
    for (_, _, wave), spec in zip(found, specs, strict=True):
        assert wave.shape == (len(spec.items), spec.samples)
        assert [round(float(value) * 100) - 1 for value in wave[:, 0]] == list(spec.items)


def test_no_more_workers_are_started_than_there_are_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3prl_ekd.data.batches.usable_cpus", lambda: 1)
    config = write_corpus(tmp_path, clips=4)
    for asked, started in ((0, 0), (1, 1), (8, 1)):
        loader, _ = make_loader(read_lengths(config), config.model_copy(update={"num_workers": asked}), 12_000)
        assert loader.num_workers == started


def test_a_file_that_breaks_during_training_is_skipped_and_named(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, clips=4)
    table = read_lengths(config)
    (tmp_path / "2.wav").write_bytes(b"not audio")
    plan = BatchPlan(table.samples, 4)
    batch = CropDataset(table, plan)[next(iter(plan))]
    assert batch.wave.shape[0] == batch.clips == 3 and batch.teacher_wave is batch.wave
    assert batch.seconds == 3 * batch.wave.shape[1] / 16_000
    assert len(batch.skipped) == 1 and "2.wav" in batch.skipped[0]
    for i in range(4):
        (tmp_path / f"{i}.wav").write_bytes(b"")
    spec = next(iter(plan))
    batch = CropDataset(table, plan)[spec]
    assert batch.is_placeholder and batch.clips == 0 and len(batch.skipped) == 4
    assert batch.wave.shape == (1, spec.samples) and not batch.wave.any()


def test_a_clip_that_its_csv_makes_longer_is_left_out_but_for_a_frame(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, clips=3)
    table = read_lengths(config)
    dataset = CropDataset(table, BatchPlan(table.samples, 1))
    for samples, kept in ((16_000, True), (16_320, True), (16_321, False)):  # of the 16,000 of 0.wav
        batch = dataset[BatchSpec(0, 0, (0,), (0,), samples)]
        assert batch.wave.shape == (1, samples) and batch.is_placeholder is not kept
        assert torch.equal(batch.wave[0, :16_000], torch.full((16_000,), 0.01 if kept else 0.0))
        assert not batch.wave[0, 16_000:].any()
        assert [text.rpartition("/")[2] for text in batch.skipped] == (
            [] if kept else ["0.wav: shorter than its length CSV says"]
        )
    batch = dataset[BatchSpec(0, 0, (1, 0, 2), (0, 0, 0), 17_000)]  # the others of its batch are there
    assert batch.clips == 2 and batch.wave[:, 0].tolist() == pytest.approx([0.02, 0.03])


def test_stereo_and_other_rates_are_converted(tmp_path: Path) -> None:
    time = np.arange(44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone, 0.5 * tone], axis=1), 44_100)
    assert audio_info(tmp_path / "stereo.wav").samples == 16_000
    wave = read_audio(tmp_path / "stereo.wav")
    expected = 0.75 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert wave.shape == (16_000,) and wave.dtype == np.float32
    assert np.abs(wave - expected)[200:-200].max() < 5e-3
    crop = read_audio(tmp_path / "stereo.wav", start=4_000, samples=2_000)
    assert len(crop) == 2_000 and np.abs(crop - expected[4_000:6_000])[200:-200].max() < 5e-3


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("name", "subtype"), [
    ("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.wav", "PCM_U8"), ("a.flac", "PCM_16"),
])  # fmt: skip
def test_samples_are_libsndfiles_own_to_the_bit(tmp_path: Path, name: str, subtype: str, channels: int) -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, (5_000, channels))
    wave[0], wave[1] = 1.0, -1.0
    soundfile.write(tmp_path / name, wave, 16_000, subtype=subtype)
    expected = soundfile.read(tmp_path / name, dtype="float32", always_2d=True)[0].mean(axis=1)
    assert np.array_equal(read_audio(tmp_path / name), expected)
    assert np.array_equal(read_audio(tmp_path / name, 0, 3_000), expected[:3_000])
    assert np.array_equal(read_audio(tmp_path / name, 777, 3_000), expected[777:3_777])
    assert np.array_equal(read_audio(tmp_path / name, 4_000, 3_000), expected[4_000:])
    with pytest.raises(AudioError, match="ends before the part asked for"):
        read_audio(tmp_path / name, 5_000, 10)


def test_rows_are_the_clips_one_below_the_other() -> None:
    clips = [np.random.default_rng(i).standard_normal(100).astype(np.float32) for i in range(3)]
    rows = Rows(5, 100)
    assert not rows and rows.tensor().shape == (0, 100)
    for clip in clips:
        rows.append(clip)
    assert len(rows) == 3 and np.array_equal(rows.tensor().numpy(), np.stack(clips))
    with pytest.raises(RuntimeError):
        rows.append(np.zeros(99, dtype=np.float32))


class _Shared(Dataset[tuple[bool, torch.Tensor]]):
    """In a worker: whether the rows lay in shared memory before they were sent."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[bool, torch.Tensor]:
        rows = Rows(4, 50)
        rows.append(np.full(50, index, dtype=np.float32))
        return rows.tensor().is_shared(), rows.tensor()


def test_a_workers_rows_are_in_shared_memory_from_the_start() -> None:
    for index, (shared, tensor) in enumerate(DataLoader(_Shared(), batch_size=None, num_workers=1)):
        assert shared and torch.equal(tensor, torch.full((1, 50), float(index)))


def test_without_room_in_shared_memory_the_key_is_named(
    tmp_path: Path, worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where Docker gives 64 MB. torch would say so in a thread, and the main process would wait for ever."""
    table = read_lengths(write_corpus(tmp_path))
    plan = BatchPlan(table.samples, 4)
    dataset, spec = CropDataset(table, plan), next(iter(plan))

    def full(size: int) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: Success (0)")

    for paths in (table.paths, ["gone"] * len(table.paths)):  # clips, and what stands in for them
        dataset.table = LengthTable(paths, table.samples)
        assert dataset[spec].wave.is_shared()
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", full)
    for paths in (table.paths, ["gone"] * len(table.paths)):
        dataset.table = LengthTable(paths, table.samples)
        with pytest.raises(EkdError, match=r"datarc.num_workers: no shared memory for 0\.. MiB of a batch.*shm-size"):
            dataset[spec]


def test_every_format_that_is_looked_for_is_read(tmp_path: Path) -> None:
    """As real files have it, by its name: in upper case too."""
    forms = {"flac": "FLAC", "wav": "WAV", "ogg": "OGG", "opus": "OGG", "mp3": "MP3", "aiff": "AIFF", "aif": "AIFF"}
    assert {f".{suffix}" for suffix in forms} == AUDIO_SUFFIXES
    clip = 0.3 * np.sin(np.arange(16_000) / 5)
    for index, (suffix, form) in enumerate(forms.items()):
        name = f"clip.{suffix if index % 2 else suffix.upper()}"
        (tmp_path / str(index)).mkdir()
        soundfile.write(tmp_path / str(index) / name, clip, 16_000, "OPUS" if suffix == "opus" else None, format=form)
    found = find_audio(tmp_path)
    assert len(found) == len(forms)
    for file in found:
        wave = read_audio(file, samples=12_000)
        assert wave.shape == (12_000,) and wave.dtype == np.float32
        assert abs(float(np.abs(wave).max()) - 0.3) < 0.1, file


def test_unreadable_audio_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.flac").write_bytes(b"")
    (tmp_path / "corrupt.flac").write_bytes(b"fLaC" + b"\0" * 100)
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), 16_000)
    for name, reason in (("empty.flac", "empty"), ("corrupt.flac", "cannot be read"), ("none.flac", "no such"),
                         ("silent.wav", "no samples")):  # fmt: skip
        for read in (audio_info, read_audio):
            with pytest.raises(AudioError, match=rf"{name}.*{reason}"):
                read(tmp_path / name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_sample_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    """A float file may hold it; it would make every weight NaN."""
    for rate in (16_000, 8_000):
        wave = np.zeros(2_000, dtype=np.float32)
        wave[1_000] = value
        soundfile.write(tmp_path / "x.wav", wave, rate, subtype="FLOAT")
        with pytest.raises(AudioError, match="x.wav: the audio file holds NaN or infinite samples"):
            read_audio(tmp_path / "x.wav")


def test_links_between_folders_are_followed_once(tmp_path: Path) -> None:
    """Back up, and a second way to a folder: each file once, by the way without a link."""
    root = tmp_path / "root"
    for name in ("root/b/1.wav", "root/c/2.wav", "elsewhere/3.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in (("b/up", root), ("a", root / "b"), ("c/other", tmp_path / "elsewhere")):
        (root / link).symlink_to(target)
    assert audio_below(root) == [root / "b" / "1.wav", root / "c" / "2.wav", root / "c" / "other" / "3.wav"]


def test_missing_tables_and_audio_are_named_before_training(tmp_path: Path) -> None:
    config = write_corpus(tmp_path)

    def message(**changes: object) -> str:
        with pytest.raises(EkdError) as caught:
            read_lengths(config.model_copy(update=changes))
        return str(caught.value)

    assert "datarc.file_path: no folder" in message(file_path=str(tmp_path / "no"))
    assert "datarc.libri_root: no folder" in message(libri_root=str(tmp_path / "no"))
    assert "train.csv" not in message(sets=["dev"]) and "dev.csv" in message(sets=["dev"])
    assert "are left out: under 0.25 s" in message(max_timestep=100)
    (tmp_path / "0.wav").unlink()
    assert "0.wav" in message()
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    assert "file_path and length" in message()
    for length in ("long", "inf", ""):
        (tmp_path / "train.csv").write_text(f",file_path,length,label\n0,1.wav,{length},\n")
        assert "line 2" in message()
    (tmp_path / "train.csv").write_text(",file_path,length,label\n0,1.wav,16000,\n1,,16000,\n")
    assert "line 3: file_path or length is missing or no number" in message()


def test_s3prls_length_filter(tmp_path: Path) -> None:
    config = write_corpus(tmp_path)
    with (tmp_path / "train.csv").open("a") as file:
        file.write("11,0.wav,3999,\n")  # under 0.25 s, which no filter of s3prl's asks for
    assert len(read_lengths(config).paths) == 11
    assert read_lengths(config.model_copy(update={"max_timestep": 20_000})).samples.max() < 20_000
    assert read_lengths(config.model_copy(update={"max_timestep": -20_000})).samples.min() > 20_000
    assert isinstance(read_lengths(config), LengthTable)
