"""Independent scores: hand-computed cases, editdistance as the oracle, and the runner's printed numbers."""

from __future__ import annotations

import random

import editdistance
import pytest

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import score
from s3prl_ekd.evaluate.tasks import TASKS


def write(path, table):
    path.write_text("".join(f"{name} {text}\n" for name, text in table.items()))


def test_error_rates_by_hand():
    references = {"a": "THE CAT SAT", "b": "HELLO"}
    hypotheses = {"a": "THE CAT", "b": "HELLO WORLD"}
    # one deletion and one insertion over four words; 4 characters deleted and 6 inserted over 11 + 5
    assert score.word_error_rate(hypotheses, references) == pytest.approx(50.0)
    assert score.character_error_rate(hypotheses, references) == pytest.approx(100 * 10 / 16)


def test_empty_hypothesis_is_all_deletions():
    assert score.word_error_rate({"a": ""}, {"a": "AA1 B K"}) == pytest.approx(100.0)
    assert score.character_error_rate({"a": ""}, {"a": "AB C"}) == pytest.approx(100.0)


def test_empty_reference_counts_insertions():
    assert score.word_error_rate({"a": "ONE TWO", "b": "X"}, {"a": "", "b": "X"}) == pytest.approx(200.0)


@pytest.mark.parametrize("seed", range(5))
def test_word_error_rate_equals_editdistance(seed):
    source = random.Random(seed)
    words = ["AH0", "B", "K", "S", "IY1"]
    references = {f"u{i}": " ".join(source.choices(words, k=source.randint(1, 12))) for i in range(20)}
    hypotheses = {name: " ".join(source.choices(words, k=source.randint(0, 12))) for name in references}
    errors = sum(editdistance.eval(hypotheses[name].split(), references[name].split()) for name in references)
    total = sum(len(text.split()) for text in references.values())
    assert score.word_error_rate(hypotheses, references) == pytest.approx(100 * errors / total)
    characters = sum(editdistance.eval(hypotheses[name], references[name]) for name in references)
    assert score.character_error_rate(hypotheses, references) == pytest.approx(
        100 * characters / sum(len(text) for text in references.values())
    )


def test_accuracy_and_majority():
    truth = {"a": "neu", "b": "hap", "c": "neu", "d": "ang"}
    assert score.accuracy({"a": "neu", "b": "hap", "c": "sad", "d": "neu"}, truth) == pytest.approx(50.0)
    assert score.majority_share(truth) == pytest.approx(50.0)


def test_runner_scores_among_progress_bars():
    output = "test:  50%|##   | 1/2 [00:01<00:00]test per: 0.5125\ntest-other per: 0.9\ndev per: 0.25\ntest per: 0.5\n"
    assert score.runner_scores(TASKS["pr"], output, "test") == pytest.approx([51.25, 50.0])
    assert score.runner_scores(TASKS["asr"], "test-clean uer: 12.0\ntest-clean wer: 101.5", "test-clean") == [101.5]
    assert score.runner_scores(TASKS["pr"], "mytest per: 0.1\ntest per: 0.5\n", "test") == [50.0]
    assert score.best(TASKS["pr"], [51.25, 50.0]) == 50.0
    assert score.best(TASKS["sid"], [51.25, 50.0]) == 51.25
    assert score.best(TASKS["sid"], []) is None


def test_rescore_reads_a_folds_files(tmp_path):
    write(tmp_path / "test_fold2_predict.txt", {"a": "neu", "b": "hap", "c": "neu"})
    write(tmp_path / "test_fold2_truth.txt", {"a": "neu", "b": "neu", "c": "neu"})
    result = score.rescore(TASKS["er"], tmp_path, "fold2")
    assert result == {"acc": pytest.approx(200 / 3), "majority": 100.0, "n_utterances": 3}


def test_an_intent_is_right_in_all_its_slots(tmp_path):
    (tmp_path / "test_predict.csv").write_text("a b,on,lights,none\nb,up,heat,none\nc,up,heat,kitchen\n")
    (tmp_path / "test_truth.csv").write_text("a b,on,lights,none\nc,up,heat,bedroom\nb,up,heat,none\n")
    result = score.rescore(TASKS["ic"], tmp_path)
    assert result == {"acc": pytest.approx(200 / 3), "majority": pytest.approx(100 / 3), "n_utterances": 3}


def test_prediction_files_that_cannot_be_scored(tmp_path):
    with pytest.raises(EkdError, match="test-hyp.ark: not found"):
        score.rescore(TASKS["pr"], tmp_path)
    (tmp_path / "test-hyp.ark").write_text("\n \n")
    with pytest.raises(EkdError, match="test-hyp.ark: holds no utterance"):
        score.rescore(TASKS["pr"], tmp_path)
    with pytest.raises(EkdError, match="every reference is empty"):
        score.word_error_rate({"a": "B"}, {"a": ""})
    write(tmp_path / "test-hyp.ark", {"a": "B"})
    write(tmp_path / "test-ref.ark", {"a": "B", "b": "B"})
    with pytest.raises(EkdError, match="its reference differ: only one has b"):
        score.rescore(TASKS["pr"], tmp_path)
    (tmp_path / "test-hyp.ark").write_text("a B\na K\n")
    with pytest.raises(EkdError, match="test-hyp.ark:2: utterance a appears twice"):
        score.rescore(TASKS["pr"], tmp_path)
