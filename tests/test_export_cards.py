"""What the model card of an exported student says, and what it does not take over from a checkpoint or a path."""

from __future__ import annotations

import argparse
import json
from itertools import permutations
from pathlib import Path

import pytest
import torch
from export_student import export_hf, student_record
from score_records import score_of_task, score_record

from s3prl_ekd.cli import main
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.tasks import TASKS, Task
from s3prl_ekd.export import cards
from s3prl_ekd.export.huggingface import export_huggingface
from s3prl_ekd.export.merge import merge_checkpoints
from s3prl_ekd.export.superb import export_superb
from s3prl_ekd.shape import HUBERT_BASE
from s3prl_ekd.student_checkpoint import load_student


def test_card(checkpoint: Path, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    assert export_hf(checkpoint, exported, "--training-data", "train-clean-100") == 0
    config = json.loads((exported / "config.json").read_text())
    assert (config["num_hidden_layers"], config["feat_proj_layer_norm"], config["hidden_dropout"]) == (2, False, 0.1)
    assert config["layerdrop"] == 0.0
    card = (exported / "README.md").read_text()
    for word in ("license: mit", "wavlm_base_plus", "train-clean-100", "284,000 parameters", "multi_head"):
        assert word in card
    assert "## Scores" not in card
    scores, record = tmp_path / "scores.json", student_record(checkpoint)
    scores.write_text(json.dumps(record))
    assert export_hf(checkpoint, tmp_path / "x", "--scores", str(scores), "--licence", "cc-by-4.0") == 0
    card = (tmp_path / "x" / "README.md").read_text()
    for word in ("| PR (PER %) | 51.25 | 7 | 300 | 0.01 |", "encoded alone", "license: cc-by-4.0"):
        assert word in card
    assert not (tmp_path / "x" / "LICENSE").exists()
    pr = record["tasks"]["pr"]
    several = {"seeds": [1, 2], "tasks": {"pr": pr | {"standard_error": {"per": 0.5}, "seeds": {"1": pr, "2": pr}}}}
    scores.write_text(json.dumps(record | several))
    export_huggingface(checkpoint, tmp_path / "z", scores=scores)
    card = (tmp_path / "z" / "README.md").read_text()
    assert "| PR (PER %) | 51.25 ± 0.50 | 7 |" in card and "Means over 2 seeds" in card
    er = score_of_task("er", n_utterances=8, folds={fold: score_of_task("er") for fold in ("fold1", "fold2")})
    scores.write_text(json.dumps(record | {"tasks": {"er": er}}))
    export_huggingface(checkpoint, tmp_path / "z", scores=scores)
    assert "ER is the mean over fold1, fold2 alone." in (tmp_path / "z" / "README.md").read_text()
    scores.write_text(json.dumps(record | {"checkpoint": "other.ckpt", "checkpoint_sha256": "0" * 64}))
    with pytest.raises(EkdError, match="holds the scores of other.ckpt, which is not what .*states"):
        export_huggingface(checkpoint, tmp_path / "y", scores=scores)
    scores.write_text(json.dumps(record | {"label": "fbank", "upstream": "fbank"}))
    with pytest.raises(EkdError, match="scores of 'fbank'"):
        export_huggingface(checkpoint, tmp_path / "y", scores=scores)
    scores.write_text(json.dumps(record | {"upstream": "ekd_student_with_heads"}))
    with pytest.raises(EkdError, match="holds the scores of '.*'; the model has no heads$"):
        export_huggingface(checkpoint, tmp_path / "y", scores=scores)


def test_a_checkpoint_of_others_writes_nothing_of_its_own_into_a_card(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    ekd = state["EKD"]["config"]["ekd"]
    ekd["teachers"][0] |= {"name": "x](javascript:a)<script>\n\n# Mine\n", "source": "/models/`a`\n<b>"}
    ekd["initialise_from"] = "<img src=x>\n# Mine"
    ekd |= {"balance": {"<b>\n# Mine": torch.ones(2)}, "targets": "<b>\n# Mine", "weights": [torch.ones(2)]}
    state["EKD"]["config"]["distortion"] = {"setup": "<b>\n# Mine"}
    state["EKD"] |= {"merged": ["<b>"], "fine_tuned": "`a`\n# Mine"}
    state["EKD"]["head_sets"][0]["labels"][0] = "4 |\n# Mine"
    torch.save(state, tmp_path / "evil.ckpt")
    scores = student_record(tmp_path / "evil.ckpt") | {"label": "`a` <b>", "preset": "](javascript:a)\n# Mine"}
    fold = "|\n# Mine <b>"
    scores["tasks"]["er"] = score_of_task("er", folds={fold: score_of_task("er")})
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    folder = export_huggingface(tmp_path / "evil.ckpt", tmp_path / "hf", scores=tmp_path / "scores.json")
    card = (folder / "README.md").read_text()
    card += (export_superb(tmp_path / "evil.ckpt", tmp_path / "superb", keep_heads=True) / "README.md").read_text()
    assert not any(words in card for words in ("\n# Mine", "<script>", "<img", "<b>", "](java", "`a`"))


def test_a_card_names_the_options_that_a_student_was_trained_with(checkpoint: Path, tmp_path: Path) -> None:
    """ "Mean over heads" alone was said of balanced gradients and standardised targets too."""
    words = "options that are off by default"
    assert words not in (export_superb(checkpoint, tmp_path / "plain") / "README.md").read_text()
    state = torch.load(checkpoint, weights_only=True)
    config = state["EKD"]["config"]
    config["ekd"]["targets"]["normalise"] = "standardise"
    config["ekd"] |= {
        "balance": {"decay": 0.99}, "residual_heads": [["hubert", "wavlm"]], "weights": {"hubert": 2.0},
        "cache_targets": "/home/me/secret",
    }  # fmt: skip
    config["student"] |= {"mask": {"probability": 0.065, "length": 10}, "normalize": True, "feature_grad_mult": 0.0}
    config["distortion"] = {"setup": "same", "additive": {"noise": ["/home/me/secret"]}}
    torch.save(state, tmp_path / "options.ckpt")
    card = (export_huggingface(tmp_path / "options.ckpt", tmp_path / "hf") / "README.md").read_text()
    [line] = [line for line in card.splitlines() if words in line]
    assert line.partition(": ")[2] == (
        "targets.normalise: standardise; weights.hubert: 2.0; balance.decay: 0.99; residual_heads: hubert, wavlm; "
        "student.mask.probability: 0.065; student.mask.length: 10; student.normalize: True; "
        "student.feature_grad_mult: 0.0; distortion.setup: same"
    )
    assert "secret" not in card


def test_a_card_does_not_say_the_papers_loss_of_a_student_that_was_trained_by_another(
    checkpoint: Path, tmp_path: Path
) -> None:
    papers = "- loss: L1 + (-log sigmoid(cosine)), mean over heads"
    assert papers in (export_superb(checkpoint, tmp_path / "plain") / "README.md").read_text()
    state = torch.load(checkpoint, weights_only=True)
    for weight, terms in ((0.5, "0.5 * L1 + (-log"), (0.0, "(-log")):
        state["EKD"]["config"]["ekd"]["l1_weight"] = weight
        torch.save(state, tmp_path / "other.ckpt")
        card = (export_superb(tmp_path / "other.ckpt", tmp_path / f"{weight}") / "README.md").read_text()
        assert papers.replace("L1 + (-log", terms) in card and "off by default" not in card
    state["EKD"]["objective"] = "Mine<b>"
    torch.save(state, tmp_path / "own.ckpt")
    card = (export_superb(tmp_path / "own.ckpt", tmp_path / "own") / "README.md").read_text()
    assert "- loss: Mine_b_, of the author's own" in card and "sigmoid" not in card


def test_a_card_of_merged_or_fine_tuned_weights_says_so(checkpoint: Path, tmp_path: Path) -> None:
    merged = merge_checkpoints([checkpoint, checkpoint], tmp_path / "merged.ckpt")
    card = (export_superb(merged, tmp_path / "merged") / "README.md").read_text()
    assert "weights: interpolated from 2 students (s3prl-ekd merge), each distilled by itself" in card
    part = load_student(checkpoint).part
    upstream = {f"encoder.{name}": value + 1 for name, value in part["encoder"].items()}
    args = argparse.Namespace(upstream="ekd_student", upstream_ckpt=str(checkpoint), downstream="ctc")
    torch.save({"Upstream": upstream, "Args": args}, tmp_path / "dev-best.ckpt")
    card = (export_huggingface(tmp_path / "dev-best.ckpt", tmp_path / "tuned") / "README.md").read_text()
    assert "weights: fine-tuned on a task afterwards (`-d ctc -f`)" in card
    args = argparse.Namespace(upstream="ekd_student", upstream_ckpt=str(tmp_path / "dev-best.ckpt"), downstream="asr")
    torch.save({"Upstream": upstream, "Args": args}, tmp_path / "again-best.ckpt")
    card = (export_huggingface(tmp_path / "again-best.ckpt", tmp_path / "twice") / "README.md").read_text()
    assert "weights: fine-tuned on a task afterwards (`-d ctc -f`, then `-d asr -f`)" in card
    for place, files in enumerate(permutations([checkpoint, tmp_path / "dev-best.ckpt"])):
        merged = merge_checkpoints(files, tmp_path / "merged.ckpt")
        card = (export_superb(merged, tmp_path / f"both{place}") / "README.md").read_text()
        assert "each distilled by itself, 1 of them fine-tuned on a task before (`-d ctc -f`)" in card
        assert "afterwards" not in card
    again = merge_checkpoints([checkpoint, merged], tmp_path / "again.ckpt", [1, 3])
    assert [one["weight"] for one in load_student(again).part["merged"]] == [0.25, 0.375, 0.375]
    card = (export_superb(again, tmp_path / "again") / "README.md").read_text()
    assert "interpolated from 3 students (s3prl-ekd merge), each distilled by itself, 1 of them fine-tuned" in card


def test_a_record_of_another_kind_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores.json"
    record = student_record(checkpoint)
    del record["tasks"]["pr"]["per"]
    scores.write_text(json.dumps(record))
    assert export_hf(checkpoint, tmp_path / "out", "--scores", str(scores)) == 2
    line = f"error: {scores}: not a scores.json of s3prl-ekd evaluate: tasks.pr.per: expected a number\n"
    assert capsys.readouterr().err == line
    assert not (tmp_path / "out").exists()
    assert main(["export", "public", "--runs", str(tmp_path), "--out", str(tmp_path / "predict.zip")]) == 2
    assert capsys.readouterr().err == line


def test_a_card_says_over_how_many_seeds_each_task_was_averaged() -> None:
    def task(name: str, *seeds: str) -> dict[str, object]:
        return {**score_of_task(name), "standard_error": {}, "seeds": dict.fromkeys(seeds)}

    record = score_record(tasks={"pr": task("pr", "1", "2"), "sid": task("sid", "1", "2", "3")}, seeds=[1, 2, 3])
    assert "Means over 2 to 3 seeds ±" in cards.scores_section(record)


def test_a_card_has_the_score_of_every_task_that_evaluate_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "sf", Task("sf", "slot filling", "cer", "hyp.csv", "ref.csv"))  # a maintainer's new one
    record = score_record(tasks={name: score_of_task(name) for name in TASKS})
    rows = cards.scores_section(record).splitlines()
    assert [row[2:].split(" | ")[0] for row in rows if " | 50.00 | " in row] == [
        "PR (PER %)", "SID (acc %)", "ER (acc %)", "ASR (WER %)", "KS (acc %)", "IC (acc %)", "SF (CER %)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "source,shown",
    [
        ("hubert_base", "hubert_base"),
        ("/home/me/secret/my_hubert", "my_hubert"),
        ("s3prl:fbank", "s3prl:fbank"),
        ("models/x.pt", "x.pt"),
        ("hf:me/hubert@v1", "hf:me/hubert@v1"),  # a folder of nobody's machine
        ("random:hf:me/robust/best.pt", "random:hf:me/robust/best.pt"),
    ],
)
def test_a_card_does_not_tell_where_files_lay(source: str, shown: str) -> None:
    text = cards._origin({"config": {"ekd": {"teachers": [{"name": "one", "source": source}]}}})
    assert f"one (`{shown}`)" in text and "secret" not in text
    ekd = {"teachers": [], "mode": "multi_head", "cosine_weight": 1.0, "initialise_from": source}
    method = cards._method({"config": {"ekd": ekd}}, HUBERT_BASE)
    assert f"started from: {shown}" in method and "secret" not in method
