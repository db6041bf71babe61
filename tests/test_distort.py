"""Draws and who hears what: shares, determinism whatever the workers and the batch, the three setups, training."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
import torch
import yaml
from export_student import SMALL
from scipy.signal import correlate, fftconvolve

from s3prl_ekd.audio import AUDIO_SUFFIXES, read_audio
from s3prl_ekd.config import AdditiveConfig, DataConfig, DistortionConfig, NonAdditiveConfig, load_model_config
from s3prl_ekd.data.batches import Batch, CropDataset, make_loader
from s3prl_ekd.data.distort import STUDENT, TEACHER, Distorter
from s3prl_ekd.data.filters import hertz_to_mel
from s3prl_ekd.data.lengths import read_lengths
from s3prl_ekd.data.plan import BatchPlan, BatchSpec
from s3prl_ekd.errors import EkdError
from s3prl_ekd.teachers.stand_ins import write_stand_ins
from s3prl_ekd.variants import packaged

if TYPE_CHECKING:
    from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert

CLIPS = 14


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made speech-like clips with their length CSV, two noise folders and a folder of room responses."""
    folder = tmp_path_factory.mktemp("corpus")
    rng, rows = np.random.default_rng(0), []
    for i in range(CLIPS):
        time = np.arange(9_000 + 500 * i) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * (120 + 20 * i) * time) * np.sin(2 * np.pi * 3 * time) ** 2
        soundfile.write(folder / f"{i}.wav", tone, 16_000, subtype="FLOAT")
        rows.append(f"{i},{i}.wav,{len(tone)},")
    (folder / "train.csv").write_text(",file_path,length,label\n" + "\n".join(rows) + "\n")
    for name, seconds in (("musan/music/a.wav", 3.0), ("musan/noise/b.wav", 0.2), ("wham/c.wav", 2.0)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, 0.1 * rng.standard_normal(int(16_000 * seconds)), 16_000)
    (folder / "rooms").mkdir()
    for i in range(3):
        tail = 0.2 * rng.standard_normal(4_000) * np.exp(-np.arange(4_000) / 900)
        soundfile.write(
            folder / "rooms" / f"{i}.wav", np.concatenate([np.zeros(60), [0.9], tail.clip(-0.8, 0.8)]), 16_000
        )
    return folder


def recipe(corpus: Path, **keys: object) -> DistortionConfig:
    """The authors': {MUSAN, WHAM!, Gaussian, clean} and {reverb, pitch, band-reject, clean}."""
    return DistortionConfig(
        additive=AdditiveConfig(noise=[str(corpus / "musan"), str(corpus / "wham")]),
        non_additive=NonAdditiveConfig(reverb=[str(corpus / "rooms")]),
        **keys,
    )


def data_config(corpus: Path, workers: int = 0, batch: int = 4) -> DataConfig:
    paths = {"libri_root": str(corpus), "file_path": str(corpus), "sets": ["train"]}
    return DataConfig(num_workers=workers, train_batch_size=batch, **paths)


def batches(corpus: Path, config: DistortionConfig | None, workers: int = 0, epochs: int = 2) -> list[Batch]:
    data = data_config(corpus, workers)
    distorter = Distorter(config) if config else None
    loader, _ = make_loader(read_lengths(data), data, 10_000, distorter)
    return [batch for _ in range(epochs) for batch in loader]


def test_every_choice_has_its_share_and_every_number_its_range(corpus: Path) -> None:
    distorter = Distorter(recipe(corpus))
    draws = [distorter.draw(epoch, item) for epoch in range(4) for item in range(1_500)]
    for kind, choices in (("additive", [str(corpus / "musan"), str(corpus / "wham"), "gaussian", "clean"]),
                          ("non_additive", ["reverb", "pitch", "band_reject", "clean"])):  # fmt: skip
        counts = Counter(getattr(draw, kind) for draw in draws)
        assert set(counts) == set(choices)
        assert all(abs(count / len(draws) - 0.25) < 0.03 for count in counts.values())
    pairs = Counter((draw.additive, draw.non_additive) for draw in draws)
    assert len(pairs) == 16 and min(pairs.values()) > 0.6 * len(draws) / 16  # the two are drawn independently
    snrs = Counter(draw.snr for draw in draws)
    assert sorted(snrs) == list(range(10, 20)) and min(snrs.values()) > 0.07 * len(draws)
    cents = [draw.cents for draw in draws]
    assert min(cents) < -480 and max(cents) > 480 and max(map(abs, cents)) <= 500
    low, high = np.array([list(map(hertz_to_mel, draw.band)) for draw in draws]).T / hertz_to_mel(8_000)
    for uniform in ((high - low) / 0.053, low / (1 - (high - low))):  # a band's width, and its place
        quarters, _ = np.histogram(uniform, bins=4, range=(0, 1 + 1e-9))
        assert quarters.sum() == len(draws) and abs(quarters / len(draws) - 0.25).max() < 0.03


def test_weights_ranges_and_switches_are_obeyed(corpus: Path) -> None:
    noise = str(corpus / "musan")
    config = DistortionConfig(
        additive=AdditiveConfig(noise=[noise], gaussian=False, snr=[3, 3], weights={noise: 3.0}),
        non_additive=NonAdditiveConfig(pitch_cents=0, weights={"clean": 0}),
    )
    draws = [Distorter(config).draw(0, item) for item in range(2_000)]
    counts = Counter(draw.additive for draw in draws)
    assert set(counts) == {noise, "clean"} and abs(counts[noise] / 2_000 - 0.75) < 0.04
    assert {draw.snr for draw in draws} == {3} and {draw.non_additive for draw in draws} == {"band_reject"}
    only = Distorter(DistortionConfig(additive=AdditiveConfig(clean=False)))
    assert {(draw.additive, draw.non_additive) for draw in map(only.draw, range(50), range(50))} == {
        ("gaussian", "clean")
    }


def test_a_draw_depends_on_seed_epoch_utterance_and_role_alone(corpus: Path) -> None:
    distorter, again = Distorter(recipe(corpus)), Distorter(recipe(corpus))
    backwards = {item: again.draw(1, item) for item in reversed(range(50))}
    assert all(distorter.draw(1, item) == backwards[item] for item in range(50))
    other = Distorter(recipe(corpus, seed=1))
    others = [other.draw(1, 7), distorter.draw(2, 7), distorter.draw(1, 8), distorter.draw(1, 7, TEACHER)]
    for draw in (*others, distorter.draw(1, 7, window=48_000)):
        assert draw != distorter.draw(1, 7, STUDENT)


def test_the_drawn_snr_is_what_a_clip_gets(corpus: Path) -> None:
    distorter = Distorter(recipe(corpus))
    clip, seen = soundfile.read(corpus / "5.wav", dtype="float32")[0], Counter()
    for item in range(60):
        draw = dataclasses.replace(distorter.draw(0, item), non_additive="clean")
        noise = distorter.apply(clip, draw).astype(np.float64) - clip
        seen[draw.additive] += 1
        if draw.additive == "clean":
            assert not noise.any()
        else:
            measured = 10 * np.log10((clip.astype(np.float64) ** 2).sum() / (noise**2).sum())
            assert measured == pytest.approx(draw.snr, abs=0.1)
    assert len(seen) == 4


@pytest.mark.parametrize("setup", ["clean_teacher", "independent", "same"])
def test_workers_do_not_change_what_is_heard(corpus: Path, setup: str) -> None:
    reference = batches(corpus, recipe(corpus, setup=setup))
    for workers in (1, 2):
        found = batches(corpus, recipe(corpus, setup=setup), workers)
        assert len(found) == len(reference) == 2 * 4
        for a, b in zip(reference, found, strict=True):
            assert torch.equal(a.wave, b.wave) and torch.equal(a.teacher_wave, b.teacher_wave)
            assert a.wave.dtype == a.teacher_wave.dtype == torch.float32
            assert torch.isfinite(a.wave).all() and a.wave.abs().max() < 3


def test_the_company_in_a_batch_changes_nothing(corpus: Path) -> None:
    data = data_config(corpus)
    table = read_lengths(data)
    dataset = CropDataset(table, BatchPlan(table.samples, 4), Distorter(recipe(corpus, setup="independent")))
    together = dataset[BatchSpec(3, 0, tuple(range(CLIPS)), (100,) * CLIPS, 8_000)]
    for item in range(CLIPS):
        alone = dataset[BatchSpec(3, 5, (item,), (100,), 8_000)]
        assert torch.equal(alone.wave[0], together.wave[item])
        assert torch.equal(alone.teacher_wave[0], together.teacher_wave[item])


def test_who_hears_what(corpus: Path) -> None:
    clean = batches(corpus, None)
    heard = {setup: batches(corpus, recipe(corpus, setup=setup)) for setup in ("clean_teacher", "independent", "same")}
    assert all(batch.teacher_wave is batch.wave for batch in clean + heard["same"])  # moved to the device once
    for i, batch in enumerate(clean):
        assert torch.equal(heard["clean_teacher"][i].teacher_wave, batch.wave)
        assert torch.equal(heard["clean_teacher"][i].wave, heard["same"][i].wave)
        assert torch.equal(heard["clean_teacher"][i].wave, heard["independent"][i].wave)
    rows = [pair for batch in heard["independent"] for pair in zip(batch.wave, batch.teacher_wave, strict=True)]
    differ = sum(not torch.equal(student, teacher) for student, teacher in rows)
    assert differ >= len(rows) - 2  # both clean: 1 of 256
    distorted = [not torch.equal(a, b) for x, y in zip(heard["same"], clean, strict=True)
                 for a, b in zip(x.wave, y.wave, strict=True)]  # fmt: skip
    assert 0.8 < np.mean(distorted) <= 1  # 1 of 16 stays clean
    first, second = ({tuple(w[:50].tolist()) for b in heard["same"] if b.epoch == e for w in b.wave} for e in (0, 1))
    assert not first & second  # an utterance sounds different in the next epoch


def test_pinning_keeps_what_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())  # no GPU here
    wave = torch.ones(2, 3)
    assert (same := Batch(wave, 0, 0).pin_memory()).teacher_wave is same.wave
    apart = Batch(wave, 0, 0, [], torch.zeros(2, 3)).pin_memory()
    assert not apart.teacher_wave.any() and apart.wave.all()


def test_a_noise_file_that_breaks_during_training_is_named_and_left_out(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    noise = tmp_path / "noise" / "a.wav"
    soundfile.write(noise, np.full(100, 0.1), 16_000)
    distorter = Distorter(
        DistortionConfig(additive=AdditiveConfig(noise=[str(noise.parent)], gaussian=False, clean=False))
    )
    noise.write_bytes(b"gone")
    table = read_lengths(data_config(corpus))
    plan = BatchPlan(table.samples, 4)
    batch = CropDataset(table, plan, distorter)[next(iter(plan))]
    assert batch.wave.shape[0] == 4 and torch.equal(batch.wave, batch.teacher_wave)
    assert len(batch.skipped) == 4 and len(set(batch.skipped)) == 1  # one file is at fault, and it is named once
    assert batch.skipped[0].startswith(f"a clip's distortion: {noise}: cannot be read as audio")


MISTAKES = {
    "distortion.setup: input should be 'clean_teacher', 'independent' or 'same'": {"setup": "clean"},
    "distortion.additive.snr_range: unknown key": {"additive": {"snr_range": [1, 2]}},
    "distortion.additive: snr: [19, 10] must be [lowest, highest]": {"additive": {"snr": [19, 10]}},
    "distortion.additive.snr[0]: input should be a valid integer": {"additive": {"snr": [9.5, 10]}},
    "distortion.additive.snr[1]: input should be less than or equal to 100": {
        "additive": {"snr": [10, 1500]}
    },  # centibels
    "distortion.additive: a source is listed twice": {"additive": {"noise": ["a", "a"]}},
    "distortion.additive.weights.clean: input should be greater than or equal to 0": {
        "additive": {"weights": {"clean": -1.0}}
    },
    "distortion.non_additive.pitch_cents: input should be less than or equal to 700": {
        "non_additive": {"pitch_cents": 5_000}
    },
    "distortion.non_additive.band_rejct: unknown key; did you mean band_reject": {"non_additive": {"band_rejct": True}},
}


@pytest.mark.parametrize("expected", MISTAKES)
def test_mistakes_in_the_section_name_file_and_key(tmp_path: Path, expected: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"base": "config_model.yaml", "distortion": MISTAKES[expected]}))
    with pytest.raises(EkdError) as caught:
        load_model_config(file)
    assert str(caught.value).startswith(f"{file}: {expected}") and "\n" not in str(caught.value)


def test_the_section_is_off_by_default_and_survives_a_checkpoint(corpus: Path) -> None:
    values = load_model_config(packaged("config_model.yaml")).model_dump(mode="json")
    assert values["distortion"] is None
    config = load_model_config({**values, "distortion": recipe(corpus, setup="same").model_dump(mode="json")})
    assert load_model_config(config.model_dump(mode="json")).distortion == recipe(corpus, setup="same")


def make_expert(corpus: Path, tmp_path: Path, distortion: dict | None) -> UpstreamPretrainExpert:
    pytest.importorskip("s3prl")
    from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert

    teachers = write_stand_ins(tmp_path / "teachers")
    model = {
        "base": "config_model.yaml",
        "ekd": {"teachers": [{"name": n, "source": str(p), "layers": [2, 6]} for n, p in teachers.items()]},
        "student": SMALL,
        "task": {"sequence_length": 8_000},
    }
    if distortion is not None:
        model["distortion"] = distortion
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(model))
    torch.manual_seed(0)
    return UpstreamPretrainExpert(data_config(corpus).model_dump(), str(tmp_path / "model.yaml"), device="cpu")


@pytest.mark.parametrize("setup", ["clean_teacher", "independent", "same"])
def test_the_pretrain_task_learns_from_distorted_speech(corpus: Path, tmp_path: Path, setup: str) -> None:
    """The runner's loop: the teachers hear what the setup says, and the loss falls."""
    expert = make_expert(corpus, tmp_path, recipe(corpus, setup=setup).model_dump(mode="json")).train()
    heard: list[torch.Tensor] = []
    expert.teachers.register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0]))
    optimizer, losses = torch.optim.AdamW(expert.model.parameters(), lr=1e-3), []
    clean = [batch.wave for batch in make_expert(corpus, tmp_path, None).get_train_dataloader()]
    for _ in range(4):
        for batch in expert.get_train_dataloader():
            loss, records = expert(batch, records={}, global_step=len(losses) + 1, log_step=1)
            assert torch.equal(heard[-1], batch.teacher_wave)
            if setup == "clean_teacher" and len(losses) < len(clean):
                assert torch.equal(heard[-1], clean[len(losses)]) and not torch.equal(batch.wave, clean[len(losses)])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    assert np.isfinite(losses).all() and np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])
    assert records["ekd"]["skipped_files"] == 0


def test_a_wrong_noise_folder_stops_before_a_teacher_is_loaded(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_expert(corpus, tmp_path, None)
    import s3prl_ekd.pretrain.ekd.pretrain_expert as module

    monkeypatch.setattr(module, "load_teachers", lambda *a: pytest.fail("a teacher was loaded"))
    with pytest.raises(EkdError, match=rf"{tmp_path}/model.yaml: distortion.additive.noise\[0\]: no folder.*/nowhere"):
        make_expert(corpus, tmp_path, {"additive": {"noise": ["/nowhere"]}})


@pytest.mark.realspeech
def test_real_noise_and_rooms_on_real_speech(speech: Path) -> None:
    """The manifest's 101 noises and 9 rooms: the drawn SNR is measured, an impulse and a voice stay where they were."""
    folder = str(speech / "noise")
    noise_only = AdditiveConfig(noise=[folder], gaussian=False, clean=False)
    distorter = Distorter(DistortionConfig(additive=noise_only, non_additive=NonAdditiveConfig(reverb=[folder])))
    assert distorter.rooms is not None
    assert (len(distorter.noises[folder].files), len(distorter.rooms.files)) == (101, 9)
    clip = read_audio(min(file for file in (speech / "asr").rglob("*") if file.suffix in AUDIO_SUFFIXES))
    for item in range(101):
        draw = dataclasses.replace(distorter.draw(0, item), non_additive="clean", noise_file=item / 101 + 1e-6)
        noise = (distorter.apply(clip, draw) - clip).astype(np.float64)
        if noise.any():  # a few crops of ESC-10 are digital silence
            measured = 10 * np.log10((clip.astype(np.float64) ** 2).sum() / (noise**2).sum())
            assert measured == pytest.approx(draw.snr, abs=0.1), distorter.noises[folder].files[item]
    impulse = np.zeros(32_000, dtype=np.float32)
    impulse[10_000] = 0.5
    for room in range(9):
        draw = dataclasses.replace(distorter.draw(0, 0), additive="clean", non_additive="reverb", room=room / 9 + 1e-6)
        heard = distorter.apply(impulse, draw)
        # one of these recordings is clipped: its direct path is two samples long
        assert heard[10_000] > 0.999 * np.abs(heard).max() and np.abs(heard[:10_000]).max() < 1e-4
    smooth = np.hanning(800)
    for cents in (-500, -250, 250, 500):
        draw = dataclasses.replace(draw, non_additive="pitch", cents=cents)
        before, after = (
            fftconvolve(w.astype(np.float64) ** 2, smooth, "same") for w in (clip, distorter.apply(clip, draw))
        )
        lag = int(correlate(after - after.mean(), before - before.mean(), method="fft").argmax()) - (len(clip) - 1)
        assert abs(lag) < 160  # half a frame


def test_noise_and_rooms_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3prl copies the configuration into the experiment's folder, from where a run may be gone on with."""
    for name in ("noise", "rooms"):
        (tmp_path / name).mkdir()
    additive = {"noise": ["noise"], "weights": {"noise": 2.0, "clean": 1.0}}
    section = {"additive": additive, "non_additive": {"reverb": ["rooms"]}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"base": "config_model.yaml", "distortion": section}))
    monkeypatch.chdir(tmp_path)
    found = load_model_config("mine.yaml").distortion
    assert found.additive.noise == [str(tmp_path / "noise")]
    assert found.additive.weights == {str(tmp_path / "noise"): 2.0, "clean": 1.0}
    assert found.non_additive.reverb == [str(tmp_path / "rooms")]
