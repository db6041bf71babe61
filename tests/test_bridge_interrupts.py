"""How a run ends: an error in one line, a bug with its traceback."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from console import environment

from s3prl_ekd.bridge import interrupts, ranks
from s3prl_ekd.errors import EkdError, one_line
from s3prl_ekd.signals import Interrupted

pytestmark = pytest.mark.usefixtures("own_handlers")


def test_a_workers_error_is_cut_to_its_last_line() -> None:
    text = "Caught AudioError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\n"
    error = EkdError(text + "s3prl_ekd.audio.AudioError: a.flac: the audio file is empty (0 bytes)\n")
    assert one_line(error) == "a.flac: the audio file is empty (0 bytes)"


def test_bugs_keep_their_traceback() -> None:
    run = interrupts.Run([])

    def bug() -> None:
        raise KeyError("a real one")

    with pytest.raises(KeyError):
        run.execute(bug)


def test_a_terminal_does_not_obey_what_a_message_quotes() -> None:
    quoted = EkdError("x.ckpt: made with -u \x1b]0;a\x07b\n\x9b1mé→")
    assert one_line(quoted) == r"x.ckpt: made with -u \x1b]0;a\x07b \x9b1mé→"


def test_an_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    run = interrupts.Run([])

    def body() -> None:
        raise EkdError("-k x: no such\n checkpoint")

    assert run.execute(body) == 2
    assert capsys.readouterr().err == "error: -k x: no such checkpoint\n"


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What a run that an error or a signal ends says, and its status."""
    monkeypatch.setattr(sys, "argv", ["/some/bin/run_pretrain.py"])

    def run(error: BaseException, *argv: str, number: int = 0, rank: int = 0, size: int = 1, **changes: Any) -> Any:
        one = interrupts.Run(list(argv))
        one.expdir, one.world.rank, one.world.size = tmp_path, rank, size
        vars(one).update(changes)

        def body() -> None:
            one.signals.number = number
            raise error

        status = one.execute(body)
        return status, capsys.readouterr().err

    return run


def test_a_stopped_run_says_how_it_goes_on(end: Any, tmp_path: Path) -> None:
    def stopped(*argv: str, number: int = signal.SIGTERM, **changes: Any) -> tuple[int, str]:
        status, said = end(Interrupted(), *argv, number=number, **changes)
        assert said == "" or said[0] == "\n" and said.count("\n") == 2  # the cursor stood at the end of a bar
        return status, said.strip()

    start = "stopped by SIGTERM before the first checkpoint; start again with: "
    assert stopped("-n", "a b", "-a") == (143, f"{start}run_pretrain.py -n 'a b' -a")
    assert stopped("-n", "x", expdir=None) == (143, f"{start}run_pretrain.py -n x")
    (tmp_path / "states-4.ckpt").touch()
    go_on = "stopped by SIGTERM; continue with: "
    assert stopped("-n", "x", "-a") == (143, f"{go_on}run_pretrain.py -n x -a")
    assert stopped("-n", "x", size=2) == (143, f"{go_on}torchrun ... run_pretrain.py -n x")
    assert stopped("-n", "x", rank=1, size=2) == (143, "")
    assert stopped("-m", "evaluate", resumable=False) == (143, "stopped by SIGTERM")
    assert stopped("-n", "x", number=signal.SIGINT)[0] == 130
    status, said = end(KeyboardInterrupt(), "-n", "x")  # raised by somebody else
    assert status == 130 and "stopped by SIGINT; " in said


def test_what_is_no_bug_is_one_line(end: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "x/log.log")
    assert end(full) == (2, "error: x/log.log: No space left on device; what was saved is kept\n")
    nameless = OSError(errno.ENOSPC, "No space left on device")
    assert end(nameless) == (2, f"error: {tmp_path}: No space left on device; what was saved is kept\n")
    memory = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 3 GiB.\nMore.")
    advice = "; make room on this GPU, or set a smaller batch (docs/faq.md, Out of memory)\n"
    assert end(memory) == (2, f"error: CUDA out of memory. Tried to allocate 2.00 GiB{advice}")
    cublas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    for words in ("CUDA error: out of memory", "Triton Error [CUDA]: out of memory", cublas):
        assert end(RuntimeError(f"{words}\nCompile with ...")) == (2, f"error: {words}{advice}")
    killed = RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. It is possible that ...")
    status, said = end(killed)
    assert status == 2 and said.startswith("error: DataLoader worker (pid 1) is killed by signal: Killed; the system")
    assert said.endswith("; what was saved is kept\n")
    for cut in (killed, ConnectionResetError("a worker's pipe"), ImportError("half of a module")):
        assert end(cut, number=signal.SIGTERM)[0] == 143  # made of the signal that came
    assert end(full, number=signal.SIGTERM)[0] == 2
    for error in (OSError(errno.ENOENT, "No such file"), RuntimeError("gloo: Connection closed by peer")):
        with pytest.raises(type(error)):
            end(error)
    monkeypatch.setattr(interrupts.Signals, "awaited", lambda self, seconds: False)
    lost = RuntimeError("gloo: Connection closed by peer\nframe 1")
    host = socket.gethostname()
    assert end(lost, size=2) == (1, "error: lost contact to another rank: gloo: Connection closed by peer\n")
    assert end(lost, rank=1, size=2)[1].strip() == (
        f"error: lost contact to another rank (rank 1 on {host}): gloo: Connection closed by peer"
    )
    status, said = end(KeyError("a bug"), size=2)  # said, so that the launcher's signal does not come before it
    assert status == 1 and "Traceback" in said and "KeyError: 'a bug'" in said
    with pytest.raises(RuntimeError, match="a bug"):
        end(RuntimeError("a bug"))


def test_an_error_that_another_rank_has_met_is_the_first_ranks_to_say(end: Any) -> None:
    assert end(EkdError("wrong"), size=2) == (2, "error: wrong\n")
    assert end(EkdError("wrong"), rank=1, size=2) == (2, "")


def test_what_one_rank_alone_has_met_names_it(end: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks.World, "may_report", lambda self, text: True)
    assert end(EkdError("wrong"), rank=1, size=2) == (2, f"\nerror: wrong (rank 1 on {socket.gethostname()})\n")
    assert end(ranks.PeerError("wrong (rank 3)"), rank=1, size=2) == (2, "\nerror: wrong (rank 3)\n")


def test_a_run_that_ends_well_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert interrupts.Run([]).execute(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_a_second_signal_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr("s3prl_ekd.signals._ONE_STOP", 0.0)
    one = interrupts.Run([])

    def body() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), number)

    assert one.execute(body) == 0 and left == [143]


ENDING = """
import os, subprocess, sys, time
from pathlib import Path
from torch.utils.data import DataLoader
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.errors import EkdError, one_line

class Store:  # what a launch has
    def set(self, key, value): pass
    def add(self, key, number): return number

run = Run(["-u", "ekd", "-p", "x"])
run.expdir, run.world.store = Path("x"), Store()
loader = iter(DataLoader(range(99), num_workers=1))  # alive to the end, as where a traceback holds its frame

def body():
    next(loader)
    worker, rank = loader._workers[0].pid, os.getpid()
    # torch tells who kills a worker: its parent may
    launcher = subprocess.Popen(["sh", "-c", f"sleep 0.4; kill {worker}; sleep 0.4; kill {rank}"])
    raise ERROR

sys.exit(run.execute(body))
"""
"""The first of two ranks, which an error ends; torchrun then signals its process group, its data worker too."""


@pytest.mark.parametrize(
    "error,message,status",
    [
        (
            "RuntimeError('gloo: Connection closed by peer')",
            "stopped by SIGTERM; continue with: torchrun ... run_pretrain.py -u ekd -p x",
            128 + signal.SIGTERM,
        ),
        ("EkdError('a mistake')", "error: a mistake", 2),
    ],
)
def test_the_ends_of_data_workers_hide_no_message(tmp_path: Path, error: str, message: str, status: int) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/states-4.ckpt").touch()
    script = tmp_path / "run_pretrain.py"
    script.write_text(ENDING.replace("ERROR", error))
    ranks = environment(WORLD_SIZE="2", RANK="0")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=ranks, capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == message
    assert done.returncode == status
