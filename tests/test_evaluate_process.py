"""A native command as a child process: its progress and its errors."""

from __future__ import annotations

import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import process


def test_progress_is_read_from_bars_and_prints(tmp_path):
    seen = []
    code = textwrap.dedent(
        """
        import sys
        sys.stderr.write("\\roverall:   0%|          | 0/40 [00:00<?, ?it/s]")
        sys.stderr.write("\\roverall:  25%|##5       | 10/40 [00:10<00:30,  1.00s/it]")
        sys.stderr.write("\\n\\rtrain:  50%|#####     | 2/4 [00:00<00:00]\\x1b[A")
        sys.stderr.flush()
        print("dev per: 0.75", flush=True)
        """
    )
    (tmp_path / "x.py").write_text(code)
    output, _ = process.run_logged(
        [sys.executable, str(tmp_path / "x.py")], tmp_path / "x.log", lambda p: seen.append((p.step, p.total, p.score))
    )
    assert seen[-1] == (10, 40, "dev per 0.75")
    assert output == "dev per: 0.75"
    assert "%|" not in (tmp_path / "x.log").read_text()


def test_our_own_error_line_is_the_message(tmp_path):
    code = "import sys; print('noise'); sys.stderr.write('error: config_model.yaml: ekd.mode: bad\\n'); sys.exit(2)"
    with pytest.raises(EkdError, match=r"x\.log: config_model\.yaml: ekd\.mode: bad$"):
        process.run_logged([sys.executable, "-c", code], tmp_path / "x.log", name="run_pretrain.py")


def test_jobs_side_by_side_are_stopped_at_the_same_time(tmp_path):
    """Each takes its time to end; a scheduler's patience does not grow with --jobs."""
    code = "import signal, sys, time; signal.signal(15, lambda *_: (time.sleep(1), sys.exit(1)))"
    command = [sys.executable, "-S", "-c", f"{code}; print('on', flush=True); time.sleep(60)"]
    children, failed = process.Children(), []
    logs = [tmp_path / f"{number}.log" for number in range(5)]

    def run(log: Path) -> None:
        try:
            process.run_logged(command, log, children=children)
        except EkdError as error:
            failed.append(str(error))

    threads = [threading.Thread(target=run, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    while not all(log.exists() and log.read_text().endswith("on\n") for log in logs):
        time.sleep(0.05)
    begun = time.monotonic()
    children.stop()
    assert time.monotonic() - begun < 3  # one after the other: 5
    for thread in threads:
        thread.join(10)
    assert len(failed) == 5 and "run_downstream.py failed (exit 1)" in failed[0]


def test_a_full_disk_names_the_log(tmp_path):
    log = tmp_path / "train.log"
    log.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as full:
        process.run_logged([sys.executable, "-c", "print('a line')"], log)
    assert full.value.filename == str(log)
