"""The fixed windows of a target cache, and the batches made of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ekd.config import AdditiveConfig, DataConfig, DistortionConfig
from s3prl_ekd.data.batches import CropDataset
from s3prl_ekd.data.distort import Distorter, Draw
from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.data.plan import BatchPlan, BatchSpec
from s3prl_ekd.data.windows import WindowPlan, Windows, cut_windows, windows_a_batch

LONGEST = 100_000
SAMPLES = np.random.default_rng(0).integers(4_000, 330_000, 500)


def data(**changes: object) -> DataConfig:
    fixed = {"libri_root": "/", "file_path": "/", "sets": ["a"], "train_batch_size": 8}
    return DataConfig.model_validate(fixed | changes)


def plan(windows: Windows, **changes: object) -> WindowPlan:
    return WindowPlan(windows, data(**changes))


@pytest.mark.parametrize("longest", [0, LONGEST])
def test_windows_lie_apart_inside_their_files_on_frame_borders(longest: int) -> None:
    windows = cut_windows(SAMPLES, longest, 8, None)
    assert set(windows.items.tolist()) == set(range(len(SAMPLES)))
    assert (windows.starts % 320 == 0).all() and (windows.starts >= 0).all()
    ends = windows.starts + windows.samples
    assert (ends <= SAMPLES[windows.items]).all()
    if longest:
        assert windows.samples.max() == longest
    else:
        assert len(windows) == len(SAMPLES)
        assert len(set(windows.starts.tolist())) > 3  # what is cut off is cut at both ends, by chance
    same_file = windows.items[1:] == windows.items[:-1]
    assert (ends[:-1] <= windows.starts[1:])[same_file].all()


def test_a_long_file_becomes_whole_windows_and_its_rest_from_a_second_on() -> None:
    lengths = {}
    for seconds in (25.0, 20.5, 10.0, 0.5):  # of windows of 10 s; alone, so that no group shortens them
        windows = cut_windows(np.array([int(16_000 * seconds)]), 160_000, 1, None)
        lengths[seconds] = (windows.samples / 16_000).round(2).tolist()
    assert lengths == {25.0: [10, 10, 5], 20.5: [10, 10], 10.0: [10], 0.5: [0.5]}


@pytest.mark.parametrize("utterances", [10, 100, 1_000, 5_000])
def test_batches_are_full_and_little_audio_is_cut_off_whatever_the_size(utterances: int) -> None:
    samples = np.random.default_rng(1).integers(32_000, 250_000, utterances)
    batches = list(plan(cut_windows(samples, 250_000, 24, None), train_batch_size=24))
    assert np.mean([len(spec.items) for spec in batches]) >= min(utterances, 24) * 0.8
    kept = sum(spec.samples * len(spec.items) for spec in batches) / samples.sum()
    assert kept > {10: 0.1, 100: 0.75, 1_000: 0.9, 5_000: 0.95}[utterances]


@pytest.mark.parametrize("budget", [None, 40.0])
def test_an_epoch_has_every_window_once_in_batches_of_one_length_and_new_company(budget: float | None) -> None:
    windows = cut_windows(SAMPLES, LONGEST, 8, budget)
    batches = plan(windows, batch_seconds=budget)
    epochs = [list(batches), list(batches)]
    for epoch in epochs:
        numbers = [window for spec in epoch for window in spec.windows]
        assert sorted(numbers) == list(range(len(windows)))
        for spec in epoch:
            chosen = list(spec.windows)
            assert (windows.samples[chosen] == spec.samples).all()
            assert spec.items == tuple(windows.items[chosen]) and spec.starts == tuple(windows.starts[chosen])
            assert len(chosen) <= windows_a_batch(spec.samples, 8, budget)
            if budget is not None:
                assert spec.samples * len(chosen) / 16_000 <= budget
    lengths = [spec.samples for spec in epochs[0]]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))
    first, second = ({frozenset(spec.windows) for spec in epoch} for epoch in epochs)
    assert len(first & second) < 0.2 * len(first)


def test_seed_and_later_batch_size_leave_the_windows_alone() -> None:
    windows = cut_windows(SAMPLES, LONGEST, 8, None)
    crops = set(zip(windows.items.tolist(), windows.starts.tolist(), windows.samples.tolist(), strict=True))
    for changes in ({"seed": 5}, {"train_batch_size": 5}):
        specs = list(plan(windows, **changes))
        found = {(i, s, spec.samples) for spec in specs for i, s in zip(spec.items, spec.starts, strict=True)}
        assert found == crops
    assert [spec.windows for spec in plan(windows, seed=5)] != [spec.windows for spec in plan(windows)]


def test_resuming_gives_the_batches_that_would_have_come() -> None:
    windows = cut_windows(SAMPLES, LONGEST, 8, None)
    whole = [spec for batches in [plan(windows)] for _ in range(2) for spec in batches]
    for stop in (0, 5, len(whole) // 2 - 1, len(whole) // 2, len(whole) - 2):
        resumed = plan(windows)
        resumed.resume_after(whole[stop].epoch, whole[stop].index)
        assert [*resumed, *resumed][: len(whole) - stop - 1] == whole[stop + 1 :]


def test_the_windows_of_an_utterance_are_distorted_each_by_itself(tmp_path: Path) -> None:
    """Under a target cache an epoch hears several of an utterance; without one, where its crop begins is no matter."""
    heard: list[tuple[int, ...]] = []

    class Ears(Distorter):
        def draw(self, *place: int, window: int = 0) -> Draw:
            heard.append((*place, window))
            return super().draw(*place, window=window)

    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 5_000), 16_000)
    table = LengthTable([str(tmp_path / "a.wav")] * 2, np.array([5_000, 5_000]))
    spec = BatchSpec(epoch=3, index=0, items=(0, 0, 1), starts=(0, 320, 640), samples=1_000)
    whole = CropDataset(table, BatchPlan(table.samples, 2), Ears(DistortionConfig(additive=AdditiveConfig())))
    first = whole[spec]
    assert heard == [(3, 0, 0), (3, 0, 0), (3, 1, 0)]
    whole[dataclasses.replace(spec, windows=(0, 1, 2))]
    assert heard[3:] == [(3, 0, 0), (3, 0, 320), (3, 1, 640)] and first.clips == 3
