"""recipes.mini_superb: the commands that it calls share the cores, and stop together where it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mini_superb_lab import write_data

from recipes.mini_superb import calls
from recipes.mini_superb.calls import Calls
from s3prl_ekd.errors import EkdError

HERE = Path(calls.__file__).parent


def test_calls_share_the_cores_and_stop_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    show = [Path(sys.executable).name, "-c", "import os; print(os.environ.get('OMP_NUM_THREADS'))"]
    Calls(3)(show, tmp_path / "a.log")
    Calls()(show, tmp_path / "a.log")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    Calls(3)(show, tmp_path / "a.log")
    assert [line for line in (tmp_path / "a.log").read_text().splitlines() if line[0] != "$"] == ["3", "None", "7"]
    with pytest.raises(EkdError, match="exit 3: .*: last words"):
        Calls()([show[0], "-c", "print('last words'); raise SystemExit(3)"], tmp_path / "b.log")

    call, ended = Calls(), []
    slow = "import sys, time\nprint('up', flush=True)\ntry: time.sleep(60)\nexcept KeyboardInterrupt: sys.exit(130)"

    def run(log: Path) -> None:
        try:
            call([show[0], "-c", slow], log)
        except KeyboardInterrupt:
            ended.append(log.name)

    threads = [threading.Thread(target=run, args=(tmp_path / f"{name}.log",)) for name in "cd"]
    for thread in threads:
        thread.start()
    logs = [tmp_path / "c.log", tmp_path / "d.log"]
    while not all(log.is_file() and "\nup" in log.read_text() for log in logs):
        time.sleep(0.02)
    call.stop()
    for thread in threads:
        thread.join(30)
    assert sorted(ended) == ["c.log", "d.log"]
    with pytest.raises(KeyboardInterrupt):
        call(show, tmp_path / "e.log")


# The recipe in several folders at once, each a process of its own, forked when all is imported; its commands sleep.
# Writes each one's process id, and in the end each one's exit status.
FORKED = """
import os, runpy, subprocess, sys, types
from recipes.mini_superb import calls, scores, students, tables
popen = lambda words, **how: subprocess.Popen([sys.executable, "slow.py"], **how)
# the module's own name alone: of other subprocesses torch, from 2.15 on, starts some at its import
calls.subprocess = types.SimpleNamespace(**{**vars(subprocess), "Popen": popen})
children = []
for folder in sys.argv[1:]:
    children.append(os.fork())
    if children[-1] == 0:
        os.dup2(os.open(f"{folder}/err", os.O_CREAT | os.O_WRONLY), 2)
        sys.argv = ["mini_superb", *(f"--{name}={folder}/{name}" for name in ("speech", "work", "results"))]
        sys.argv += ["--parallel", "2", "--only", "fbank", "tiny_hubert"]
        runpy.run_module("recipes.mini_superb", run_name="__main__")
        os._exit(99)
print(*children, flush=True)
print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(scope="module")
def signalled(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, int]]:
    """Signal -> the folder and the exit status of a run that got it when both of its commands were going."""
    root = tmp_path_factory.mktemp("signals")
    (root / "slow.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(100)\n")
    folders = [root / number.name for number in SIGNALS]
    for folder in folders:
        write_data(folder)
    words = [sys.executable, "-c", FORKED, *map(str, folders)]
    env = os.environ | {"PYTHONPATH": str(HERE.parent.parent)}
    going = subprocess.Popen(words, cwd=root, env=env, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    children = [int(word) for word in going.stdout.readline().split()]
    try:
        for child, number, folder in zip(children, SIGNALS, folders, strict=True):
            while not all("\nup" in text for text in logs(folder)):
                assert time.monotonic() < deadline, (folder / "err").read_text()
                time.sleep(0.05)
            os.kill(child, number)
        statuses = going.communicate(timeout=30)[0].split()
    except BaseException:
        for child in children:
            os.kill(child, signal.SIGKILL)
        raise
    return {number: (folder, int(status)) for number, folder, status in zip(SIGNALS, folders, statuses, strict=True)}


def logs(folder: Path) -> list[str]:
    """What the two commands have said so far."""
    files = [folder / "work/scores" / row / "seed1/evaluate.log" for row in ("fbank", "tiny_hubert")]
    return [file.read_text() if file.is_file() else "" for file in files]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_the_commands(signalled: dict[int, tuple[Path, int]], number: int) -> None:
    """The real process: its command, in a session of its own, hears of it."""
    folder, status = signalled[number]
    how = "interrupted" if number == signal.SIGINT else "stopped by SIGTERM"
    assert f"{how}; run the same command again to resume" in (folder / "err").read_text()
    assert status == 128 + number
    assert all("KeyboardInterrupt" in text for text in logs(folder))
