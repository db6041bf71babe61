"""Training on cached targets: the loss of the teachers themselves, without them; resumed, shared, refused, mended."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from pretrain_lab import final_weights, run, start
from target_cache_lab import batches, make_expert, train, write_model

from s3prl_ekd.cli import main
from s3prl_ekd.data.batches import Batch
from s3prl_ekd.data.target_folder import MISSING, STORED, UNREADABLE, CacheFolder
from s3prl_ekd.distributed import Ranks
from s3prl_ekd.errors import EkdError
from s3prl_ekd.teachers import adapter
from s3prl_ekd.torch_file import read_torch_file

STEPS = 3  # an epoch
MODES = ("multi_head", "layerwise_average", "layerwise_concat")

EVERY_OPTION = {"targets": {"normalise": "standardise", "tap": "ffn"}, "teacher_dropping": {}, "balance": {}}


@pytest.mark.parametrize(
    ("options", "precision", "tolerance"),
    [
        *(({"mode": mode}, "fp16", 1e-4) for mode in MODES),
        ({"mode": "multi_head"}, "bf16", 5e-4),
        ({"mode": "layerwise_average", "targets": {"normalise": "standardise"}}, "fp16", 2e-4),
        (EVERY_OPTION, "fp16", 1e-3),
    ],
    ids=str,
)
def test_the_loss_is_that_of_the_teachers_on_the_same_batches(
    lab: Path, tmp_path: Path, calls: list[int], options: dict[str, Any], precision: str, tolerance: float
) -> None:
    """Over three epochs with dropout and an optimizer; within what rounding to the storage precision can do."""
    pairs = {"train_batch_size": 2}  # two batches a length, or there would be no company to change
    cached = make_expert(lab, tmp_path / "cache", pairs, cache_precision=precision, **options)
    seen: list[Batch] = []
    losses = train(cached, (seen.append(batch) or batch for batch in batches(cached, 3)))
    assert len(losses) == 18 and sum(calls) == 12  # each clip once, though trained three times
    assert len({tuple(sorted(batch.windows)) for batch in seen}) > 6
    online = train(make_expert(lab, None, pairs, **options), iter(seen))
    assert losses != online  # or nothing was stored in half precision
    worst = max(abs(a - b) for a, b in zip(losses, online, strict=True))
    print(f"{precision} {options}: losses differ by at most {worst:.1e} of {online[0]:.3f}")
    # one epoch is compared closely; after it two runs that differ in a rounding drift apart under any optimizer
    first_epoch = zip(losses[:6], online[:6], strict=True)
    assert max(abs(a - b) for a, b in first_epoch) < tolerance * min(online)
    assert worst < 0.01 * (max(online) - min(online))  # by far less than from step to step


def test_a_full_cache_trains_without_teachers_and_the_same(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one is loaded but the initialiser; filling or reading makes no difference in a single bit."""
    filling = make_expert(lab, tmp_path / "cache")
    assert filling.teachers.teachers is not None
    losses = train(filling, batches(filling, 2))
    assert filling.teachers.teachers is None  # their memory is free after the first epoch
    import s3prl_ekd.pretrain.ekd.pretrain_expert as module

    monkeypatch.setattr(module, "load_teachers", lambda *a: pytest.fail("a teacher was loaded"))
    reading = make_expert(lab, tmp_path / "cache")
    source = read_torch_file(lab / "teachers" / "hubert.pt")["model_weight"]
    assert torch.equal(reading.model.encoder.projection.weight, source["post_extract_proj.weight"])
    assert train(reading, batches(reading, 2)) == losses


def test_beside_a_full_cache_no_expert_of_s3prls_is_kept(hub: ModuleType, lab: Path, tmp_path: Path) -> None:
    """One is built to know its shape and weights."""
    teachers = [{"name": "mel", "source": "s3prl:fbank", "layers": [0]}]
    filling = make_expert(lab, tmp_path, teachers=teachers, initialise_from=None)
    train(filling, batches(filling, 1))
    make_expert(lab, tmp_path, teachers=teachers, initialise_from=None)
    assert filling.cache.complete and not adapter._built


def test_one_cache_serves_other_modes_seeds_and_batch_sizes(lab: Path, tmp_path: Path, calls: list[int]) -> None:
    first = make_expert(lab, tmp_path / "cache")
    train(first, batches(first, 1))
    calls.clear()
    for options, data in (
        ({"mode": "layerwise_average"}, {"seed": 7}),
        ({"mode": "layerwise_concat", "targets": {"normalise": "standardise"}}, {"train_batch_size": 2}),
    ):
        other = make_expert(lab, tmp_path / "cache", data=data, **options)
        assert len(train(other, batches(other, 1))) >= STEPS
    assert calls == []


def test_a_full_cache_serves_any_of_its_teachers_and_layers(lab: Path, tmp_path: Path, calls: list[int]) -> None:
    """Ablations: filled once by the whole ensemble, then read by its parts, in any order, with the same loss."""
    whole = yaml.safe_load((lab / "model.yaml").read_text())["ekd"]["teachers"]
    names = [teacher["name"] for teacher in whole]
    assert len(names) >= 2
    parts = [[whole[1]], [whole[0] | {"layers": whole[0]["layers"][-1:]}], list(reversed(whole))]
    first = make_expert(lab, tmp_path / "cache")
    with pytest.raises(EkdError) as caught:
        make_expert(lab, tmp_path / "cache", teachers=parts[0], initialise_from=None)
    there = f"ekd.teachers (names) ({', '.join(names)} there, {names[1]} now)"
    assert f"{there}; name another folder, or let the run that fills it come to its end" in str(caught.value)
    train(first, batches(first, 1))
    for teachers in parts:
        calls.clear()
        seen: list[Batch] = []
        some = make_expert(lab, tmp_path / "cache", teachers=teachers, initialise_from=None)
        losses = train(some, (seen.append(batch) or batch for batch in batches(some, 1)))
        assert calls == []
        online = train(make_expert(lab, None, teachers=teachers, initialise_from=None), iter(seen))
        assert losses == pytest.approx(online, rel=1e-4) and losses != online
    with pytest.raises(EkdError, match=r"the layers of \w+ \(2, 4, 6 there, 2, 5 now\)"):
        make_expert(lab, tmp_path / "cache", teachers=[whole[0] | {"layers": [2, 5]}], initialise_from=None)


@pytest.mark.parametrize("workers", [0, 2])
def test_targets_come_with_the_batch_from_the_second_epoch_on(lab: Path, tmp_path: Path, workers: int) -> None:
    expert = make_expert(
        lab, tmp_path / "cache", data={"num_workers": workers}, sections={"distortion": {"additive": {}}}
    )
    came = []
    for batch in batches(expert, 2):
        came.append((batch.targets is not None, batch.distinct_teacher_wave is not None))
        expert(batch, records={}, global_step=1, log_step=10)
    assert came == [(False, True)] * STEPS + [(True, False)] * STEPS


@pytest.mark.parametrize("flushed", [False, True], ids=["rows lost", "rows kept"])
def test_a_fill_cut_off_in_the_middle_goes_on_bit_for_bit(
    lab: Path, tmp_path: Path, calls: list[int], flushed: bool
) -> None:
    """A checkpoint after step 1, an end after step 2 whose rows are on the disk or not, then the rest again."""

    def losses(expert: Any, epochs: int) -> Iterator[float]:
        for batch in batches(expert, epochs):
            yield float(expert(batch, records={}, global_step=1, log_step=10)[0].detach())

    expected = list(losses(make_expert(lab, tmp_path / "whole"), 2))
    cut = make_expert(lab, tmp_path / "cut")
    running, checkpoint = losses(cut, 2), {"Step": 0}
    assert next(running) == expected[0]
    cut.add_state_to_save(checkpoint)
    assert next(running) == expected[1]
    if flushed:
        cut.cache.flush()
    calls.clear()
    resumed = make_expert(lab, tmp_path / "cut")
    resumed.load_model(checkpoint)
    assert [*losses(resumed, 1), *losses(resumed, 1)] == expected[1:]
    assert sum(calls) == (4 if flushed else 8)


STALE = {
    "ekd.cache_precision (fp16 there, bf16 now)": {"cache_precision": "bf16"},
    "ekd.teacher_precision (fp32 there, bf16 now)": {"teacher_precision": "bf16"},
    "ekd.targets.tap (hidden there, ffn now)": {"targets": {"tap": "ffn"}},
    "task.sequence_length (250000 there, 6000 now)": {"sections": {"task": {"sequence_length": 6000}}},
    "the layers of hubert (2, 4, 6 there, 2, 5 now)": {"layers": [2, 5]},
    "the weights of wavlm": {"weights": "wavlm/model.safetensors"},
    "the data (length CSVs)": {"table": "train.csv"},
}


@pytest.mark.parametrize("part", STALE)
def test_a_cache_of_other_targets_is_refused_and_says_what_differs(lab: Path, tmp_path: Path, part: str) -> None:
    make_expert(lab, tmp_path / "cache")
    changes = dict(STALE[part])
    changed = {"weights": lab / "teachers", "table": lab}
    key = next((key for key in changed if key in changes), None)
    if "layers" in changes:
        teachers = yaml.safe_load((lab / "model.yaml").read_text())["ekd"]["teachers"]
        layers = changes.pop("layers")
        changes = {"teachers": [teacher | {"layers": layers} for teacher in teachers]}
    file, content = None, b""
    if key is not None:
        file = changed[key] / changes.pop(key)
        content = file.read_bytes()
        other = content.replace(b",8300,", b",8299,") if key == "table" else content[:-1] + bytes([content[-1] ^ 1])
        file.write_bytes(other)
    try:
        with pytest.raises(EkdError) as caught:
            make_expert(lab, tmp_path / "cache", **changes)
    finally:
        if file is not None:
            file.write_bytes(content)
    prefix = f"{lab}/cached.yaml: ekd.cache_targets: {tmp_path}/cache holds the targets of another run: {part}"
    assert str(caught.value).startswith(prefix) and "\n" not in str(caught.value)
    make_expert(lab, tmp_path / "cache")  # it is as good as it was


def test_what_contradicts_a_cache_is_refused(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for setup in ("same", "independent"):
        with pytest.raises(EkdError, match=rf"cached.yaml: ekd.cache_targets: with distortion.setup: {setup} "):
            make_expert(lab, tmp_path / "cache", sections={"distortion": {"setup": setup, "additive": {}}})
    (tmp_path / "file").write_text("")
    with pytest.raises(EkdError, match=r"cached.yaml: ekd.cache_targets: .*/file/cache: cannot be made"):
        make_expert(lab, tmp_path / "file" / "cache")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Ranks, "current", classmethod(lambda cls: cls(0, 2)))  # as torchrun's, joined
    with pytest.raises(EkdError, match=r"cached.yaml: ekd.cache_targets: a target cache is for one process"):
        make_expert(lab, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_audio_that_cannot_be_read_does_not_hold_the_teachers_back_and_may_be_mended(
    lab: Path, tmp_path: Path, calls: list[int]
) -> None:
    content = (lab / "5.flac").read_bytes()
    try:
        (lab / "5.flac").write_bytes(content[:100])
        expert = make_expert(lab, tmp_path / "cache")
        train(expert, batches(expert, 1))
        assert expert.teachers.teachers is None and sum(calls) == 11
        assert (expert.cache.state == UNREADABLE).sum() == 1
        assert make_expert(lab, tmp_path / "cache").cache.complete
    finally:
        (lab / "5.flac").write_bytes(content)
    expert = make_expert(lab, tmp_path / "cache")
    calls.clear()
    train(expert, batches(expert, 2))
    assert calls == [4] and expert.teachers.teachers is None  # its batch's teachers ran once, and went again


@pytest.mark.parametrize("writable", [True, False])
def test_teachers_are_loaded_once_for_all_that_was_mended(
    lab: Path, tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    """Three clips of three batches; where the full cache can't be written to, they are computed in every epoch."""
    contents = {name: (lab / name).read_bytes() for name in ("1.flac", "5.flac", "10.flac")}
    try:
        for name, content in contents.items():
            (lab / name).write_bytes(b"x" * len(content))
        expert = make_expert(lab, tmp_path / "cache")
        assert len(list(batches(expert, 1))) == 3
        train(expert, batches(expert, 1))
        assert expert.cache.complete and (expert.cache.state == UNREADABLE).sum() == 3
    finally:
        for name, content in contents.items():
            (lab / name).write_bytes(content)
    expert.cache._lock.close()
    stored = (tmp_path / "cache/targets.bin").read_bytes()
    if not writable:
        lock = CacheFolder.lock
        monkeypatch.setattr(CacheFolder, "lock", lambda self: lock(CacheFolder(self.path / "nowhere", self.key)))
    expert = make_expert(lab, tmp_path / "cache")
    loads, load = [], expert.teachers.load
    expert.teachers.load = lambda: (loads.append(1), load())[1]
    calls.clear()
    losses = train(expert, batches(expert, 1))
    assert len(calls) == 3 and len(loads) == 1 and all(loss > 0 for loss in losses)
    train(expert, batches(expert, 1))
    assert len(calls) == (3 if writable else 6) and (expert.teachers.teachers is None) == writable
    assert ((tmp_path / "cache/targets.bin").read_bytes() == stored) != writable


def test_teachers_that_another_cache_asks_for_leave_a_full_one_unlocked(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of held-out speech, say: both begin with one loaded ensemble."""
    expert = make_expert(lab, tmp_path / "cache")
    train(expert, batches(expert, 1))
    expert.cache._lock.close()
    monkeypatch.setattr(CacheFolder, "lock", lambda self: pytest.fail("a lock was asked for"))
    expert = make_expert(lab, tmp_path / "cache")
    expert.teachers.teachers = expert.teachers.load()
    train(expert, batches(expert, 1))
    assert expert.teachers.teachers is None


def test_a_batch_without_a_readable_clip_does_not_hold_the_cache_back(lab: Path, tmp_path: Path) -> None:
    content = (lab / "5.flac").read_bytes()
    try:
        (lab / "5.flac").write_bytes(b"x" * len(content))
        expert = make_expert(lab, tmp_path / "cache", {"train_batch_size": 1})
        losses = train(expert, batches(expert, 2))
        assert losses.count(0.0) == 2 and expert.teachers.teachers is None
        words = ["targets", "-g", str(write_model(lab, tmp_path / "model.yaml", tmp_path / "ahead"))]
        runner = yaml.safe_load((lab / "runner.yaml").read_text())
        runner["pretrain_expert"]["datarc"]["train_batch_size"] = 1
        (tmp_path / "runner.yaml").write_text(yaml.safe_dump(runner))
        assert main([*words, "-c", str(tmp_path / "runner.yaml")]) == 0
        assert (tmp_path / "ahead/state.bin").read_bytes().count(UNREADABLE) == 1
    finally:
        (lab / "5.flac").write_bytes(content)


@pytest.mark.slow
def test_a_killed_run_fills_on_to_the_same_weights(lab: Path, tmp_path: Path) -> None:
    """The real command: SIGKILL in the first epoch, -a; the weights are those of a run that was never stopped."""
    rules = {"runner.total_steps": 20, "runner.save_step": 4, "pretrain_expert.datarc.train_batch_size": 1}
    overrides = ["-o", ",,".join(f"config.{key}={value}" for key, value in rules.items())]

    def arguments(name: str) -> list[str]:
        model = write_model(lab, tmp_path / f"{name}.yaml", tmp_path / f"{name}_cache")
        return ["-u", "ekd", "-n", name, "-p", name, "-g", str(model), "-c", str(lab / "runner.yaml"), *overrides]

    whole = run(tmp_path, *arguments("whole"))
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert set((tmp_path / "whole_cache" / "state.bin").read_bytes()) == {STORED}
    with start(tmp_path, *arguments("killed")) as process:
        deadline = time.monotonic() + 200
        while not (tmp_path / "killed" / "states-4.ckpt").is_file():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-2000:]
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=100)
    state = (tmp_path / "killed_cache" / "state.bin").read_bytes()
    assert MISSING in state and STORED in state, "the cache was full before the run could be stopped"
    again = run(tmp_path, *arguments("killed"), "-a")
    assert again.returncode == 0, again.stderr[-2000:]
    expected, found = (final_weights(tmp_path / name) for name in ("whole", "killed"))
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_states_of_another_size_are_refused_though_the_weights_are_unknown(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub name that is not downloaded has no digest; what stands under it must not be read as something else."""
    import s3prl_ekd.teachers.cached as module

    first = make_expert(lab, tmp_path / "cache", initialise_from=None)
    train(first, batches(first, 1))
    real = module.fingerprint

    def unknown(*args: Any, **words: Any) -> Any:
        found = real(*args, **words)
        return {key: None if key.startswith("the weights") else value for key, value in found.items()}

    monkeypatch.setattr(module, "fingerprint", unknown)
    teachers = yaml.safe_load((lab / "model.yaml").read_text())["ekd"]["teachers"]
    assert make_expert(lab, tmp_path / "cache", teachers=teachers, initialise_from=None).cache.complete
    name = teachers[1]["name"]
    other = [teachers[1] | {"source": "random:hubert_large_ll60k"}]
    with pytest.raises(EkdError, match=rf"the source of {name} \(.* there, random:hubert_large_ll60k now\)"):
        make_expert(lab, tmp_path / "cache", teachers=other, initialise_from=None)
    monkeypatch.setattr(module, "difference", lambda *args, **words: None)  # and where even the source has that name
    with pytest.raises(EkdError, match=rf"the states of {name} are \d+ wide there, 1024 now"):
        make_expert(lab, tmp_path / "cache", teachers=other, initialise_from=None)
