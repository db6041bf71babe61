"""predict.zip: the site's layout and scoring, and everything that it would silently leave unscored."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
from score_records import score_of_task, score_record

from s3prl_ekd.cli import main
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.tasks import TASKS
from s3prl_ekd.export import public
from s3prl_ekd.export.public import FOLDS, export_public, site_score

LAYOUT = {
    "predict/pr_public/predict.ark",
    "predict/sid_public/predict.txt",
    *(f"predict/er_fold{number}_public/predict.txt" for number in range(1, 6)),
    "predict/asr_public/predict.ark",
    "predict/ks_public/predict.txt",
    "predict/ic_public/predict.csv",
}


def write(path: Path, lines: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name} {text}\n" for name, text in lines.items()))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Experiment folders with the files that s3prl's runner leaves after -m evaluate."""
    root = tmp_path / "out" / "runs"
    write(root / "pr" / "test-ref.ark", {"1-1-0": "HH IY1 Z", "1-1-1": "AH0"})
    write(root / "pr" / "test-hyp.ark", {"1-1-1": "AH0", "1-1-0": "HH IY1"})
    write(root / "asr" / "test-clean-noLM-ref.ark", {"1-1-0": "HE HOPED", "1-1-1": "YES"})
    write(root / "asr" / "test-clean-noLM-hyp.ark", {"1-1-0": "HE HOPES SO", "1-1-1": ""})
    write(root / "sid" / "test_truth.txt", {"id10001-a-1": "id10001", "id10002-a-1": "id10002"})
    write(root / "sid" / "test_predict.txt", {"id10001-a-1": "id10001", "id10002-a-1": "id10001"})
    write(root / "ks" / "test_truth.txt", {"yes-a.wav": "yes", "no-a.wav": "no"})
    write(root / "ks" / "test_predict.txt", {"yes-a.wav": "yes", "no-a.wav": "_unknown_"})
    (root / "ic").mkdir()
    (root / "ic" / "test_truth.csv").write_text("a,on,lights,none\nb,up,heat,none\n")
    (root / "ic" / "test_predict.csv").write_text("a,on,lights,none\nb,up,heat,kitchen\n")
    for number, fold in enumerate(FOLDS):
        write(root / f"er-{fold}" / f"test_{fold}_truth.txt", {f"Ses{number}_{i}": "neu" for i in range(4)})
        guesses = {f"Ses{number}_{i}": "neu" if i < number else "sad" for i in range(4)}
        write(root / f"er-{fold}" / f"test_{fold}_predict.txt", guesses)
    return root.parent


def test_layout_and_scores(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "predict.zip"
    os.utime(runs / "runs/pr/test-hyp.ark", (0, 0))  # as some archives and file systems leave it
    assert main(["export", "public", "--runs", str(runs), "--out", str(out)]) == 0
    printed = capfd.readouterr().out
    with zipfile.ZipFile(out) as archive:
        assert set(archive.namelist()) == LAYOUT
        assert archive.read("predict/pr_public/predict.ark").decode() == (runs / "runs/pr/test-hyp.ark").read_text()
    scores = export_public(runs, out)[1]
    assert scores["pr"] == pytest.approx(1 / 4)  # one deletion over four phonemes
    assert scores["asr"] == pytest.approx(3 / 3)  # a substitution, an insertion, and "" against YES
    assert scores["sid"] == scores["ks"] == scores["ic"] == 0.5
    assert scores["er"] == pytest.approx((0 + 0.25 + 0.5 + 0.75 + 1) / 5)
    assert "sid acc: 0.500000 (50.00 %)" in printed
    assert export_public(runs / "runs", out, "sid")[1] == {"sid": 0.5}
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["predict/sid_public/predict.txt"]


def test_a_test_set_that_is_not_superbs_is_said(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(public.FULL, "pr", 2)
    monkeypatch.setitem(public.FULL, "er", 20)
    export_public(runs, tmp_path / "predict.zip", "pr,sid,er")
    [said] = caplog.messages
    assert said == "sid: 2 utterances, SUPERB's test set has 8251: no SUPERB score"


def test_what_lies_at_out(runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Tasks that a zip loses are said; what is no submission of before stays."""
    out = tmp_path / "predict.zip"
    export_public(runs, out)
    export_public(runs, out, "sid")
    assert f"{out}: replaced; the earlier one held pr, er, asr, ks, ic too" in caplog.text
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("holiday.jpg", "mine")
    with pytest.raises(EkdError, match=r"--out .*predict.zip: exists and is not an earlier submission"):
        export_public(runs, out)
    out.write_text("mine")
    with pytest.raises(EkdError, match="exists and is not a zip file"):
        export_public(runs, out)
    assert out.read_text() == "mine"


def test_error_rate_equals_jiwer() -> None:
    import jiwer

    references = {"a": "ONE TWO THREE FOUR", "b": "FIVE SIX", "c": "SEVEN"}
    guesses = {"a": "ONE THREE FOUR FIVE", "b": "FIVE SIX SIX", "c": "EIGHT"}
    expected = jiwer.wer(list(references.values()), list(guesses.values()))
    assert site_score(TASKS["asr"], guesses, references) == pytest.approx(expected)


def drop_fold(runs: Path) -> None:
    for file in (runs / "er-fold3").iterdir():
        file.unlink()
    (runs / "er-fold3").rmdir()


# what happened -> how, and what the message says
MISHAPS = {
    "a fold is missing": (drop_fold, r"er fold3 .*all five folds"),
    "an utterance is missing": (
        lambda runs: write(runs / "pr" / "test-hyp.ark", {"1-1-0": "HH"}), "1 of 2 utterances are missing, such as 1-",
    ),
    "an utterance is unknown": (
        lambda runs: write(runs / "sid" / "test_predict.txt", {"id10001-a-1": "x", "id10002-a-1": "x", "id9": "x"}),
        "id9 is no utterance",
    ),
    "an utterance is there twice": (
        lambda runs: (runs / "sid" / "test_predict.txt").write_text("a b\na b\n"), ":2: utterance a appears twice",
    ),
    "a label is unknown": (
        lambda runs: write(runs / "er-fold1/test_fold1_predict.txt", {f"Ses0_{i}": "exc" for i in range(4)}), "'exc'",
    ),
    "nothing was tested": (lambda runs: (runs / "asr" / "test-clean-noLM-hyp.ark").unlink(), "-m evaluate"),
    "bytes": (lambda runs: (runs / "pr" / "test-hyp.ark").write_bytes(b"\xff\xfe\x00"), "not plain text"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MISHAPS))
def test_what_the_site_would_leave_unscored(name: str, runs: Path, tmp_path: Path) -> None:
    change, message = MISHAPS[name]
    change(runs / "runs")
    with pytest.raises(EkdError, match=message):
        export_public(runs, tmp_path / "predict.zip")
    assert not (tmp_path / "predict.zip").exists()


def test_no_runs_and_other_runs(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(EkdError, match="holds no run"):
        export_public(tmp_path, tmp_path / "predict.zip")
    with pytest.raises(EkdError, match=r"\.zip"):
        export_public(runs, tmp_path / "predict")


def record(runs: Path, **tasks: dict) -> None:
    (runs / "scores.json").write_text(json.dumps(score_record(tasks=tasks)))


def submitted(out: Path) -> dict[str, str]:
    with zipfile.ZipFile(out) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.mark.parametrize("acc", [49.9, 50.1, 54.0, 75.0])
def test_a_score_that_the_predictions_do_not_give(acc: float, runs: Path, tmp_path: Path) -> None:
    record(runs, sid=score_of_task("sid", acc))
    with pytest.raises(EkdError, match=rf"sid acc is {acc:.2f}, .* give 50.00; they are of another run"):
        export_public(runs, tmp_path / "predict.zip")
    assert not (tmp_path / "predict.zip").exists()
    record(runs, sid=score_of_task("sid", 50.004))  # rounding, as a log has it
    assert export_public(runs, tmp_path / "predict.zip")[1] == {"sid": 0.5}


@pytest.mark.parametrize("below", [False, True], ids=["OUT", "OUT/runs"])
def test_only_what_scores_json_lists_is_submitted(
    below: bool, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other folders below runs are another model's, or of a rate that was not picked."""
    write(runs / "runs" / "pr-lr0.1" / "test-ref.ark", {"1-1-0": "HH IY1 Z"})
    write(runs / "runs" / "pr-lr0.1" / "test-hyp.ark", {"1-1-0": "HH IY1 Z"})
    record(runs, pr=score_of_task("pr", 0.0, folder="pr-lr0.1"))
    out, given = tmp_path / "predict.zip", runs / "runs" if below else runs
    assert export_public(given, out)[1] == {"pr": 0.0}
    assert submitted(out) == {"predict/pr_public/predict.ark": "1-1-0 HH IY1 Z\n"}
    out.unlink()
    for tasks in ("sid", "pr,sid"):
        with pytest.raises(EkdError, match=r"scores\.json: sid is not in it"):
            export_public(given, out, tasks)
    monkeypatch.chdir(given)
    assert export_public(Path(), out)[1] == {"pr": 0.0}
    out.unlink()
    # a fold that was not scored is not taken from a folder that happens to be there
    folds = {fold: score_of_task("er", folder=f"er-{fold}") for fold in FOLDS[:4]}
    record(runs, er=score_of_task("er", 0.0, folds=folds))
    with pytest.raises(EkdError, match=r"scores\.json: er fold5 is not in it: .*all five folds"):
        export_public(given, out)
    record(runs)
    with pytest.raises(EkdError, match=r"scores\.json: holds no score of pr"):
        export_public(given, out)
    assert not out.exists()


def test_one_seed_is_submitted(runs: Path, tmp_path: Path) -> None:
    write(runs / "runs" / "sid-seed2" / "test_truth.txt", {"id10001-a-1": "id10001"})
    write(runs / "runs" / "sid-seed2" / "test_predict.txt", {"id10001-a-1": "id10001"})
    seeds = {"1": score_of_task("sid", 50.0), "2": score_of_task("sid", 100.0, folder="sid-seed2")}
    sid = score_of_task("sid", 75.0, seeds=seeds, standard_error={"acc": 25.0})
    record(runs, sid=sid, pr=score_of_task("pr", 25.0))
    out = tmp_path / "predict.zip"
    with pytest.raises(EkdError, match="sid was tested at the seeds 1, 2, .* choose with --seed"):
        export_public(runs, out)
    with pytest.raises(EkdError, match="--seed 2: pr was not tested at it; .* has 1"):
        export_public(runs, out, seed=2)
    assert export_public(runs, out, "pr") == (out, {"pr": 0.25})
    assert export_public(runs, out, "sid", seed=2)[1] == {"sid": 1.0}
    assert export_public(runs, out, seed=1)[1] == {"pr": 0.25, "sid": 0.5}
    (runs / "scores.json").unlink()
    with pytest.raises(EkdError, match=r"--seed 1: .* holds no scores\.json"):
        export_public(runs, out, seed=1)


def test_more_than_the_site_takes(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert public.LIMIT == 50_000_000
    out = tmp_path / "predict.zip"
    export_public(runs, out)
    size = out.stat().st_size
    out.unlink()
    monkeypatch.setattr(public, "LIMIT", size)
    with pytest.raises(EkdError, match=r"predict\.zip: .* MB; the site takes less than"):
        export_public(runs, out)
    assert list(tmp_path.glob("*.zip")) == []
    monkeypatch.setattr(public, "LIMIT", size + 1)
    export_public(runs, out)
    assert out.stat().st_size == size
