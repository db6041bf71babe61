"""What a log step says: each head's own numbers, and the run's speed, wait for data and skipped files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from distill_lab import heads, hidden_state, objective, states
from pretrain_lab import Logger, make_expert

from s3prl_ekd.data.batches import Batch


@pytest.mark.parametrize("mode", ["multi_head", "layerwise_average", "layerwise_concat"])
def test_each_heads_values_are_its_own(mode: str) -> None:
    subject, hidden = objective(mode), hidden_state()
    given = states()
    if mode == "layerwise_concat":
        predictions = {"concat": torch.randn(len(hidden), 2, hidden.shape[1], 3 * given["a"][1].shape[-1])}
        predictions["concat"].requires_grad_()
        hidden = predictions["concat"]  # what the loss has a gradient at
    else:
        predictions = heads(hidden, subject.target_sets)
    _, values = subject(predictions, [hidden] * len(subject.heads), given, log=True)
    assert list(values) == [f"{t.name}.{label}" for t in subject.target_sets for label in t.labels]
    for target_set in subject.target_sets:
        for i, label in enumerate(target_set.labels):
            p, t = predictions[target_set.name][:, i], target_set.gather(given)[:, i]
            row = values[f"{target_set.name}.{label}"]
            assert row["l1"] == pytest.approx(F.l1_loss(p, t).item(), rel=1e-5)
            assert row["cosine"] == pytest.approx(-F.logsigmoid(F.cosine_similarity(p, t, -1)).mean().item(), rel=1e-5)
            assert row["target_norm"] == pytest.approx(t.abs().mean().item(), rel=1e-5)
    assert sum(row["gradient_share"] for row in values.values()) == pytest.approx(1.0)


def test_speed_wait_and_skipped_files(lab: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Since the last log step: four seconds of audio in eight, half of them spent waiting; then from zero again.

    A step's pass back comes after its log values, and counts in the next ones.
    """
    from s3prl_ekd.pretrain.ekd import step_log

    expert = make_expert(lab).train()
    now = [100.0]
    monkeypatch.setattr(step_log.time, "perf_counter", lambda: now[0])
    logger = Logger(tmp_path)
    expert.log._clock, expert.loader.waited = now[0], 4.0
    now[0] += 8.0
    for step, skipped in ((1, ["a.flac: broken", "b.flac: broken"]), (2, [])):
        batch = Batch(0.1 * torch.randn(2, 16_000), epoch=0, index=step, skipped=skipped)
        _, records = expert(batch, records={}, global_step=step, log_step=2)
    now[0] += 0.75  # the pass back and the optimizer's step
    expert.log_records(records, logger, "", 2)
    now[0] += 0.25
    _, records = expert(Batch(torch.randn(1, 8_000), 0, 3, ["c.flac: broken"]), records={}, global_step=4, log_step=2)
    expert.log_records(records, logger, "", 4)
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first["audio_seconds_per_second"], first["data_wait"], first["skipped_files"]) == (0.5, 0.5, 2)
    assert (second["audio_seconds_per_second"], second["data_wait"], second["skipped_files"]) == (0.5, 0.0, 3)
    assert {"audio-seconds-per-second", "data-wait", "skipped-files", "hubert.4/l1", "wavlm.6/gradient_share",
            "robust_hubert.2/cosine", "robust_hubert.2/target_norm"} <= logger.tags  # fmt: skip
