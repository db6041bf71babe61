"""What is said of clips that are longer than a crop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ekd.config import DataConfig
from s3prl_ekd.crops import heard_in_words, little_heard
from s3prl_ekd.data.lengths import read_lengths, tell_of_crops

SECOND = 16_000
HALF_HOURS = [1800 * SECOND] * 4


def test_what_an_epoch_hears_of_long_clips_is_said() -> None:
    assert heard_in_words([10 * SECOND, 15 * SECOND], 15 * SECOND) == "" == heard_in_words([10**9], 0)
    said = ", of which an epoch hears 0.017 h: one crop of 15.0 s of each longer clip"
    assert heard_in_words(HALF_HOURS, 15 * SECOND) == said
    assert heard_in_words([*HALF_HOURS, *[10 * SECOND] * 900], 15 * SECOND).startswith(
        ", of which an epoch hears 2.5 h: "
    )


def test_a_set_of_which_little_is_heard() -> None:
    assert little_heard("x", [30 * SECOND, 30 * SECOND], 15 * SECOND) is None is little_heard("x", [], 15 * SECOND)
    rest = "x: an epoch hears 0.83 % of it, one crop of 15.0 s (task.sequence_length) of each clip; cut its files into"
    assert little_heard("x", HALF_HOURS, 15 * SECOND) == f"{rest} clips of about 15 s"


def test_of_several_sets_the_one_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soundfile.write(tmp_path / "0.wav", np.zeros(8_000), SECOND)
    for name, samples in (("train", 8_000), ("long", 1800 * SECOND)):  # only its header is asked for
        (tmp_path / f"{name}.csv").write_text(f"file_path,length\n0.wav,{samples}\n")
    config = DataConfig(libri_root=str(tmp_path), file_path=str(tmp_path), sets=["train", "long"])
    tell_of_crops(read_lengths(config), 20_000)
    (line,) = caplog.messages
    assert line.startswith("[data] long: an epoch hears 0.069 % of it")
