"""The target cache as files: what is read is what was stored, through kills, full disks and other runs."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from s3prl_ekd.data import target_cache
from s3prl_ekd.data.target_cache import TargetCache
from s3prl_ekd.data.target_folder import MISSING, STORED, VALIDATION, CacheFolder
from s3prl_ekd.data.target_layout import TargetLayout, TeacherPart
from s3prl_ekd.data.windows import Windows
from s3prl_ekd.errors import EkdError
from s3prl_ekd.teachers.stand_ins import TINY

KEY = "my.yaml: ekd.cache_targets"
SHAPES = {"a": TINY, "b": TINY.with_(conv_layers=(*TINY.conv_layers[:-1], (64, 4, 2)))}  # a frame less
PARTS = [TeacherPart("a", (2, 4), 8, SHAPES["a"].frames), TeacherPart("b", (1,), 5, SHAPES["b"].frames)]
WINDOWS = Windows(np.array([0, 1, 1, 2]), np.array([0, 320, 6_400, 640]), np.array([3_200, 3_200, 6_400, 6_400]))

PATHS = ["0.flac", "1.flac", "2.flac"]  # not there: nothing but their size matters


def layout(precision: str = "fp16") -> TargetLayout:
    return TargetLayout(PARTS, precision, "my.yaml: ekd.cache_precision")


def states(samples: int, clips: int, seed: int = 0) -> dict[str, dict[int, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        part.name: {
            layer: 30 * torch.randn(clips, part.frames(samples), part.width, generator=generator)
            for layer in part.layers
        }
        for part in PARTS
    }


def new_cache(folder: Path, precision: str = "fp16") -> TargetCache:
    place = CacheFolder(folder, KEY)
    place.make(1)
    place.create(WINDOWS, layout(precision), {"a": "b"})
    return TargetCache(place, layout(precision), PATHS)


def rows(samples: int, clips: int, seed: int = 0) -> torch.Tensor:
    return layout().pack(states(samples, clips, seed), samples)


@pytest.mark.parametrize(("precision", "error"), [("fp16", 2**-11), ("bf16", 2**-8)])
def test_states_come_back_rounded_once(
    tmp_path: Path, precision: str, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = new_cache(tmp_path, precision)
    expected = {}
    for windows, samples in (((1, 0), 3_200), ((3, 2), 6_400)):  # not in the order of the file
        expected[windows] = states(samples, 2, seed=samples)
        cache.store(windows, cache.layout.pack(expected[windows], samples))
    monkeypatch.setattr(CacheFolder, "lock", lambda *a: pytest.fail("a full cache needs no lock, hence no writing"))
    again = TargetCache(CacheFolder(tmp_path, KEY), layout(precision), PATHS)
    assert again.complete
    for windows, samples in (((1, 0), 3_200), ((3, 2), 6_400)):
        found = again.layout.unpack(again.read(windows), samples)
        for part in PARTS:
            for layer in part.layers:
                state = expected[windows][part.name][layer]
                assert torch.equal(found[part.name][layer], state.to(again.layout.dtype))
                assert ((found[part.name][layer].float() - state).abs() <= error * state.abs() + 1e-7).all()
    assert {mode for _, mode in again._files} == {"rb"}
    frames = {samples: (SHAPES["a"].frames(samples), SHAPES["b"].frames(samples)) for samples in (3_200, 6_400)}
    assert frames == {3_200: (9, 8), 6_400: (19, 18)}
    size = (tmp_path / "targets.bin").stat().st_size
    assert size == 2 * 2 * (9 * 16 + 8 * 5) + 2 * 2 * (19 * 16 + 18 * 5)  # bytes x windows x (a's + b's numbers)


def test_a_row_counts_only_once_its_bytes_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = new_cache(tmp_path)
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), real(file)))
    cache.store((0,), rows(3_200, 1))
    assert not synced and cache.stored([0]).all()  # for this process, not for one that comes after a kill
    assert list((tmp_path / "state.bin").read_bytes()) == [MISSING] * 4
    cache.flush()
    assert [Path(file).name for file in synced] == ["targets.bin", "sizes.bin", "state.bin"]
    assert list((tmp_path / "state.bin").read_bytes()) == [STORED, MISSING, MISSING, MISSING]
    monkeypatch.setattr(target_cache, "FLUSH_SECONDS", -1.0)  # the time is over
    cache.store((1,), rows(3_200, 1, seed=1))
    assert TargetCache(CacheFolder(tmp_path, KEY), layout(), PATHS).stored([0, 1, 2]).tolist() == [True, True, False]
    assert torch.equal(TargetCache(CacheFolder(tmp_path, KEY), layout(), PATHS).read([1]), rows(3_200, 1, seed=1))


def test_a_worker_sees_what_the_main_process_stores_later(tmp_path: Path) -> None:
    cache = new_cache(tmp_path)
    worker = pickle.loads(pickle.dumps(cache))
    assert not worker.stored([0, 1]).any()
    cache.store((0, 1), rows(3_200, 2))
    cache.flush()
    assert worker.stored([0, 1]).all() and torch.equal(worker.read([0, 1]), rows(3_200, 2))


def test_a_workers_targets_are_in_shared_memory_from_the_start(tmp_path: Path, worker: None) -> None:
    cache = new_cache(tmp_path)
    cache.store((0,), rows(int(cache.windows.samples[0]), 1))
    assert cache.read((0,)).is_shared()


def test_numbers_beyond_the_precision_are_named(tmp_path: Path) -> None:
    large = states(3_200, 1)
    large["a"][4][0, 3, 2] = 70_000
    with pytest.raises(EkdError, match=r"my.yaml: ekd.cache_precision: fp16: state 4 of teacher 'a' .* use bf16"):
        layout("fp16").pack(large, 3_200)
    assert torch.isfinite(layout("bf16").pack(large, 3_200)).all()


def test_a_disk_that_fills_up_is_one_line_and_keeps_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = new_cache(tmp_path)
    cache.store((0,), rows(3_200, 1))
    cache.flush()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(EkdError) as caught:
        patch.setattr(os, "pwrite", full)
        cache.store((1,), rows(3_200, 1))
    assert str(caught.value) == (
        f"{KEY}: {tmp_path}/targets.bin: cannot be written (No space left on device); what was stored before is kept"
    )
    again = TargetCache(CacheFolder(tmp_path, KEY), layout(), PATHS)
    assert again.stored([0, 1]).tolist() == [True, False] and torch.equal(again.read([0]), rows(3_200, 1))


def test_folders_that_will_not_do_are_named_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    for folder, size, expected in (
        (tmp_path / "file" / "cache", 1, "cannot be made (Not a directory)"),
        (tmp_path / "other", 1, "holds other files (thesis.tex); expected an empty or a new folder"),
        (tmp_path / "new", 10**18, "the targets need 1000000000.00 GB, only "),
    ):
        with pytest.raises(EkdError) as caught:
            CacheFolder(folder, KEY).make(size)
        assert str(caught.value).startswith(f"{KEY}: {folder}: {expected}")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    for name in ("targets.bin", ".index.json.tmp-4194305", "lock"):  # of a cache that a kill left half-made
        (tmp_path / "new" / name).touch()
    CacheFolder(tmp_path / "new", KEY).make(1)


def test_a_cache_that_is_cut_short_or_of_another_version_is_refused(tmp_path: Path) -> None:
    cache = new_cache(tmp_path)
    index = CacheFolder(tmp_path, KEY).read_index()
    assert index.fingerprint == {"a": "b"}
    assert [(part.name, part.layers, part.width) for part in index.parts] == [("a", (2, 4), 8), ("b", (1,), 5)]
    assert [part.frames(6_400) for part in index.parts] == [19, 18]
    cache.store((0, 1), rows(3_200, 2))
    cache.store((2, 3), rows(6_400, 2))
    os.truncate(tmp_path / "targets.bin", 500)
    with pytest.raises(EkdError, match="targets.bin: cut short"):
        cache.read([3])
    with pytest.raises(EkdError, match="damaged"):
        TargetCache(CacheFolder(tmp_path, KEY), layout(), PATHS)
    (tmp_path / "index.json").write_text('{"format": 0, "fingerprint": {}}')
    with pytest.raises(EkdError, match=r"a cache of format 0, this version's is 3"):
        CacheFolder(tmp_path, KEY).read_index()
    (tmp_path / "index.json").write_text('{"for')
    with pytest.raises(EkdError, match="index.json: not the index of a target cache"):
        CacheFolder(tmp_path, KEY).read_index()
    (tmp_path / "index.json").unlink()
    assert CacheFolder(tmp_path, KEY).read_index() is None


@pytest.mark.parametrize("name", ["windows.npy", "state.bin", "sizes.bin", "targets.bin"])
def test_each_file_of_a_damaged_cache_is_looked_at(tmp_path: Path, name: str) -> None:
    new_cache(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for length in sorted({0, 1, len(whole) // 2, len(whole) - 1}):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(EkdError, match=f"^{KEY}: {tmp_path}: damaged .*; delete it, and it will be filled again"):
            TargetCache(CacheFolder(tmp_path, KEY), layout(), PATHS)


@pytest.mark.parametrize(
    "wanted", [{"b": (1,)}, {"a": (4,)}, {"b": (1,), "a": (4, 2)}, {"a": (2, 4), "b": (1,)}], ids=str
)
def test_a_run_may_read_some_teachers_and_layers_in_its_own_order(
    tmp_path: Path, wanted: dict[str, tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = new_cache(tmp_path)
    expected = states(6_400, 2)
    cache.store((0, 1), rows(3_200, 2))
    cache.store((2, 3), cache.layout.pack(expected, 6_400))
    sizes = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *a: (sizes.append(real(*a)), sizes[-1])[1])
    widths = {"a": 8, "b": 5}
    parts = [TeacherPart(name, layers, widths[name], SHAPES[name].frames) for name, layers in wanted.items()]
    stored = TargetLayout(CacheFolder(tmp_path, KEY).read_index().parts, "fp16")
    some = TargetCache(CacheFolder(tmp_path, KEY), stored, PATHS, wanted=TargetLayout(parts, "fp16"))
    found = some.wanted.unpack(some.read((3, 2)), 6_400)
    assert {name: tuple(layers) for name, layers in found.items()} == wanted
    for name, layers in found.items():
        for layer, state in layers.items():
            assert torch.equal(state, expected[name][layer].half().flip(0))
    assert sum(sizes) == 2 * some.wanted.bytes(6_400)  # and no byte more is read from the disk


def test_audio_that_was_replaced_since_is_refused_and_what_has_no_targets_yet_may_be_repaired(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in PATHS]
    for path in paths:
        Path(path).write_bytes(bytes(100))
    folder = tmp_path / "cache"
    new_cache(folder)
    cache = TargetCache(CacheFolder(folder, KEY), layout(), paths)
    cache.store((0, 1), rows(3_200, 2))  # of 0.flac, and one of two of 1.flac
    cache.mark_unreadable([3])
    cache.flush()
    Path(paths[2]).write_bytes(bytes(300))  # repaired
    again = TargetCache(CacheFolder(folder, KEY), layout(), paths)
    again.store((2, 3), rows(6_400, 2))
    assert again.complete and again.sizes.tolist() == [100, 100, 300]
    assert TargetCache(CacheFolder(folder, KEY), layout(), paths).sizes.tolist() == [100, 100, 300]
    Path(paths[0]).unlink()  # a disk that is away: skipped when its turn comes
    TargetCache(CacheFolder(folder, KEY), layout(), paths)
    for path in paths[1:]:
        Path(path).write_bytes(bytes(99))
    with pytest.raises(EkdError) as caught:
        TargetCache(CacheFolder(folder, KEY), layout(), paths)
    assert str(caught.value) == (
        f"{KEY}: {folder}: {paths[1]} has another size than when its targets were stored (100 bytes then, 99 now; "
        "files like it: 2); put back what was there, or name another folder"
    )
    folder.rename(tmp_path / VALIDATION)  # with the corpus's own targets in another folder, which are worth keeping
    with pytest.raises(EkdError, match=r"or delete only this folder \(of held-out speech\)"):
        TargetCache(CacheFolder(tmp_path / VALIDATION, KEY), layout(), paths, held_out=True)
    with pytest.raises(EkdError, match="or name another folder"):  # a corpus's own, of that name
        TargetCache(CacheFolder(tmp_path / VALIDATION, KEY), layout(), paths)


def test_two_runs_do_not_fill_one_cache(tmp_path: Path) -> None:
    new_cache(tmp_path)
    code = (
        "import sys, pathlib; from s3prl_ekd.data.target_folder import CacheFolder\n"
        f"lock = CacheFolder(pathlib.Path({str(tmp_path)!r}), 'k').lock(); print('held', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(EkdError, match=f"{KEY}: {tmp_path}: another run is filling it"):
            TargetCache(CacheFolder(tmp_path, KEY), layout(), PATHS)
        other.kill()
        other.communicate()
    cache = TargetCache(CacheFolder(tmp_path, KEY), layout(), PATHS)
    for holds in (True, False):  # as long as it is there
        done = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True, check=False)
        assert ("another run is filling it" in done.stderr) == holds == (done.returncode != 0)
        if holds:
            assert not cache.complete
            del cache
