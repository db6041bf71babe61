"""Tensorboard's files where a signal ends a run, with tensorboardX itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from console import environment

from benchmarks.parity import scalars

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


KILLED = """
import os, signal, sys, time
from tensorboardX import SummaryWriter
from s3prl_ekd.bridge import event_files

event_files._FLUSHED_EVERY = 0.2
writer = event_files.EventFiles().noted(SummaryWriter)(sys.argv[1])
for step in range(1, 4):
    writer.add_scalar("loss", 1.0, step)
    time.sleep(1.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_points_are_on_disk_soon(tmp_path: Path) -> None:
    """A run that goes on after a kill begins behind its last checkpoint: points from before that would never come."""
    words = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert scalars(tmp_path) == {("loss", step): 1.0 for step in (1, 2, 3)}
