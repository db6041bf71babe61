"""Tests on distorted audio: what the upstream hears, what the launcher refuses, and the command with its table."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from corpora_lab import audio
from evaluate_stand_in import calls, evaluate, files, up
from matplotlib.figure import Figure

from s3prl_ekd.bridge.distorted_test import DistortedAudio, distorted_audio
from s3prl_ekd.cli import main
from s3prl_ekd.config.loading import load_distortion
from s3prl_ekd.data.distort import Distorter
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.robustness import note, rows_of
from s3prl_ekd.evaluate.scores_file import read_models
from s3prl_ekd.report import score_figures
from s3prl_ekd.report.score_figures import robustness_png

NOISY = "distortion: {seed: 3, additive: {noise: [noise], gaussian: false, clean: false, snr: [0, 0]}}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two noises and a file that mixes one of them in at 0 dB."""
    monkeypatch.chdir(tmp_path)
    for name, samples in (("hum", 9000), ("hiss", 7000)):
        audio(tmp_path / "noise" / f"{name}.wav", samples)
    (tmp_path / "noisy.yaml").write_text(NOISY)
    return tmp_path


# ---------------------------------------------------------------------------------------------------- what is heard


def test_a_clip_sounds_the_same_wherever_it_comes(here: Path) -> None:
    """By its samples alone: other clips of the batch, order and process do not matter; a seed does."""
    clips = [torch.randn(length, generator=torch.Generator().manual_seed(length)) for length in (4000, 6000)]
    ears = DistortedAudio("noisy.yaml")
    first, second = (ears.hear(clip) for clip in clips)
    assert torch.equal(DistortedAudio("noisy.yaml").hear(clips[1]), second)
    for clip, heard in zip(clips, (first, second), strict=True):
        assert heard.shape == clip.shape and heard.dtype == clip.dtype
        power = 10 * torch.log10(clip.square().mean() / (heard - clip).square().mean())
        assert power == pytest.approx(0, abs=0.01)
    (here / "noisy.yaml").write_text(NOISY.replace("seed: 3", "seed: 4"))
    assert not torch.equal(DistortedAudio("noisy.yaml").hear(clips[0]), first)


def test_an_upstream_hears_distorted_clips() -> None:
    class Upstream(torch.nn.Module):
        def forward(self, wavs: list[torch.Tensor], more: int = 0) -> tuple[list[torch.Tensor], int]:
            return wavs, more

    upstream, ears = Upstream(), DistortedAudio("noisy.yaml")
    ears.put_before(upstream)
    clips = [torch.randn(4000), torch.randn(5000)]
    heard, more = upstream(clips, 5)
    assert more == 5 and all(torch.equal(one, ears.hear(clip)) for one, clip in zip(heard, clips, strict=True))


def test_the_section_alone_or_in_a_model_configuration(here: Path) -> None:
    (here / "model.yaml").write_text("base: embedded.yaml\n" + NOISY)
    alone, whole = load_distortion(Path("noisy.yaml")), load_distortion(Path("model.yaml"))
    assert alone == whole
    assert alone.additive is not None and alone.additive.noise == [str(here / "noise")]  # from any folder
    assert {file.name for file in Distorter(alone).source_files()} == {"hum.wav", "hiss.wav"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ekd: {}\n", "noisy.yaml: distortion: the section is missing"),
        ("distortion: 3\n", "noisy.yaml: distortion: the section is missing"),
        ("distortion: {}\n", "noisy.yaml: distortion: changes nothing; it has neither additive nor non_additive"),
        ("base: embedded.yaml\ndistortion: {seed: 1}\n", "noisy.yaml: distortion: changes nothing"),
        (NOISY.replace("snr", "snrs"), "noisy.yaml: distortion.additive.snrs: "),
        (NOISY.replace("[noise]", "[nowhere]"), "noisy.yaml: distortion.additive.noise[0]: "),
    ],
)
def test_a_file_with_a_mistake_is_one_line(text: str, message: str, here: Path) -> None:
    (here / "noisy.yaml").write_text(text)
    with pytest.raises(EkdError, match=re.escape(message)):
        distorted_audio({"runner": {"distortion": "noisy.yaml"}}, "ctc", False, False, "x.yaml")
    assert main(["robustness", str(here), "--distortion", "noisy.yaml"]) == 2


def test_what_the_launcher_refuses(here: Path) -> None:
    config = {"runner": {"distortion": "noisy.yaml"}}
    with pytest.raises(EkdError, match="x.yaml: runner.distortion: is for a test"):
        distorted_audio(config, "ctc", True, False, "x.yaml")
    with pytest.raises(EkdError, match="x.yaml: runner.distortion: give -p another DIR for the predictions"):
        distorted_audio(config, "ctc", False, True, "x.yaml")
    for task in ("separation_stft", "enhancement_stft2"):  # under noise at -20 dB the score was the clean mixture's
        with pytest.raises(EkdError, match=f"x.yaml: runner.distortion: not possible for {task}: s3prl masks"):
            distorted_audio(config, task, False, False, "x.yaml")
    for wrong in ("nowhere.yaml", 3):
        with pytest.raises(EkdError, match=rf"x.yaml: runner.distortion: {wrong!r}: expected a YAML file"):
            distorted_audio({"runner": {"distortion": wrong}}, "ctc", False, False, "x.yaml")
    assert distorted_audio({"runner": {}}, "ctc", True, True, "x.yaml") is None
    assert distorted_audio(config, "ctc", False, False, "x.yaml") is not None
    assert config["runner"]["distortion"] == str(here / "noisy.yaml")


# ------------------------------------------------------------------------------------------------------- the command


def robustness(out: Path, *words: str) -> int:
    return main(["robustness", str(out), "--device", "cpu", *words])


def test_each_tested_run_is_tested_under_each_condition(data, tmp_path, stand_in, capsys):
    """ER over its folds, SID over two seeds; the clean predictions stay, and nothing is done twice."""
    assert evaluate(data, tmp_path, "--seeds", "1,2", upstream=up("fbank", "mel"), tasks="pr,sid,er") == 0
    out = tmp_path / "out"
    clean = files(out)
    capsys.readouterr()
    assert robustness(out, "--distortion", "noisy.yaml", "--dry-run") == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 2 * 2 * (1 + 1 + 2)
    assert all(f"-o config.runner.distortion={tmp_path / 'noisy.yaml'}" in line for line in commands)
    assert files(out) == clean
    assert robustness(out, "--distortion", "noisy.yaml", "--distortion", "loud=noisy.yaml") == 0
    printed = capsys.readouterr().out
    assert "32 of 32 tests to do, on cpu" in printed and "fbank/sid-seed2 loud" in printed
    assert {path: text for path, text in files(out).items() if path in clean and path.name != "tests.txt"} == {
        path: text for path, text in clean.items() if path.name != "tests.txt"
    }
    table = (out / "robustness.md").read_text()
    assert "| fbank | clean | 33.33 ± 0.00 | 50.00 ± 0.00 | 50.00 ± 0.00 |" in table
    assert "| fbank | noisy | 33.33 ± 0.00 | 0.00 ± 0.00 | 0.00 ± 0.00 |" in table
    assert table.count("| loud |") == 2
    rows = re.findall(r"\| fbank \| (\S+) \|", table)
    assert rows == ["clean", "loud", "noisy"]
    done = calls(out / "fbank", "tests.txt")
    assert robustness(out, "--distortion", "noisy.yaml", "--tasks", "er") == 0
    assert "0 of 8 tests to do" in capsys.readouterr().out and calls(out / "fbank", "tests.txt") == done
    page = tmp_path / "report.html"
    assert main(["report", str(out), "--out", str(page)]) == 0
    assert "Distorted test audio" in page.read_text() and "<td>noisy</td>" in page.read_text()


def test_a_cache_of_states_that_was_removed_is_not_made_again(data, tmp_path, stand_in, capsys):
    """Where clips were encoded alone they still are; the folder is the test's own, and no path of the checkpoint's."""
    assert evaluate(data, tmp_path, "--cache-states", "states") == 0
    out = tmp_path / "out"
    capsys.readouterr()
    assert robustness(out, "--distortion", "noisy.yaml", "--dry-run") == 0
    (command,) = capsys.readouterr().out.splitlines()
    place = out / "runs" / "sid" / "distorted" / "noisy"
    assert command.endswith(f"config.runner.cache_states={place / 'states'}") and f"-p {place} " in command
    assert robustness(out, "--distortion", "noisy.yaml") == 0
    assert (place / "result.json").is_file() and not (place / "states").exists()
    moved = tmp_path / "a=b"
    out.rename(moved)
    assert robustness(moved, "--distortion", "loud=noisy.yaml") == 2
    assert "s3prl's -o cannot carry a path with '=' or ',,'; move the scores" in capsys.readouterr().err


def test_a_dry_run_names_the_gpu_of_each_test(data, tmp_path, stand_in, capsys):
    """Pasted, all of them ran on the first GPU."""
    assert evaluate(data, tmp_path, "--seeds", "1,2") == 0
    capsys.readouterr()
    words = ["--distortion", "noisy.yaml", "--dry-run", "--devices", "cpu,cuda:1"]
    assert main(["robustness", str(tmp_path / "out"), *words]) == 0
    first, second = map(shlex.split, capsys.readouterr().out.splitlines())
    assert first[first.index("--device") + 1] == "cpu" and "CUDA_VISIBLE_DEVICES" not in first[0]
    assert second[second.index("--device") + 1] == "cuda" and second[0] == "CUDA_VISIBLE_DEVICES=1"


def test_tasks_that_were_evaluated_are_named_in_their_order(data, tmp_path, stand_in, capsys):
    assert evaluate(data, tmp_path, tasks="pr,sid,er,asr") == 0
    assert robustness(tmp_path / "out", "--distortion", "noisy.yaml", "--tasks", "ks") == 2
    assert capsys.readouterr().err.endswith(f"not evaluated in {tmp_path / 'out'}, which has pr, sid, er, asr\n")


def test_a_run_whose_data_have_changed_is_not_tested(data, tmp_path, stand_in, capsys):
    assert evaluate(data, tmp_path) == 0
    (data / "split.txt").write_text("1 id10001/a/1.wav\n3 id10003/a/1.wav\n")
    assert robustness(tmp_path / "out", "--distortion", "noisy.yaml") == 2
    assert f"run.json: was tested before {data / 'split.txt'} changed; evaluate it again" in capsys.readouterr().err


def test_another_seeds_run_in_the_folder_is_not_tested(data, tmp_path, stand_in, capsys):
    assert evaluate(data, tmp_path, "--seed", "1") == 0
    file = tmp_path / "out" / "runs" / "sid" / "run.json"
    marker = json.loads(file.read_text())
    marker["settings"]["seed"] = 2
    file.write_text(json.dumps(marker))
    assert robustness(tmp_path / "out", "--distortion", "noisy.yaml") == 2
    assert f"{file}: is gone, and so cannot be tested again" in capsys.readouterr().err


def conditions(out: Path) -> list[str]:
    return re.findall(r"\| fbank \| ([^|]+) \|", (out / "robustness.md").read_text())


def test_levels_of_one_noise_stand_together(data, tmp_path, stand_in):
    """From the highest SNR to the lowest, and a line joins them; all else goes by its name, noise5 before noise10."""
    assert evaluate(data, tmp_path) == 0
    out = tmp_path / "out"
    for level in (0, 5, 10):
        (tmp_path / f"quiet{level}.yaml").write_text(NOISY.replace("[0, 0]", f"[{level}, {level}]"))
    for name, snr in (("mixed10", "[0, 10]"), ("mixed5", "[0, 5]")):
        (tmp_path / f"{name}.yaml").write_text(NOISY.replace("[0, 0]", snr))
    (tmp_path / "another.yaml").write_text(NOISY.replace("seed: 3", "seed: 4"))
    (tmp_path / "x.yaml").write_text("distortion: {non_additive: {pitch_cents: 100}}\n")
    names = ("mixed10", "quiet5", "x", "quiet10", "another", "mixed5", "quiet0")
    assert robustness(out, *(word for name in names for word in ("--distortion", f"{name}.yaml"))) == 0
    assert conditions(out) == ["clean", "another", "mixed5", "mixed10", "quiet10", "quiet5", "quiet0", "x"]
    found = {row.condition: row.series for row in rows_of(read_models(out))}
    assert found["quiet10"] and found["quiet10"] == found["quiet5"] == found["quiet0"] != found["another"]
    assert found["mixed5"] == found["mixed10"] == found["x"] == found["clean"] == ""


def test_two_distortions_of_one_name_in_a_report_are_told_apart(data, tmp_path, stand_in):
    """evaluate's folders of two people: what was heard under a name need not be the same."""
    rows = []
    for place, snr in (("a", "[0, 0]"), ("b", "[9, 9]"), ("c", "[0, 0]")):
        (tmp_path / place).mkdir()
        (tmp_path / "noisy.yaml").write_text(NOISY.replace("[0, 0]", snr))
        assert evaluate(data, tmp_path / place, upstream=up(f"{place}=fbank")) == 0
        out = tmp_path / place / "out"
        assert robustness(out, "--distortion", "noisy.yaml") == 0
        rows += read_models(out)
    found = rows_of(rows)
    shown = [(row.label, row.condition) for row in found if row.place]
    assert len({condition for _, condition in shown}) == 2
    assert dict(shown)["a"] == dict(shown)["c"] != dict(shown)["b"]
    assert {condition for _, condition in shown} == {"noisy", "noisy (2)"}
    assert "(2): a different distortion from the first of that name" in note(found)
    assert "(2)" not in note(rows_of(rows[:1]))


def test_the_figure(data, tmp_path, stand_in, monkeypatch):
    """A panel a task, a line through clean and the levels, a mark for what has no level."""
    assert evaluate(data, tmp_path, "--seeds", "1,2", upstream=up("fbank", "mel"), tasks="pr,sid") == 0
    out = tmp_path / "out"
    assert robustness_png(rows_of(read_models(out)), ["fbank", "mel"]) is None
    (tmp_path / "noisy10.yaml").write_text(NOISY.replace("[0, 0]", "[10, 10]"))
    (tmp_path / "pitch.yaml").write_text("distortion: {non_additive: {pitch_cents: 100}}\n")
    names = ("noisy", "noisy10", "pitch")
    assert robustness(out, *(word for name in names for word in ("--distortion", f"{name}.yaml"))) == 0
    assert main(["report", str(out), "--out", "report.html"]) == 0
    assert (tmp_path / "report" / "distorted-audio.png").read_bytes().startswith(b"\x89PNG")
    figures: list[Figure] = []
    monkeypatch.setattr(score_figures, "png", figures.append)
    robustness_png(rows_of(read_models(out)), ["fbank", "mel"])
    panels = [axis for axis in figures[0].axes if axis.get_visible()]
    assert [axis.get_title("left") for axis in panels] == ["PR PER ↓", "SID acc ↑"]
    for axis, scores in zip(panels, ([33.33] * 3, [50, 0, 0]), strict=True):
        assert [text.get_text() for text in axis.get_xticklabels()] == ["clean", "noisy10", "noisy", "pitch"]
        joined = [line.get_ydata() for line in axis.lines if len(line.get_xdata()) == 3]
        assert len(joined) == 2 and joined[0] == pytest.approx(scores, abs=0.01)
        assert len(axis.containers) == 2 * 4  # marks with their standard errors


def test_a_run_that_is_done_again_loses_its_tests(data, tmp_path, stand_in):
    """The table of distorted tests goes by what evaluate has now, without being asked for again."""
    assert evaluate(data, tmp_path, upstream=up("fbank", "mel")) == 0
    out = tmp_path / "out"
    assert robustness(out, "--distortion", "noisy.yaml") == 0
    table = out / "robustness.md"
    assert evaluate(data, tmp_path, "--overwrite", "--override", "config.optimizer.lr=0.5", upstream=up("mel")) == 0
    assert "| fbank | noisy |" in table.read_text() and "| mel |" not in table.read_text()
    assert evaluate(data, tmp_path, "--overwrite", "--override", "config.optimizer.lr=0.5", upstream=up("fbank")) == 0
    assert not table.exists()


def test_a_condition_is_shown_when_all_its_tests_are_there(data, tmp_path, stand_in, capsys):
    """Of a stopped call what is done is kept, and a mean over some of the folds is no score."""
    assert evaluate(data, tmp_path, tasks="sid,er") == 0
    out, deaf = tmp_path / "out", tmp_path / "out" / "runs" / "er-fold2" / "deaf"
    deaf.touch()
    assert robustness(out, "--distortion", "noisy.yaml") == 2
    assert "RuntimeError: boom" in capsys.readouterr().err
    assert "| fbank | noisy | 0.00 | – |" in (out / "robustness.md").read_text()
    deaf.unlink()
    assert robustness(out, "--distortion", "noisy.yaml") == 0
    assert "1 of 3 tests to do" in capsys.readouterr().out
    assert "| fbank | noisy | 0.00 | 0.00 |" in (out / "robustness.md").read_text()


def test_all_else_is_tested_past_a_test_that_fails(data, tmp_path, stand_in, capsys):
    assert evaluate(data, tmp_path, tasks="sid,er") == 0
    out = tmp_path / "out"
    (out / "runs" / "sid" / "deaf").touch()
    assert robustness(out, "--distortion", "noisy.yaml", "--keep-going") == 2
    assert re.search("error: sid noisy: .*boom", capsys.readouterr().err)
    assert "| fbank | noisy | – | 0.00 |" in (out / "robustness.md").read_text()


def test_another_distortion_under_a_name_is_refused(data, tmp_path, stand_in, capsys):
    assert evaluate(data, tmp_path, tasks="pr,sid") == 0
    out = tmp_path / "out"
    assert robustness(out, "--distortion", "noisy.yaml", "--tasks", "sid") == 0
    before = files(out)
    (tmp_path / "noisy.yaml").write_text(NOISY.replace("[0, 0]", "[0, 5]"))
    for tasks in ("sid", "pr"):  # of the other task, whose row would have two distortions
        assert robustness(out, "--distortion", "noisy.yaml", "--tasks", tasks) == 2
        assert "sid/distorted/noisy: noisy was another distortion" in capsys.readouterr().err
    assert files(out) == before
    assert robustness(out, "--distortion", "noisy.yaml", "--overwrite", "--tasks", "pr") == 0
    assert "| fbank | noisy | 33.33 | – |" in (out / "robustness.md").read_text()  # no row of two distortions
    done = (out / "runs" / "pr" / "distorted" / "noisy" / "result.json").stat().st_mtime_ns
    capsys.readouterr()
    assert robustness(out, "--distortion", "noisy.yaml", "--overwrite") == 0  # what is done is not done again
    assert "1 of 2 tests to do" in capsys.readouterr().out
    assert (out / "runs" / "pr" / "distorted" / "noisy" / "result.json").stat().st_mtime_ns == done
    audio(tmp_path / "noise" / "more.wav", 8000)
    assert robustness(out, "--distortion", "noisy.yaml") == 2
    assert "or drew from other files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "robustness: give --distortion FILE"),
        (["--distortion", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--distortion", "clean=noisy.yaml"], "'clean': expected a name"),
        (["--distortion", "a/b=noisy.yaml"], "'a/b': expected a name"),
        (["--distortion", "noisy.yaml", "--distortion", "noisy=noisy.yaml"], "noisy is given twice"),
        (["--distortion", "noisy.yaml", "--tasks", "pr"], "--tasks: pr: not evaluated in"),
        (["--distortion", "noisy.yaml", "--jobs", "0"], "--jobs 0: expected 1 or more"),
    ],
)
def test_mistakes(words, message, data, tmp_path, stand_in, capsys):
    assert evaluate(data, tmp_path) == 0
    before = files(tmp_path / "out")
    assert robustness(tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err and files(tmp_path / "out") == before


def test_a_run_that_is_gone_or_a_folder_without_scores(data, tmp_path, stand_in, capsys):
    assert robustness(tmp_path / "out", "--distortion", "noisy.yaml") == 2
    assert "out: no such folder; s3prl-ekd evaluate --out" in capsys.readouterr().err
    assert evaluate(data, tmp_path) == 0
    run = tmp_path / "out" / "runs" / "sid"
    (run / "dev-best.ckpt").rename(run / "away.ckpt")
    assert robustness(tmp_path / "out", "--distortion", "noisy.yaml") == 2
    assert "dev-best.ckpt: is gone, and so cannot be tested again" in capsys.readouterr().err
    (run / "away.ckpt").rename(run / "dev-best.ckpt")
    assert robustness(tmp_path / "out", "--distortion", "noisy.yaml") == 0
    result = run / "distorted" / "noisy" / "result.json"
    result.write_text(json.dumps({"acc": 1}))
    assert robustness(tmp_path / "out", "--distortion", "noisy.yaml") == 2
    assert f"{result}: not readable (KeyError('digest'))" in capsys.readouterr().err
