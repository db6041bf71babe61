"""The trainer of the embedded teachers: units, crops, mixing, the loss, and the command from speech to a teacher."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from recipes.tiny_teachers import __main__ as command
from recipes.tiny_teachers.crops import FramePlan, UnitCrops, mix_utterances
from recipes.tiny_teachers.objective import MaskedPrediction
from recipes.tiny_teachers.settings import MixSettings, UnitSettings, read_settings
from recipes.tiny_teachers.units import Units, make_units, mfcc, normalized
from s3prl_ekd.config import MaskConfig
from s3prl_ekd.data.distort import Distorter
from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.teachers import sources

SHAPE = EncoderShape(
    conv_layers=((8, 10, 5), *((8, 3, 2),) * 4, *((8, 2, 2),) * 2),
    width=16, layers=2, ffn_width=32, heads=2, pos_conv_kernel=4, pos_conv_groups=2,
)  # fmt: skip
RECIPES = Path(command.__file__).parent


@pytest.fixture
def table(tmp_path: Path) -> LengthTable:
    """Clips of two alternating sounds: what a span hides can be told from what stands around it."""
    rng = np.random.default_rng(0)
    paths, lengths = [], []
    for number in range(12):
        samples = int(rng.integers(16_000, 24_000))
        time = np.arange(samples) / 16_000
        wave = 0.3 * np.sin(2 * np.pi * 300 * (1 + number % 3) * time) * (np.floor(time / 0.2) % 2)
        wave += 0.01 * rng.standard_normal(samples)
        paths.append(str(tmp_path / f"{number}.wav"))
        soundfile.write(paths[-1], wave.astype(np.float32), 16_000, subtype="PCM_16")
        lengths.append(samples)
    return LengthTable(paths, np.array(lengths))


@pytest.fixture
def data(table: LengthTable, tmp_path: Path) -> Path:
    """The same as ``s3prl-ekd prepare`` leaves it, as far as the recipe reads it."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [f"{path},{samples}" for path, samples in zip(table.paths, table.samples, strict=True)]
    (folder / "speech.csv").write_text("\n".join(["file_path,length", *rows]) + "\n")
    runner = yaml.safe_load((RECIPES.parents[1] / "pretrain/ekd/config_runner.yaml").read_text())
    runner["pretrain_expert"]["datarc"] |= {"libri_root": "/", "file_path": str(folder), "sets": ["speech"]}
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(runner))
    return folder


def settings_file(folder: Path, **stage: object) -> Path:
    shape = SHAPE.to_dict()
    stages = [
        {"name": "mfcc", "units": [{"clusters": 4, "share": 1.0}], "steps": 30, "batch_seconds": 6.0, **stage},
        {"name": "states", "units": [
            {"encoder": "stage:mfcc", "layer": 1, "clusters": 5, "share": 1.0, "normalize": True},
            {"clusters": 3, "share": 1.0},
         ],
         "start": "stage:mfcc", "steps": 4, "batch_seconds": 6.0, "mixing": {"probability": 0.5},
         "distortion": {"additive": {"noise": ["NOISE"], "weights": {"NOISE": 2.0}}}},
    ]  # fmt: skip
    keep = ("conv_layers", "width", "layers", "ffn_width", "heads", "pos_conv_kernel", "pos_conv_groups")
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump({"summary": "a test", "shape": {key: shape[key] for key in keep}, "stages": stages}))
    return file


def write_noise(folder: Path) -> Path:
    """A folder of a noise and a room response, told apart by its manifest."""
    noise = folder / "noise"
    noise.mkdir()
    rng = np.random.default_rng(0)
    for name, samples in (("rain", 16_000), ("room", 800)):
        soundfile.write(noise / f"{name}.wav", 0.1 * rng.standard_normal(samples), 16_000)
    (noise / "manifest.tsv").write_text("path\tkind\nrain.wav\tnoise\nroom.wav\trir\n")
    return noise


def test_mfcc_have_a_frame_for_each_of_the_encoders() -> None:
    for samples in (400, 719, 720, 16_000, 23_456):
        frames = mfcc(np.random.default_rng(0).standard_normal(samples).astype(np.float32))
        assert frames.shape == (SHAPE.frames(samples), 39) and np.isfinite(frames).all()


def test_units_are_kept_and_are_of_one_corpus(table: LengthTable, tmp_path: Path) -> None:
    settings, file = UnitSettings(clusters=3, share=0.5), tmp_path / "units.npz"
    made_by = {"seed": 0, "units": settings.model_dump()}
    first = make_units(table, settings, None, SHAPE, made_by, file)
    assert len(first.values) == sum(SHAPE.frames(int(n)) for n in table.samples)
    assert set(first.values.tolist()) == {0, 1, 2} and 1 < first.perplexity <= 3
    shorter = LengthTable(table.paths[:-1], table.samples[:-1])
    for corpus, by in ((shorter, made_by), (table, made_by | {"encoder": "abc"}), (table, made_by | {"seed": 1})):
        with pytest.raises(EkdError, match=r"units\.npz: made with other settings, weights or audio"):
            make_units(corpus, settings, None, SHAPE, by, file)
    Path(table.paths[0]).unlink()  # read from the file, not made again
    np.testing.assert_array_equal(make_units(table, settings, None, SHAPE, made_by, file).values, first.values)


def test_normalised_features_are_what_is_clustered(table: LengthTable, tmp_path: Path) -> None:
    wave = np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    frames = normalized(lambda wave: np.pad(mfcc(wave), ((0, 0), (0, 1))))(wave)
    assert not frames[:, -1].any()  # what does not vary is 0, not NaN
    np.testing.assert_allclose(frames.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(frames[:, :-1].std(0), 1, rtol=1e-4)
    spread = []
    for normalize in (False, True):
        settings, file = UnitSettings(clusters=4, share=1.0, normalize=normalize), tmp_path / f"{normalize}.npz"
        make_units(table, settings, None, SHAPE, {"seed": 0}, file)
        with np.load(file) as made:
            spread.append(np.abs(made["centres"]).max())
    assert spread[1] < 4 < spread[0]  # in standard deviations of an utterance, or as MFCC come


def test_a_crops_units_are_those_of_its_frames(table: LengthTable) -> None:
    """Units that are frame numbers tell where a crop begins; its first sample must be that frame's."""
    counts = np.array([SHAPE.frames(int(n)) for n in table.samples])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    numbers = np.concatenate([np.arange(count) for count in counts]).astype(np.int16)
    plan = FramePlan(table.samples, 1, 6.0, 16_000, seed=0)
    dataset = UnitCrops(table, plan, [Units(numbers, offsets, 100), Units(-1 - numbers, offsets, 9)], SHAPE)
    seen = 0
    for spec in plan:
        batch = dataset[spec]
        assert batch.units.shape == (len(spec.items), 2, SHAPE.frames(spec.samples))
        for row, (item, start) in enumerate(zip(spec.items, spec.starts, strict=True)):
            assert start % 320 == 0
            known = batch.units[row, 0][batch.units[row, 0] >= 0]
            assert torch.equal(batch.units[row, 1][: len(known)], -1 - known)  # the other codebook's, side by side
            assert torch.equal(known, torch.arange(len(known)) + start // 320)
            whole, _ = soundfile.read(table.paths[item], dtype="float32")
            np.testing.assert_array_equal(batch.wave[row].numpy(), whole[start : start + spec.samples])
            seen += 1
    assert seen == len(table.paths)


def test_mixing_adds_a_part_at_the_drawn_ratio() -> None:
    wave = torch.randn(4, 8_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mix_utterances(wave, MixSettings(probability=0.0), np.random.default_rng(0)), wave)
    settings = MixSettings(probability=1.0, longest=0.5, ratio=[10.0, 10.0])
    added = mix_utterances(wave, settings, np.random.default_rng(0)) - wave
    for clip, part in zip(wave, added, strict=True):
        heard = part[part != 0]
        assert 0 < len(heard) <= 4_000
        assert 10 * torch.log10(clip.square().mean() / heard.square().mean()) == pytest.approx(10.0, abs=0.1)
    assert torch.equal(mix_utterances(wave[:1], settings, np.random.default_rng(0)), wave[:1])  # nobody to mix with


def test_only_hidden_frames_count_unless_asked() -> None:
    """The loss is the cross-entropy of masked frames, computed here with the masks that were drawn."""
    torch.manual_seed(0)
    wave, mask = torch.randn(3, 8_000), MaskConfig(probability=0.1, length=3)
    frames = SHAPE.frames(8_000)
    units = torch.stack([torch.randint(0, 5, (3, frames)), torch.randint(0, 4, (3, frames))], dim=1)
    units[..., -2:] = -1
    model = MaskedPrediction(Encoder(SHAPE), [5, 4], mask).eval()
    torch.manual_seed(7)
    found = model(wave, units)
    torch.manual_seed(7)
    hidden = model.mask.draw(3, frames, wave.device)
    out = model.encoder(
        wave, states=[2], replace=lambda f: torch.where(hidden.unsqueeze(-1), model.mask.vector, f)
    ).states[2]
    scores = [out @ linear.weight.t() + linear.bias for linear in model.classifiers]
    losses = torch.stack(
        [
            -one.log_softmax(-1).gather(-1, units[:, book].clamp(min=0).unsqueeze(-1)).squeeze(-1)
            for book, one in enumerate(scores)
        ],
        dim=1,
    )
    known, hidden = units >= 0, hidden.unsqueeze(1)
    torch.testing.assert_close(found.loss, losses[hidden & known].mean())
    right = (torch.stack([one.argmax(-1) for one in scores], dim=1) == units).float()
    torch.testing.assert_close(found.heard_accuracy, right[~hidden & known].mean())
    model.heard_weight = 0.5
    torch.manual_seed(7)
    both = model(wave, units)
    torch.testing.assert_close(both.loss, losses[hidden & known].mean() + 0.5 * losses[~hidden & known].mean())
    torch.testing.assert_close(both.masked_loss, found.loss.detach())


def test_the_command_makes_a_teacher_and_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = settings_file(tmp_path, heard_weight=1.0, lr=5e-3)
    noise = write_noise(tmp_path)
    words = [str(file), "--data", str(data), "--noise", str(noise), "--precision", "fp32", "--workers", "0"]
    assert command.main([*words, "--out", str(tmp_path / "a")]) == 0
    folder = tmp_path / "a/small/teacher"
    record = json.loads((folder / "training.json").read_text())
    assert [stage["stage"]["name"] for stage in record["stages"]] == ["mfcc", "states"]
    assert str(tmp_path) not in json.dumps(record["stages"])  # nobody's paths are shipped
    assert record["summary"] == "a test" and record["stages"][0]["last"]["loss"] < np.log(4)

    # transformers' own class reads the folder and finds the same states
    from transformers import HubertModel

    wave = torch.randn(1, 8_000, generator=torch.Generator().manual_seed(0))
    encoder = sources.load(sources.describe(str(folder)))
    with torch.no_grad():
        theirs = HubertModel.from_pretrained(folder, dtype=torch.float32).eval()(wave, output_hidden_states=True)
        ours = encoder(wave).states
    torch.testing.assert_close(ours[2], theirs.hidden_states[2], rtol=1e-4, atol=1e-4)

    # stopped in the first stage after its checkpoint, the same command ends with the same weights
    from recipes.tiny_teachers import train

    class Stop(Exception):
        pass

    write, stopped = train.Stage._save, []

    def save_and_stop(stage: train.Stage, batch: object) -> None:
        write(stage, batch)
        if stage.done.step == 10 and not stopped:
            stopped.append(stage)
            raise Stop

    monkeypatch.setattr(train.Stage, "_save", save_and_stop)
    monkeypatch.setattr(command, "Machine", lambda *args: train.Machine(*args, log_every=5, save_every=10))
    with pytest.raises(Stop):
        command.main([*words, "--out", str(tmp_path / "b")])
    with (tmp_path / "b/small/mfcc/metrics.jsonl").open("a") as stream:
        stream.write('{"step": 15, "lo')  # as a full disk leaves it
    assert command.main([*words, "--out", str(tmp_path / "b")]) == 0
    again = sources.load(sources.describe(str(tmp_path / "b/small/teacher")))
    for (name, ours), theirs in zip(encoder.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    lines = [json.loads(line) for line in (tmp_path / "b/small/mfcc/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 31, 5))

    # another setting in the same folder is refused, before anything is lost
    for changes, message in (
        ({"lr": 1e-3}, "mfcc/state.pt: made with other settings"),
        ({"units": [{"clusters": 3}]}, "mfcc/units-0.npz: made with other settings"),
    ):
        settings_file(tmp_path, **{"heard_weight": 1.0, "lr": 5e-3} | changes)
        assert command.main([*words, "--out", str(tmp_path / "b")]) == 2
        assert message in capsys.readouterr().err


def test_a_teacher_as_wide_as_its_convolutions(data: Path, tmp_path: Path) -> None:
    """transformers always has a projection: without one its folder could not be read, by the next stage or anybody."""
    values = yaml.safe_load(settings_file(tmp_path, steps=2).read_text())
    values["shape"]["width"] = 8
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    words = [str(tmp_path / "small.yaml"), "--data", str(data), "--noise", str(write_noise(tmp_path)), "--workers", "0"]
    assert command.main([*words, "--out", str(tmp_path)]) == 0
    assert sources.load(sources.describe(str(tmp_path / "small/teacher"))).projection is not None


def test_mistakes_are_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(data), "--out", str(tmp_path / "out")]

    def message(file: Path) -> str:
        assert command.main([str(file), *words]) == 2
        return capsys.readouterr().err

    assert "stepz: unknown key; did you mean steps?" in message(settings_file(tmp_path, stepz=3))
    assert "stages[0].start: stage:later is no earlier stage" in message(settings_file(tmp_path, start="stage:later"))
    noisy = {"additive": {"noise": ["NOISE"]}}
    assert "stages[0].distortion.additive.noise: give --noise DIR" in message(settings_file(tmp_path, distortion=noisy))
    assert "no such configuration file" in message(tmp_path / "none.yaml")
    assert "crop_seconds: input should be greater than" in message(settings_file(tmp_path, crop_seconds=0.001))
    file = settings_file(tmp_path)
    values = yaml.safe_load(file.read_text())
    for seed, expected in ((-1, "greater than or equal to 0"), (2**32, "less than 4294967296")):
        file.write_text(yaml.safe_dump(values | {"seed": seed}))
        assert f"seed: input should be {expected}, found {seed}" in message(file)
    values["stages"] = values["stages"][:1]

    def with_shape(**shape: object) -> Path:
        file.write_text(yaml.safe_dump(values | {"shape": values["shape"] | shape}))
        return file

    assert "shape.conv_layers: a frame every 160 samples" in message(
        with_shape(conv_layers=[[8, 10, 5], *[[8, 3, 2]] * 4, [8, 2, 2], [8, 2, 1]])
    )
    assert "shape.normalize: clips are not normalised" in message(with_shape(normalize=True))
    assert not (tmp_path / "out").exists()
    values["stages"][0]["units"][0] |= {"encoder": "random:hubert_base", "layer": 13}
    assert "stages[0].units[0].layer: 13 > 12" in message(with_shape())
    values["stages"][0]["units"][0] |= {"encoder": None}
    values["stages"][0]["start"] = "random:hubert_base"
    assert "stages[0].start: conv_layers is" in message(with_shape())
    values["stages"][0] |= {"start": None, "units": [{"clusters": 4}, {"clusters": 4, "encoder": "embedded:huge"}]}
    assert "stages[0].units[1].encoder: " in message(with_shape())
    assert not (tmp_path / "out").exists()  # every mistake shows before anything is computed


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_shipped_recipes_are_sound(file: Path, tmp_path: Path) -> None:
    settings = read_settings(file)
    shape = settings.encoder_shape
    assert shape.hop == 320 and shape.layers == 6
    assert (shape.attention == "gated_relative") == ("wavlm" in file.stem)
    noise = str(write_noise(tmp_path))
    for stage in settings.stages:
        distortion = command.with_noise(stage, noise, "here").distortion
        assert (distortion is None) == (file.stem == "tiny_hubert")
        if distortion is not None:
            assert Distorter(distortion).additive[noise] > 0
