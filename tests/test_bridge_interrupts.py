"""How a run ends: an error in one line, a bug with its traceback."""

from __future__ import annotations

import pytest

from s3prl_ekd.bridge import interrupts
from s3prl_ekd.errors import EkdError


def test_a_workers_error_is_cut_to_its_last_line() -> None:
    text = "Caught AudioError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\n"
    error = EkdError(text + "s3prl_ekd.audio.AudioError: a.flac: the audio file is empty (0 bytes)\n")
    assert interrupts.one_line(error) == "a.flac: the audio file is empty (0 bytes)"


def test_bugs_keep_their_traceback() -> None:
    run = interrupts.Run([])
    run._listen = lambda: None  # leave pytest's own signal handlers

    def bug() -> None:
        raise KeyError("a real one")

    with pytest.raises(KeyError):
        run.execute(bug)


def test_an_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    run = interrupts.Run([])
    run._listen = lambda: None

    def body() -> None:
        raise EkdError("-k x: no such\n checkpoint")

    assert run.execute(body) == 2
    assert capsys.readouterr().err == "error: -k x: no such checkpoint\n"
