"""A signal is heard wherever Python stands, and data workers' ends are no errors from then on."""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from console import code

from s3prl_ekd.bridge.checkpoints import AtomicCheckpoints
from s3prl_ekd.cli import main
from s3prl_ekd.ending import carry_out
from s3prl_ekd.signals import Interrupted, Signals, leave

pytestmark = pytest.mark.usefixtures("own_handlers")
FORK = multiprocessing.get_context("fork")
DIED = RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")


class Dropping:
    """Python drops what is raised while this is deleted."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def drop(status: Any = None) -> None:
    """Have a signal dropped, then wait for it."""
    try:
        found = Dropping()
        del found
        time.sleep(20)
    except KeyboardInterrupt:
        if status is None:
            raise
        status.value = 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_raised(number: signal.Signals) -> None:
    before, hook = signal.getsignal(number), sys.unraisablehook
    signals = Signals()
    signals.listen()
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), number)
    assert signals.number == number
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), number)
    signals.end()
    os.kill(os.getpid(), number)  # nothing comes between an error and its message
    assert signals.awaited(0)
    signals.restore()
    assert signal.getsignal(number) is before and sys.unraisablehook == hook


def test_the_second_one_can_be_another_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that comes together with the first, as where a launcher passes on what the whole group has got."""
    seconds: list[int] = []
    signals = Signals(on_second=seconds.append)
    signals.listen()
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    assert (signals.number, seconds) == (signal.SIGINT, [])
    monkeypatch.setattr("s3prl_ekd.signals._ONE_STOP", 0.0)
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
    assert seconds == [signal.SIGTERM]


def test_one_that_python_drops_comes_again() -> None:
    Signals().listen()
    with pytest.raises(Interrupted):
        drop()


def test_a_forked_worker_hears_it_too() -> None:
    signals = Signals()
    signals.listen()
    heard = FORK.Value("i", 0)
    worker = FORK.Process(target=drop, args=(heard,))
    worker.start()
    worker.join()
    assert heard.value == 1 and signals.number == 0


def test_after_a_signal_what_it_left_half_done_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that die of it; filelock's hooks at a fork, the second of which misses what the first was to write."""
    shown: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: shown.append(found.exc_value))
    signals = Signals()
    signals.listen()
    another = KeyError(140465536191360)
    for error in (DIED, another):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
        assert shown.pop() is error
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGCHLD) is not handler
    for error in (DIED, another):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert shown == []
    assert signals.ended_workers(DIED) and not signals.ended_workers(another)


@pytest.mark.parametrize("kind", [ImportError, RuntimeError, ConnectionResetError])
def test_what_a_library_makes_of_a_signal_is_no_bug(kind: type[Exception], capfd: pytest.CaptureFixture[str]) -> None:
    """As torch's ONNX exporter, where one interrupts what it imports."""

    def act() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Interrupted as error:
            raise kind("while it was imported") from error

    def bug() -> None:
        raise kind("a bug")

    assert carry_out(act, Signals()) == 143
    assert capfd.readouterr().err == "stopped by SIGTERM\n"
    with pytest.raises(kind, match="a bug"):
        carry_out(bug, Signals())


def test_another_thread_says_what_went_wrong_as_well(capfd: pytest.CaptureFixture[str]) -> None:
    """It may not say what a signal does, so that it hears of none."""

    def act() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.ckpt")

    with ThreadPoolExecutor() as pool:
        assert pool.submit(carry_out, act, Signals()).result() == 2
    assert capfd.readouterr().err == "error: x.ckpt: No space left on device\n"


@pytest.mark.parametrize(
    ("status", "hard", "leaves"),
    [(0, False, False), (1, False, False), (2, False, False), (130, False, True), (143, False, True),
     (0, True, False), (1, True, True), (2, True, True)],
)  # fmt: skip
def test_what_runs_at_exit_is_waited_for_no_longer_than_said(
    monkeypatch: pytest.MonkeyPatch, status: int, hard: bool, leaves: bool
) -> None:
    """After a signal, and after an error of one rank of several: else whoever waits would wait for ever."""
    left: list[object] = []
    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: (left.append("cleaned up"), time.sleep(60)))
    monkeypatch.setattr(os, "_exit", left.append)
    begin = time.monotonic()
    assert leave(status, seconds=0.1, hard=hard) == status
    assert left == (["cleaned up", status] if leaves else []) and time.monotonic() - begin < 30


SAVED = """
import io, os, signal, sys
import torch
from s3prl_ekd import cli
from s3prl_ekd.macs import command
from s3prl_ekd.torch_file import read_torch_file, write_torch_file

class Stream(io.FileIO):
    def write(self, part):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().write(part)

def body(*args):
    with Stream("x.pt", "w") as stream:
        try:
            write_torch_file({"x": torch.arange(5)}, stream)
        except KeyboardInterrupt:
            assert read_torch_file("x.pt")["x"].tolist() == [0, 1, 2, 3, 4]
            raise

command.run = body
sys.argv = ["s3prl-ekd", "macs", "x"]
sys.exit(cli.command())
"""


def test_what_is_being_saved_is_saved(tmp_path: Path) -> None:
    """Raised in a stream's write(), a signal's exception would go through torch's C++, which ends the process then."""
    done = code(SAVED, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "stopped by SIGTERM\n")


def test_a_run_that_is_stopped_while_it_saves_ends_with_that_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, signals = AtomicCheckpoints(), Signals()
    keeper.save({"Step": 1}, tmp_path / "states-1.ckpt")
    keeper.remove(tmp_path / "states-1.ckpt")
    replace = os.replace

    def interrupted(partial: Path, path: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        replace(partial, path)

    monkeypatch.setattr(os, "replace", interrupted)
    signals.listen()
    with pytest.raises(Interrupted):
        keeper.save({"Step": 2}, tmp_path / "states-2.ckpt")
    signals.restore()
    assert [path.name for path in tmp_path.iterdir()] == ["states-2.ckpt"]


STUCK = """
import os, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from s3prl_ekd import cli
from s3prl_ekd.bridge import interrupts, launch
from s3prl_ekd.macs import command

class Loader:  # a signal has hit it while it held a lock of its queues
    def __del__(self):
        time.sleep(600)

def body(*args):
    loader = Loader()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(9)

command.run = body
execute = interrupts.Run.execute
interrupts.Run.execute = lambda run, _: execute(run, body)
sys.argv = ["run_pretrain.py", "macs", "x"]
sys.exit(ENTRY())
"""


@pytest.mark.parametrize(
    ("entry", "said"),
    [("cli.command", "stopped by SIGTERM"), ("launch.run_pretrain", "stopped by SIGTERM before the first checkpoint")],
)
def test_what_a_signal_has_left_locked_is_not_waited_for(tmp_path: Path, entry: str, said: str) -> None:
    done = code(STUCK.replace("ENTRY", entry), cwd=tmp_path)
    assert done.stderr.strip().startswith(said)
    assert done.returncode == 128 + signal.SIGTERM


def test_a_command_whose_data_worker_the_system_kills(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    monkeypatch.setattr("s3prl_ekd.macs.command.run", run)
    assert main(["macs", "x"]) == 2
    assert capsys.readouterr().err.startswith("error: DataLoader worker (pid 1) is killed by signal: Killed; the ")


@pytest.mark.parametrize("stopped", [True, False])
def test_a_command_whose_data_workers_ended_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stopped: bool
) -> None:
    def run(args: Any) -> None:
        if stopped:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        raise DIED

    monkeypatch.setattr("s3prl_ekd.macs.command.run", run)
    if stopped:
        assert main(["macs", "x"]) == 128 + signal.SIGTERM
        assert capsys.readouterr().err == "stopped by SIGTERM\n"
    else:
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            main(["macs", "x"])
