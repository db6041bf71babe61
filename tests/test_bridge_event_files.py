"""Tensorboard's files where a signal ends a run, with tensorboardX itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from console import environment

CLOSING = """
import sys, time
from tensorboardX import SummaryWriter
from s3prl_ekd.bridge import event_files
from s3prl_ekd.signals import leave

files = event_files.EventFiles()
writer = files.noted(SummaryWriter)(sys.argv[1])
writer.add_scalar("loss", 1.0, 1)
events = writer.file_writer.event_writer
if sys.argv[2] == "slow disk":
    event_files._CLOSING = 0.5
    events._event_queue.close = lambda: time.sleep(10)
else:  # in the middle of it
    events._worker.stop()
    events._ev_writer.close()
files.close(interrupted=True)
leave(130)
"""


@pytest.mark.parametrize("when", ["slow disk", "half closed"])
def test_after_a_signal_tensorboard_says_nothing_more(tmp_path: Path, when: str) -> None:
    """Else what Python's end finds closed already is a traceback after the line: "flush of closed file"."""
    words = [sys.executable, "-c", CLOSING, str(tmp_path), when]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (130, "")
    assert list(tmp_path.glob("events.*"))
