"""Deaths of data workers: raised where a batch is waited for, not in a step nor while a checkpoint is written."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from console import code

from s3prl_ekd import data_workers
from s3prl_ekd.data_workers import end_children, killed_workers
from s3prl_ekd.signals import uninterrupted

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def die(own_handlers: None) -> Any:
    """A worker dies, and torch's handler raises it, as it does where one has died."""
    deaths = iter(range(1, 9))

    def handler(number: int, frame: Any) -> None:
        raise RuntimeError(f"DataLoader worker (pid {next(deaths)}) is killed by signal: Killed.")

    signal.signal(signal.SIGCHLD, handler)
    return lambda: os.kill(os.getpid(), signal.SIGCHLD)


def loader(die: Any, dies_at: int) -> Iterator[int]:
    """Batches, as data/batches.py hands them out; while the third is waited for, or so, a worker dies."""
    with data_workers.unheard():
        for batch in range(4):
            with data_workers.heard():
                if batch == dies_at:
                    die()
            yield batch


def test_a_death_is_raised_where_it_happens(die: Any) -> None:
    with pytest.raises(RuntimeError, match=r"\(pid 1\)"):
        die()
    with uninterrupted():
        pass
    with pytest.raises(RuntimeError, match=r"\(pid 2\)"):
        die()


def test_a_death_within_a_block_is_raised_at_its_end(die: Any) -> None:
    done = []
    with pytest.raises(RuntimeError, match=r"\(pid 1\)"), uninterrupted():
        with data_workers.unheard():
            die()
            die()
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    with pytest.raises(RuntimeError, match=r"\(pid 3\)"):
        die()


def test_a_death_in_a_step_is_raised_where_the_next_batch_is_waited_for(die: Any) -> None:
    steps = []
    with pytest.raises(RuntimeError, match=r"\(pid 1\)"):
        for batch in loader(die, dies_at=9):
            if batch == 2:
                die()
            steps.append(batch)
    assert steps == [0, 1, 2]


def test_a_death_while_a_batch_is_waited_for_is_raised_there(die: Any) -> None:
    """Also where another loader's batches, as those of a validation, are waited for in the middle of a step."""
    seen = []
    with pytest.raises(RuntimeError, match=r"\(pid 1\)"):
        for _ in loader(die, dies_at=9):
            for batch in loader(die, dies_at=2):
                seen.append(batch)
    assert seen == [0, 1]


def test_a_death_of_no_account_is_dropped(die: Any) -> None:
    """A run has taken its last step, or another error ends it."""
    for _ in loader(die, dies_at=9):
        die()
        break
    with pytest.raises(OSError, match="full"), uninterrupted():
        die()
        raise OSError("full")
    with uninterrupted():
        pass


def test_batches_that_are_given_up_late_hold_nothing_back(die: Any) -> None:
    """A loader that an error has left goes when the error goes, which can be within another's block."""
    first, second = loader(die, 9), loader(die, 9)
    next(first)
    next(second)
    del first
    die()
    with pytest.raises(RuntimeError, match=r"\(pid 1\)"):
        next(second)
    del second
    with pytest.raises(RuntimeError, match=r"\(pid 2\)"):
        die()


def test_a_handler_that_was_there_before_torchs_is_called_once(own_handlers: None) -> None:
    """torch's calls the one that it finds, which is ours where a block came before the first loader."""
    children: list[int] = []
    signal.signal(signal.SIGCHLD, lambda number, frame: children.append(number))
    with uninterrupted():
        pass
    found = signal.getsignal(signal.SIGCHLD)
    assert callable(found)
    signal.signal(signal.SIGCHLD, lambda number, frame: found(number, frame))
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGCHLD)
    os.kill(os.getpid(), signal.SIGCHLD)
    assert children == [signal.SIGCHLD] * 2


def test_other_threads_hold_nothing_back(die: Any) -> None:
    entered, over = threading.Event(), threading.Event()

    def write() -> None:
        with uninterrupted():
            entered.set()
            over.wait(60)

    thread = threading.Thread(target=write)
    thread.start()
    entered.wait(60)
    try:
        with pytest.raises(RuntimeError, match=r"\(pid 1\)"):
            die()
    finally:
        over.set()
        thread.join()


SAVED = """
import io, multiprocessing, sys, time
import torch
from torch.utils.data import DataLoader
from s3prl_ekd import cli
from s3prl_ekd.macs import command
from s3prl_ekd.torch_file import read_torch_file, write_torch_file

class Stream(io.FileIO):
    def write(self, part):
        for worker in multiprocessing.active_children():
            worker.kill()
            time.sleep(0.2)
        return super().write(part)

def body(*args):
    batches = iter(DataLoader(range(9), num_workers=1))
    next(batches)
    with Stream("x.pt", "w") as stream:
        write_torch_file({"x": torch.arange(5)}, stream)

command.run = body
sys.argv = ["s3prl-ekd", "macs", "x"]
status = cli.command()
assert read_torch_file("x.pt")["x"].tolist() == [0, 1, 2, 3, 4]
sys.exit(status)
"""


def test_a_checkpoint_is_written_whole_though_a_worker_dies(tmp_path: Path) -> None:
    """Raised in a stream's write(), it leaves torch's C++ with half a file: "unexpected pos 46 vs 0"."""
    done = code(SAVED, cwd=tmp_path)
    assert (
        done.stderr.startswith("error: DataLoader worker (pid ") and "is killed by signal: Killed; the" in done.stderr
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name,said", [("Killed", True), ("Bus error", True), ("Segmentation fault", False)])
def test_data_workers_that_the_system_kills_are_told_from_bugs(name: str, said: bool) -> None:
    error = RuntimeError(f"DataLoader worker (pid 1) is killed by signal: {name}. It is possible that ...")
    gone = RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")
    gone.__cause__ = error
    for found in (error, gone):
        line = killed_workers(found)
        assert line.startswith(f"DataLoader worker (pid 1) is killed by signal: {name}; the") == said == bool(line)
    assert not killed_workers(RuntimeError("Killed"))


def deaf(ready: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.release()
    time.sleep(60)


def slow_to_end(ready: Any) -> None:
    def end(number: int, frame: Any) -> None:
        time.sleep(0.2)
        os._exit(7)

    signal.signal(signal.SIGTERM, end)
    ready.release()
    time.sleep(60)


def test_a_child_that_ends_in_time_is_let_end() -> None:
    ready = FORK.Semaphore(0)
    child = FORK.Process(target=slow_to_end, args=(ready,), daemon=True)
    child.start()
    ready.acquire()
    end_children(grace=30.0)
    assert child.exitcode == 7


def test_deaf_children_are_waited_for_together() -> None:
    """Four data workers took 20 s, of the 30 s that there are."""
    ready = FORK.Semaphore(0)
    children = [FORK.Process(target=deaf, args=(ready,), daemon=True) for _ in range(6)]
    for child in children:
        child.start()
    for _ in children:
        ready.acquire()
    begin = time.monotonic()
    end_children(grace=1.0)
    assert time.monotonic() - begin < 5  # one by one: 6
    for child in children:
        child.join()
        assert child.exitcode == -signal.SIGKILL


STOPPED_BESIDE_JOBLIB = """
import os, signal
from joblib import Parallel, delayed
from s3prl_ekd.signals import Interrupted, Signals

assert Parallel(n_jobs=2)(delayed(abs)(number) for number in (-1, -2)) == [1, 2]
signals = Signals()
signals.listen()
try:
    os.kill(os.getpid(), signal.SIGTERM)
except Interrupted:
    print("interrupted")
"""


def test_joblibs_workers_are_ended_too(tmp_path: Path) -> None:
    """They cannot be killed as multiprocessing's can: of ASV, Ctrl-C or SIGTERM was an AttributeError."""
    done = code(STOPPED_BESIDE_JOBLIB, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


KILLED = """
import os, signal
import numpy as np
from torch.utils.data import DataLoader
from s3prl_ekd.data_workers import end_with_this_process

end_with_this_process()
batches = iter(DataLoader([np.zeros(50_000)] * 20, batch_size=2, collate_fn=list, num_workers=2))
next(batches)
print(*(worker.pid for worker in batches._workers), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_data_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    """Batches of numpy arrays, as s3prl's are: their workers stayed for ever, waiting for a reader."""
    done = code(KILLED, cwd=tmp_path)
    workers = [Path("/proc", number) for number in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(workers) == 2, done.stderr
    until = time.monotonic() + 4  # before they look for it themselves
    while time.monotonic() < until and any(map(is_alive, workers)):
        time.sleep(0.1)
    assert not any(map(is_alive, workers))


def is_alive(process: Path) -> bool:
    """Whether a process of ``/proc`` is there, and has not ended without anybody who asks how."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
