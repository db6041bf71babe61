"""What is said of audio that cannot be read: each file once a run, a handful by name, then a number."""

from __future__ import annotations

from pathlib import Path

import pytest
from pretrain_lab import Logger, make_expert

from s3prl_ekd.data.skipped import NAMED, SkippedAudio


def test_each_is_named_once_and_no_more_than_a_handful() -> None:
    said: list[str] = []
    skipped = SkippedAudio("left out", said.append)
    for _ in range(2):  # epochs
        for first in range(0, NAMED, 2):
            skipped.tell([f"{first}.wav: broken", f"{first + 1}.wav: broken"])
    assert said == [f"[ekd] left out: {number}.wav: broken" for number in range(NAMED)]
    for number in range(1_000):
        skipped.tell([f"other/{number}.wav: broken"])
    assert said[NAMED:] == [f"[ekd] left out: more than these {NAMED}; the others are not named"]


def test_training_names_a_file_once_and_its_count_stands_behind_the_loss(
    lab: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    expert, logger = make_expert(lab), Logger(tmp_path)
    paths = expert.loader.dataset.table.paths
    paths[5] = f"{paths[5]}.gone"
    step = 0
    for _ in range(2):
        for batch in expert.get_train_dataloader():
            _, records = expert(batch, records={}, global_step=step, log_step=1)
            expert.log_records(records, logger, "", step)
            step += 1
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"[ekd] skipped: {paths[5]}: no such audio file"]
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("[ekd] step 0: loss ") and last.endswith(" s of audio a second, clips skipped so far: 2")
