"""Differences between evaluated models: the bootstrap against SciPy's and theory, and ``s3prl-ekd compare``."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from evaluate_stand_in import evaluate, files, make_data, up
from scipy import stats

from s3prl_ekd.cli import main
from s3prl_ekd.evaluate.bootstrap import Part, drawn_rates, interval, mean_rates, share_below
from s3prl_ekd.evaluate.compare import Difference, Settings
from s3prl_ekd.evaluate.compare import compare as compared
from s3prl_ekd.evaluate.compare_table import comparison_markdown, comparison_table, note
from s3prl_ekd.evaluate.score import outcomes, rescore
from s3prl_ekd.evaluate.scores_file import read_models
from s3prl_ekd.evaluate.tasks import TASKS

# ------------------------------------------------------------------------------------------------------ the numbers


def part(blocks: int, seed: int, one_each: bool = False) -> Part:
    """A test set of blocks of unequal length, and two models of which the second errs less often."""
    generator = np.random.default_rng(seed)
    tokens = np.ones(blocks) if one_each else generator.integers(5, 40, blocks).astype(float)
    shared = generator.random(blocks)  # some blocks are hard for both
    errors = np.stack([generator.binomial(tokens.astype(int), rate * shared) for rate in (0.6, 0.5)])
    return Part(errors.astype(float), tokens)


def test_intervals_are_scipys() -> None:
    one = part(80, 0)
    drawn = drawn_rates([one], 20_000, seed=1)

    def difference(first: np.ndarray, second: np.ndarray, tokens: np.ndarray, axis: int) -> np.ndarray:
        return (first.sum(axis) - second.sum(axis)) / tokens.sum(axis)

    theirs = stats.bootstrap(
        (*one.errors, one.tokens), difference, paired=True, vectorized=True, n_resamples=20_000, method="percentile",
        random_state=np.random.default_rng(2),
    )  # fmt: skip
    ours = interval(drawn[:, 0] - drawn[:, 1])
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.002)
    assert np.std(drawn[:, 0] - drawn[:, 1]) == pytest.approx(theirs.standard_error, rel=0.03)


def test_an_accuracys_interval_is_the_binomials_and_folds_are_drawn_each_for_itself() -> None:
    parts = [part(200, seed, one_each=True) for seed in range(3)]
    drawn = drawn_rates(parts, 20_000, seed=0)
    rates = np.array([one.rates() for one in parts])  # (folds, models)
    assert mean_rates(parts) == pytest.approx(rates.mean(0))
    assert drawn.mean(0) == pytest.approx(rates.mean(0), abs=0.002)
    expected = np.sqrt((rates * (1 - rates) / 200).sum(0)) / len(parts)
    assert drawn.std(0) == pytest.approx(expected, rel=0.03)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 400 test sets from one source, about 95 % of the intervals hold what the source gives."""
    truth = 0.3
    generator = np.random.default_rng(5)
    held = 0
    for number in range(400):
        errors = generator.binomial(10, truth, size=(1, 60)).astype(float)
        low, high = interval(drawn_rates([Part(errors, np.full(60, 10.0))], 500, number)[:, 0])
        held += low <= truth <= high
    assert 0.9 < held / 400 < 0.985


def test_blocks_that_err_alike_widen_the_interval() -> None:
    """Ten speakers of twenty clips each, good or bad as a whole: as independent clips they would look like much."""
    good = np.repeat(np.random.default_rng(0).random(10) < 0.5, 20)
    clips = Part(good[None].astype(float), np.ones(200))
    speakers = Part(good.reshape(10, 20).sum(1)[None].astype(float), np.full(10, 20.0))
    spreads = [drawn_rates([one], 5_000, 0).std() for one in (clips, speakers)]
    assert spreads[1] == pytest.approx(spreads[0] * math.sqrt(20), rel=0.1)


def test_models_are_drawn_alike_and_a_seed_repeats_the_draws() -> None:
    one = part(50, 3)
    twice = Part(np.stack([one.errors[0], one.errors[0]]), one.tokens)
    drawn = drawn_rates([twice], 1000, seed=0)
    assert (drawn[:, 0] == drawn[:, 1]).all() and share_below(drawn[:, 0], drawn[:, 1]) == 0.5
    assert (drawn_rates([twice], 1000, seed=0) == drawn).all() and (drawn_rates([twice], 1000, seed=1) != drawn).any()


def test_a_draw_of_empty_references_alone_is_made_again() -> None:
    drawn = drawn_rates([Part(np.array([[1.0, 1.0]]), np.array([0.0, 4.0]))], 500, seed=0)
    assert np.isfinite(drawn).all() and set(drawn[:, 0]) == {0.25, 0.5}


@pytest.mark.parametrize("task", ["pr", "sid", "asr"])
def test_a_score_is_the_ratio_of_its_outcomes(task: str, tmp_path: Path) -> None:
    one = TASKS[task]
    (tmp_path / one.reference).write_text("a B C D\nb E\nc F G\n")
    (tmp_path / one.hypothesis).write_text("a B D\nb E\nc X Y Z\n")
    found = outcomes(one, tmp_path).values()
    rate = 100 * sum(outcome.errors for outcome in found) / sum(outcome.tokens for outcome in found)
    score = float(rescore(one, tmp_path)[one.metric])
    assert (rate if one.lower_is_better else 100 - rate) == pytest.approx(score)
    assert [outcome.reference for outcome in found] == ["B C D", "E", "F G"]


# ------------------------------------------------------------------------------------------------------ the command


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def compare(*words: object) -> int:
    return main(["compare", *map(str, words)])


def predict(out: Path, run: str, right: int, of: int = 40) -> None:
    """Let a model's tested run of SID or of a fold of ER have so many right."""
    fold = f"{run.split('-')[1].removesuffix('-seed1')}_" if run.startswith("er-") else ""
    folder = out / "runs" / run
    (folder / f"test_{fold}truth.txt").write_text("".join(f"s{number % 4}_{number} x\n" for number in range(of)))
    answers = "".join(f"s{number % 4}_{number} {'x' if number < right else 'y'}\n" for number in range(of))
    (folder / f"test_{fold}predict.txt").write_text(answers)


def test_the_table(data, tmp_path, stand_in, capsys):
    """Seeds are averaged, folds are a mean, the baseline is the first, and nothing in the folder changes."""
    assert evaluate(data, tmp_path, "--seeds", "1,2", upstream=up("fbank", "mel", "mfcc"), tasks="pr,sid,er") == 0
    out = tmp_path / "out"
    for model, (first, second) in {"fbank": (10, 12), "mel": (30, 34), "mfcc": (11, 11)}.items():
        predict(out / model, "sid-seed1", first)
        predict(out / model, "sid-seed2", second)
    before = files(out)
    capsys.readouterr()
    assert compare(out, "--out", "table.md") == 0
    assert files(out) == before
    lines = [
        line.split("|")[1:-1] for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| ")
    ]
    cells = {(row[0].strip(), row[1].strip()): [text.strip() for text in row[2:]] for row in lines[1:]}
    assert len(cells) == 3 * 3
    assert cells["SID acc ↑", "fbank"][0] == "27.50" and cells["SID acc ↑", "fbank"][2:] == ["–"] * 3
    score, _, change, spread, better = cells["SID acc ↑", "mel"]
    assert (score, change, better) == ("80.00", "**+52.50**", "100.0 %") and spread.startswith("+3")
    assert cells["SID acc ↑", "mfcc"][2:] == ["+0.00", "-3.75 to +3.75", cells["SID acc ↑", "mfcc"][4]]
    assert cells["ER acc ↑", "mel"][2] == "+0.00"  # of two folds, where both are alike
    printed = " ".join(capsys.readouterr().out.split())
    assert "PR 2, SID 40, ER 4; 10,000 draws" in printed and "a reliable interval: PR (2), ER (2)." in printed
    assert "points against fbank" in printed
    assert compare(out, "--baseline", "mel", "--tasks", "sid", "--draws", "500") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "-52.50" in printed and "PR" not in printed and "500 draws" in printed


def test_in_a_report(data, tmp_path, stand_in, capsys):
    assert evaluate(data, tmp_path, upstream=up("fbank", "mel"), tasks="pr,sid") == 0
    out, words = tmp_path / "out", ["report", str(tmp_path / "out"), "--out", str(tmp_path / "r.html"), "--baseline"]
    predict(out / "mel", "sid", 30)
    predict(out / "fbank", "sid", 10)
    assert main([*words, "mel"]) == 0
    assert "points against mel" in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "r.html").read_text()
    assert "<h2>Differences from mel</h2>" in page and "<td class=worse>-50.00</td>" in page
    (tmp_path / "r.html").unlink()
    for label, message in (("mfcc", "--baseline mfcc: no such model; there are fbank, mel"), ("fbank", "mel")):
        (out / "mel" / "runs" / "sid" / "test_predict.txt").unlink(missing_ok=True)
        assert main([*words, label]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "r.html").exists()


def test_of_an_error_rate_less_is_better(data, tmp_path, stand_in):
    assert evaluate(data, tmp_path, upstream=up("fbank", "mel"), tasks="pr") == 0
    for model, heard in {"fbank": "x", "mel": "A"}.items():
        folder = tmp_path / "out" / model / "runs" / "pr"
        for name, text in {"test-ref.ark": "A B", "test-hyp.ark": f"{heard} B"}.items():
            (folder / name).write_text("".join(f"u{number} {text}\n" for number in range(20)))
    models = read_models(tmp_path / "out")
    for baseline, change, colour in (("fbank", -50.0, "green"), ("mel", 50.0, "red")):
        found = compared(models, Settings(draws=100), baseline)
        [difference] = [row.difference for row in found.tasks[0].rows if row.difference]
        is_better = colour == "green"
        assert difference == Difference(change, (change, change), float(is_better), is_better)
        changes = [str(text) for text in comparison_table(found).columns[4].cells]
        assert f"[{colour}]{change:+.2f}[/]" in changes
        assert f"| **{change:+.2f}** |" in comparison_markdown(found)


def test_means_over_folds_that_are_equal_differ_in_no_bit(tmp_path, stand_in):
    """1, 2 and 3 of 40 right, in another order: in floating point one sum is the larger, by 1e-14 in every draw."""
    data = make_data(tmp_path / "three", ("fold1", "fold2", "fold3"))
    assert evaluate(data, tmp_path, upstream=up("fbank", "mel"), tasks="er") == 0
    for model, rights in {"fbank": (1, 2, 3), "mel": (2, 3, 1)}.items():
        for fold, right in enumerate(rights, start=1):
            predict(tmp_path / "out" / model, f"er-fold{fold}", right)
    found = compared(read_models(tmp_path / "out"), Settings(draws=100, blocks=re.compile("(.)")))
    assert found.tasks[0].rows[1].difference == Difference(0.0, (0.0, 0.0), 0.5, None)


def test_the_smallest_fold_says_whether_there_is_enough_to_draw_from(data, tmp_path, stand_in):
    assert evaluate(data, tmp_path, tasks="er") == 0
    for fold, clips in {"er-fold1": 9, "er-fold2": 40}.items():
        predict(tmp_path / "out", fold, 5, clips)
    assert "a reliable interval: ER (9)." in note(compared(read_models(tmp_path / "out"), Settings(draws=100)))


def test_blocks_and_conditions(data, tmp_path, stand_in, capsys):
    assert evaluate(data, tmp_path, upstream=up("fbank", "mel")) == 0
    out = tmp_path / "out"
    for model in ("fbank", "mel"):
        predict(out / model, "sid", 20)
    assert compare(out, "--blocks", "^(s[0-9]+)_") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "SID 40 in 4 blocks" in printed and "for a reliable interval: SID (4)." in printed
    (tmp_path / "noisy.yaml").write_text("distortion: {non_additive: {pitch_cents: 100}}\n")
    assert main(["robustness", str(out), "--distortion", "noisy.yaml", "--device", "cpu"]) == 0
    assert compare(out, "--condition", "noisy") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Test audio: noisy." in printed and "0.00 to 0.00" in printed  # the stand-in hears nothing in it
    result = out / "mel" / "runs" / "sid" / "distorted" / "noisy" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"digest": "another"}))
    assert compare(out, "--condition", "noisy") == 2
    assert "sid: --condition noisy: was not the same distortion for all models" in capsys.readouterr().err


def test_several_folders(data, tmp_path, stand_in, capsys):
    """Models of two people's folders; of one label they are told apart by their folders."""
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        assert evaluate(data, tmp_path / place) == 0
    folders = tmp_path / "a" / "out", tmp_path / "b" / "out"
    assert compare(*folders, "--out", "table.md") == 0
    table = (tmp_path / "table.md").read_text()
    assert all(f"| fbank ({folder}) |" in table for folder in folders)
    assert compare(folders[0], folders[0]) == 2
    assert "a model's folder is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--baseline", "mfcc"], "--baseline mfcc: no such model; there are fbank, mel"),
        # of an empty shell variable, all were taken
        (["--tasks", ""], "--tasks: unknown task ''; expected some of pr"),
        (["--tasks", "pr"], "--tasks: pr: fbank was not tested on it, but on sid"),
        (["--condition", "noisy"], "runs/sid/distorted/noisy: not tested under noisy; run s3prl-ekd robustness"),
        (["--blocks", "("], "--blocks (: not a regular expression"),
        (["--blocks", "s"], "--blocks s: expected a group"),
        (["--blocks", "^(q)"], "--blocks ^(q): finds nothing in the utterance u0"),
        (["--draws", "10"], "--draws 10: expected 100 or more"),
        (["--seed", "-1"], "--seed -1: expected 0 or more"),
        (["--out", "."], "--out .: is a folder"),
    ],
)
def test_mistakes(words, message, data, tmp_path, stand_in, capsys):
    assert evaluate(data, tmp_path, upstream=up("fbank", "mel")) == 0
    assert compare(tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_compared(data, tmp_path, stand_in, capsys):
    assert compare(tmp_path / "out") == 2
    assert "out: no such folder; s3prl-ekd evaluate --out" in capsys.readouterr().err
    (tmp_path / "empty.json").write_text('{"models": []}')
    assert compare(tmp_path / "empty.json") == 2
    assert "empty.json: holds no model; s3prl-ekd evaluate" in capsys.readouterr().err
    assert evaluate(data, tmp_path, upstream=up("fbank", "mel"), tasks="sid,er") == 0
    out = tmp_path / "out"
    truth = out / "mel" / "runs" / "sid" / "test_truth.txt"
    truth.write_text("u0 x\nu1 y\n")
    assert compare(out) == 2
    assert "sid: fbank and mel were tested on other utterances or references, as u1" in capsys.readouterr().err
    truth.unlink()
    assert compare(out) == 2
    assert f"{truth}: not found" in capsys.readouterr().err
    assert compare(out, "--tasks", "er") == 0
    marker = out / "mel" / "runs" / "er-fold1" / "run.json"
    finished = marker.read_text()
    marker.write_text(json.dumps({key: value for key, value in json.loads(finished).items() if key != "result"}))
    assert compare(out, "--tasks", "er") == 2
    assert f"{marker}: is gone or not finished; evaluate mel again" in capsys.readouterr().err
    marker.write_text(finished)
    file = out / "mel" / "scores.json"
    for path in (file, out / "scores.json"):
        record = json.loads(path.read_text())
        model = record if path == file else record["models"][1]
        del model["tasks"]["er"]["folds"]["fold2"]
        path.write_text(json.dumps(record))
    assert compare(out, "--tasks", "er") == 2
    assert "er: fbank and mel were tested on different folds" in capsys.readouterr().err
