"""What the validation loss of pretraining is: a mean over held-out speech, on several ranks, under a target cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pretrain_lab import hold_out
from target_cache_lab import batches, make_expert, train, write_model
from validation_lab import HELD_OUT, save

from s3prl_ekd.cli import main
from s3prl_ekd.config import DataConfig, check_data_config
from s3prl_ekd.data.lengths import _spread, read_held_out, read_lengths
from s3prl_ekd.distributed import Ranks
from s3prl_ekd.errors import EkdError
from s3prl_ekd.pretrain.ekd.validation import Validation


@pytest.fixture(scope="module")
def lab(lab: Path) -> Path:
    return hold_out(lab)


def data_config(lab: Path, **changes: Any) -> DataConfig:
    """The lab's ``datarc``, changed and checked."""
    datarc = yaml.safe_load((lab / "runner.yaml").read_text())["pretrain_expert"]["datarc"]
    return check_data_config(datarc | changes)


def by_hand(expert: Any, batch_size: int) -> dict[str, float]:
    """Mean loss of the held-out clips, batch after batch, without the package's loop: weighed by seconds of audio."""
    expert.eval()
    total, seconds = {"loss": 0.0, "l1": 0.0}, 0.0
    for batch in expert.validation.loader:
        assert len(batch.wave) <= batch_size
        targets = expert.teachers(batch.wave)
        _, predictions = expert.model(batch.wave)
        terms = []
        for name, layers in targets.items():
            for head, layer in enumerate(sorted(layers)):
                p, t = predictions[name][:, head], layers[layer]
                cosine = torch.nn.functional.cosine_similarity(p, t, dim=-1)
                terms.append(((p - t).abs().mean().item(), -torch.nn.functional.logsigmoid(cosine).mean().item()))
        total["loss"] += batch.seconds * float(np.mean([l1 + cosine for l1, cosine in terms]))
        total["l1"] += batch.seconds * terms[0][0]
        seconds += batch.seconds
    expert.train()
    return {name: value / seconds for name, value in total.items()} | {"seconds": seconds}


def test_it_is_the_mean_loss_of_the_held_out_speech(lab: Path, tmp_path: Path) -> None:
    expert = make_expert(lab, None, HELD_OUT | {"train_batch_size": 4})
    (line,) = save(expert, tmp_path)
    with torch.no_grad():
        expected = by_hand(expert, 4)
    assert line["step"] == 4
    assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert line["heads"]["hubert.2"]["l1"] == pytest.approx(expected["l1"], rel=1e-5)
    assert line["seconds"] == pytest.approx(expected["seconds"]) and line["seconds"] > 6 * 0.5
    assert sorted(line["heads"]) == sorted(expert.objective.heads)
    assert save(expert, tmp_path)[-1] == line  # the same weights, the same number; of a step done again, one line


def test_distortions_and_crops_are_the_same_each_time(lab: Path, tmp_path: Path) -> None:
    noise = {"distortion": {"additive": {"gaussian": True, "clean": False}}}
    crop = {"task": {"sequence_length": 8_000}}
    expert = make_expert(lab, None, HELD_OUT, noise | crop)
    first, second = ([batch.wave for batch in expert.validation.loader] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(wave.shape[1] == 8_000 for wave in first)
    clean = make_expert(lab, None, HELD_OUT, crop)
    assert not torch.equal(first[0], next(iter(clean.validation.loader)).wave)
    assert save(expert, tmp_path)[0]["loss"] == save(expert, tmp_path, 8)[1]["loss"]


def test_several_ranks_share_it(lab: Path) -> None:
    """Each batch is one rank's."""
    data = make_expert(lab, None, HELD_OUT | {"train_batch_size": 1}).config
    checked = data_config(lab, **HELD_OUT, train_batch_size=1, num_workers=0)
    table = read_lengths(checked, key="valid_sets")
    parts = [
        [batch.index for batch in Validation(table, checked, data.task.sequence_length, None, None, ranks).loader]
        for ranks in (Ranks(0, 2), Ranks(1, 2), Ranks())
    ]
    assert sorted(parts[0] + parts[1]) == parts[2] == list(range(6))
    assert len(parts[0]) == len(parts[1]) == 3


def test_under_a_target_cache_its_targets_are_kept_too(
    lab: Path, tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    filling = make_expert(lab, cache, HELD_OUT)
    online = save(make_expert(lab, None, HELD_OUT), tmp_path / "online")  # windows are other crops: roughly as large
    calls.clear()
    first = save(filling, tmp_path / "first")
    assert sum(calls) == 6
    assert save(filling, tmp_path / "first", 8)[-1]["loss"] == first[0]["loss"]
    assert first[0]["loss"] == pytest.approx(online[0]["loss"], rel=0.1)
    train(filling, batches(filling, 1))
    assert sum(calls) == 18
    import s3prl_ekd.pretrain.ekd.pretrain_expert as module

    monkeypatch.setattr(module, "load_teachers", lambda *a: pytest.fail("a teacher was loaded"))
    reading = make_expert(lab, cache, HELD_OUT)
    assert save(reading, tmp_path / "second")[0]["loss"] == first[0]["loss"]
    assert sum(calls) == 18


def test_held_out_speech_of_another_run_costs_no_other_targets(
    lab: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What to delete is said, and which of the two caches is full."""
    cache = tmp_path / "cache"
    with caplog.at_level("INFO"):
        save(make_expert(lab, cache, HELD_OUT), tmp_path / "run")
    assert f"the target cache {cache / 'validation'} is complete" in caplog.text
    assert f"the target cache {cache} is complete" not in caplog.text
    fewer = HELD_OUT | {"valid_minutes": 0.01}
    with pytest.raises(EkdError) as error:
        make_expert(lab, cache, fewer)
    assert f"{cache / 'validation'} holds the targets of another run: the data" in str(error.value)
    assert str(error.value).endswith("; delete only this folder (of held-out speech), and it will be filled again")
    shutil.rmtree(cache / "validation")
    make_expert(lab, cache, fewer)


def test_a_batch_without_readable_audio_does_not_keep_a_cache_from_being_full(lab: Path, tmp_path: Path) -> None:
    expert = make_expert(lab, tmp_path / "cache", HELD_OUT | {"train_batch_size": 1})
    expert.validation.table.paths[2] += ".gone"
    save(expert, tmp_path / "run")
    assert expert.valid_cache.complete
    assert "the audio of 1 could not be read" in expert.valid_cache.progress()


def test_teachers_of_repaired_held_out_audio_are_loaded_once_and_do_not_stay(lab: Path, tmp_path: Path) -> None:
    alone = HELD_OUT | {"train_batch_size": 1}  # two batches ask for them
    expert = make_expert(lab, tmp_path / "cache", alone)
    paths = expert.validation.table.paths
    gone = {number: f"{paths[number]}.gone" for number in (2, 4)}
    paths[2], paths[4] = gone[2], gone[4]
    save(expert, tmp_path / "run")
    train(expert, batches(expert, 1))
    assert "the audio of 2 could not be read" in expert.valid_cache.progress()
    paths[2], paths[4] = (path.removesuffix(".gone") for path in gone.values())
    reading = make_expert(lab, tmp_path / "cache", alone)
    assert reading.valid_teachers.teachers is None
    loads, load = [], reading.valid_teachers.load
    reading.valid_teachers.load = lambda: (loads.append(1), load())[1]
    save(reading, tmp_path / "again")
    assert "6 of 6" in reading.valid_cache.progress() and len(loads) == 1
    assert reading.valid_teachers.teachers is None


def test_targets_can_be_computed_ahead(lab: Path, tmp_path: Path, calls: list[int]) -> None:
    model = write_model(lab, tmp_path / "model.yaml", tmp_path / "cache")
    runner = yaml.safe_load((lab / "runner.yaml").read_text())
    runner["pretrain_expert"]["datarc"] |= HELD_OUT | {"num_workers": 0}
    (tmp_path / "runner.yaml").write_text(yaml.safe_dump(runner))
    assert main(["targets", "-g", str(model), "-c", str(tmp_path / "runner.yaml")]) == 0
    assert sum(calls) == 12 + 6
    expert = make_expert(lab, tmp_path / "cache", HELD_OUT)
    assert save(expert, tmp_path / "run") and sum(calls) == 18


def test_what_cannot_be_read_is_told_once_and_left_out(
    lab: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expert = make_expert(lab, None, HELD_OUT | {"train_batch_size": 2})
    paths = expert.validation.table.paths
    gone, whole = paths[:2], list(paths)
    paths[:2] = [f"{path}.gone" for path in gone]
    with caplog.at_level("WARNING"):
        lines = save(expert, tmp_path) and save(expert, tmp_path, 8)
    assert [line["loss"] for line in lines] == [lines[0]["loss"]] * 2
    assert caplog.text.count("skipped in validation") == 2
    paths[:] = whole
    assert save(expert, tmp_path, 12)[-1]["seconds"] > lines[0]["seconds"]
    caplog.clear()
    paths[:] = [f"{path}.gone" for path in whole]
    assert len(save(expert, tmp_path, 16)) == 3
    assert "no validation loss: none of its audio can be read" in caplog.text


def test_what_all_ranks_know_one_says(lab: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expert = make_expert(lab, None, HELD_OUT)
    expert.validation.table.paths[:] = [f"{path}.gone" for path in expert.validation.table.paths]
    alone = expert.validation.ranks

    class Second:
        writes, sums = False, alone.sums

    expert.validation.ranks = Second()
    assert save(expert, tmp_path) == []
    assert "skipped in validation" in caplog.text and "no validation loss" not in caplog.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"valid_sets": ["train"]}, "valid_sets: 'train' is in sets too, so it is trained on; take it out of one"),
        ({"valid_sets": ["valid", "valid"]}, "valid_sets: 'valid' is named twice"),
        ({"valid_sets": ["none"]}, "datarc.valid_sets: no {lab}/none.csv for 'none' (in that folder: "),
        ({"valid_sets": ["copy"]}, "datarc.valid_sets: 12 utterances are in sets too, and so trained on"),
    ],
)
def test_mistakes(lab: Path, data: dict[str, Any], message: str) -> None:
    (lab / "copy.csv").write_text((lab / "train.csv").read_text())
    with pytest.raises(EkdError) as error:
        make_expert(lab, None, data)
    assert message.format(lab=lab) in str(error.value)


def test_no_more_is_used_than_asked_for(lab: Path) -> None:
    """From all over the table: a corpus is sorted by speaker."""
    whole = read_lengths(data_config(lab, **HELD_OUT), key="valid_sets")
    there = whole.samples.sum() / 16_000 / 60  # minutes
    for minutes, rows in ((None, range(6)), (1.01 * there, range(6)), (0.51 * there, (0, 2, 5)), (1e-4, (0,))):
        checked = data_config(lab, **HELD_OUT, valid_minutes=minutes)
        part = read_held_out(checked, read_lengths(checked))
        assert part.paths == [whole.paths[row] for row in rows]
        assert part.samples.tolist() == [int(whole.samples[row]) for row in rows]


def test_a_long_recording_does_not_push_out_all_else() -> None:
    """Minutes are bounded, whatever the lengths: 99 clips of 6 s and one of half an hour; recordings alone."""
    minute = 60 * 16_000
    for long in (0, 50, 99):
        samples = np.full(100, minute // 10)
        samples[long] = 30 * minute
        for most in (1, 5, 9):
            rows = _spread(samples, most * minute)
            assert long not in rows and len(rows) == 10 * most and len(set(rows.tolist())) == len(rows)
    mixed = np.random.default_rng(0).integers(2 * 16_000, 30 * 16_000, 1_000)
    for most in (5, 30, 100):
        assert 0.9 * most < mixed[_spread(mixed, most * minute)].sum() / minute <= most
    assert _spread(np.full(3, 20 * minute), 30 * minute).tolist() == [0]


def test_without_held_out_speech_there_is_none(lab: Path, tmp_path: Path) -> None:
    expert = make_expert(lab, None)
    assert expert.validation is None and save(expert, tmp_path) == []
    checked = data_config(lab)
    assert read_held_out(checked, read_lengths(checked)) is None
