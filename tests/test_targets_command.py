"""``s3prl-ekd targets``: a cache filled without a student."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from target_cache_lab import batches, make_expert, train, write_model

from s3prl_ekd.cli import main
from s3prl_ekd.data.batches import Batch
from s3prl_ekd.data.target_cache import TargetCache
from s3prl_ekd.data.target_folder import MISSING
from s3prl_ekd.teachers.cached import CachedTeachers


def test_the_command_fills_a_cache_without_a_student(
    lab: Path, tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the middle it goes on; training then finds what it would have computed itself."""
    expected = make_expert(lab, tmp_path / "own")
    losses = train(expected, batches(expected, 1))
    calls.clear()
    model = write_model(lab, tmp_path / "model.yaml", tmp_path / "ahead")
    words = ["targets", "-g", str(model), "-c", str(lab / "runner.yaml")]
    store = TargetCache.store

    def store_and_stop(cache: TargetCache, *args: Any) -> None:
        store(cache, *args)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # as a job scheduler does

    monkeypatch.setattr(TargetCache, "store", store_and_stop)
    assert main(words) == 128 + signal.SIGTERM
    assert f"[ekd] targets of 8 of 12 windows are in {tmp_path}/ahead\n" in capsys.readouterr().err
    monkeypatch.setattr(TargetCache, "store", store)
    read, fill = [], CachedTeachers.fill
    monkeypatch.setattr(CachedTeachers, "fill", lambda self, *given: (read.append(given), fill(self, *given))[1])
    assert main(words) == 0
    assert calls == [4, 4, 4] and len(read) == 1  # nothing twice, neither computed nor read
    assert "12 of 12 windows" in capsys.readouterr().err
    assert main(words) == 0
    trained = make_expert(lab, tmp_path / "ahead")
    assert trained.teachers.teachers is None
    assert train(trained, batches(trained, 1)) == losses
    model = write_model(lab, tmp_path / "model.yaml", None)
    assert main(words) == 2
    assert "model.yaml: ekd.cache_targets: null; name the folder" in capsys.readouterr().err


def test_a_file_of_several_windows_is_told_once(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(lab, tmp_path / "model.yaml", tmp_path / "cache", {"task": {"sequence_length": 4000}})
    content = (lab / "5.flac").read_bytes()
    try:
        (lab / "5.flac").write_bytes(b"x" * len(content))
        assert main(["targets", "-g", str(model), "-c", str(lab / "runner.yaml")]) == 0
    finally:
        (lab / "5.flac").write_bytes(content)
    err = capsys.readouterr().err
    assert "the audio of 2 could not be read" in err and err.count(f"skipped: {lab}/5.flac") == 1


def test_the_command_takes_up_audio_that_became_readable(
    lab: Path, tmp_path: Path, calls: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that was away: all of its audio is marked, so that no window is left to be waited for."""
    words = ["targets", "-g", str(write_model(lab, tmp_path / "model.yaml", tmp_path / "cache"))]
    words += ["-c", str(lab / "runner.yaml")]
    content = (lab / "5.flac").read_bytes()
    try:
        (lab / "5.flac").write_bytes(b"x" * len(content))
        assert main(words) == 0
        calls.clear()
        assert main(words) == 0
        assert not calls and capsys.readouterr().err.count(f"skipped: {lab}/5.flac") == 2
    finally:
        (lab / "5.flac").write_bytes(content)
    assert main(words) == 0
    assert calls and f"targets of 12 of 12 windows are in {tmp_path}/cache\n" in capsys.readouterr().err
    calls.clear()
    assert main(words) == 0
    assert not calls


def test_the_command_ends_though_audio_cannot_be_read_and_parts_of_the_cache_know_it(
    lab: Path, tmp_path: Path, calls: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """All other windows are there already, as after a run with other batches."""
    model = write_model(lab, tmp_path / "model.yaml", tmp_path / "cache")
    content = (lab / "5.flac").read_bytes()
    try:
        (lab / "5.flac").write_bytes(b"x" * len(content))
        expert = make_expert(lab, tmp_path / "cache", initialise_from=None)
        for batch in batches(expert, 1):
            if batch.unread:
                batch.unread = ()
            expert.teachers.fill(batch.wave, batch)
        expert.cache.flush()
        assert (expert.cache.state == MISSING).sum() == 1
        assert main(["targets", "-g", str(model), "-c", str(lab / "runner.yaml")]) == 0
        last = f"[ekd] targets of 11 of 12 windows are in {tmp_path}/cache; the audio of 1 could not be read\n"
        err = capsys.readouterr().err
        assert err.endswith(last) and f"[ekd] skipped: {lab}/5.flac" in err
    finally:
        (lab / "5.flac").write_bytes(content)
    # a run with some of the teachers can't store a row: it computes this one anew, with teachers that it loads once
    teachers = yaml.safe_load((lab / "model.yaml").read_text())["ekd"]["teachers"][1:2]
    some = make_expert(lab, tmp_path / "cache", teachers=teachers, initialise_from=None)
    loads, load = [], some.teachers.load
    some.teachers.load = lambda: (loads.append(1), load())[1]
    calls.clear()
    seen: list[Batch] = []
    losses = train(some, (seen.append(batch) or batch for batch in batches(some, 2)))
    assert len(calls) == 2 and loads == [1]
    online = train(make_expert(lab, None, teachers=teachers, initialise_from=None), iter(seen))
    assert losses == pytest.approx(online, rel=1e-4)


def test_the_command_reads_its_configuration_as_the_run_does(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """-o changes what -c and -g say, and -g by way of ``args.``; the cache is the one that the run would have made."""

    def layout(folder: Path) -> dict[str, bytes]:
        return {name: (tmp_path / folder / name).read_bytes() for name in ("index.json", "windows.npy")}

    expert = make_expert(lab, tmp_path / "own", {"train_batch_size": 2, "max_timestep": -9000})
    train(expert, batches(expert, 1))
    plain, changed = (write_model(lab, tmp_path / f"{name}.yaml", tmp_path / name) for name in ("plain", "changed"))
    override = "config.pretrain_expert.datarc.train_batch_size=2,,config.pretrain_expert.datarc.max_timestep=-9000"
    runner = tmp_path / "data" / "pretrain.yaml"
    runner.parent.mkdir()
    runner.write_bytes((lab / "runner.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert main(["targets", "-g", "plain.yaml", "-c", "data/pretrain", "-o", "none", "--device", "cpu"]) == 2
    assert "-c data/pretrain: no such config file" in capsys.readouterr().err
    assert main(["targets", "-g", "plain.yaml", "-c", "data/pretrain.yaml", "-o", "none", "--device", "cpu"]) == 0
    assert main(["targets", "-g", "plain.yaml", "-c", str(runner), "--device", "cuda:99",
                 "-o", f"{override},,args.upstream_config={changed},,args.device=cpu"]) == 0  # fmt: skip
    assert layout(Path("changed")) == layout(Path("own")) != layout(Path("plain"))
    words = ["targets", "-g", str(plain), "-c", str(runner), "--device", "cpu", "-o"]
    assert main([*words, f"{override},,upstream_config.ekd.cache_targets=third"]) == 0
    assert layout(Path("third")) == layout(Path("own"))
    for wrong, expected in (
        ("upstream_config.ekd.cache_targets=5", "-o upstream_config.ekd.cache_targets: input should be a valid string"),
        ("config.pretrain_expert.datarc.train_batch_sise=2", f"{runner}: pretrain_expert.datarc.train_batch_sise: "),
        (
            "config.pretrain_expert.datarc.sets.x=2",
            "-o 'config.pretrain_expert.datarc.sets.x=2': the configuration has no",
        ),
        ("config.runner.fp16=[false]", "-o 'config.runner.fp16=[false]': s3prl reads values as Python"),
    ):
        capsys.readouterr()
        assert main([*words, wrong]) == 2
        assert f"error: {expected}" in capsys.readouterr().err
