"""The installed commands, as a user runs them: from a folder of the test's own, on the CPU."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from command_server import SCRIPTS, Server

BIN = Path(sys.executable).parent

# One process for all mistakes of a command: importing s3prl takes longer than all of them.
SCRIPT = """
import sys
from s3prl_ekd.bridge import launch
name, *lines = sys.argv[1:]
for line in lines:
    sys.argv = [f"run_{name}.py", *line.split(), "--device", "cpu"]
    sys.stderr.write("\\nCASE\\n")
    status = getattr(launch, f"run_{name}")()
    sys.stderr.write(f"status {status}\\n")
"""


def environment(**extra: str) -> dict[str, str]:
    """The environment of a command under test: two cores shared, no rank of an outer launcher."""
    env = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    return env | {"OMP_NUM_THREADS": "1"} | extra


def command(name: str, *args: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run an installed console command and return what it printed."""
    return _python(str(BIN / name), *map(str, args), cwd=cwd, **env)


def forked(name: str, *args: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """As :func:`command`, but for the seconds of its imports: a fork of a process that has made them."""
    return called(next(function for function, script in SCRIPTS.items() if script == name), *args, cwd=cwd, **env)


def called(function: str, *args: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """As :func:`forked`, of any function (``module:function``), which finds the words in ``sys.argv``."""
    try:
        (done,) = _server().run_all([(function, args, environment(**env))], cwd, whole=True)
    except BaseException:
        _server.cache_clear()
        raise
    return subprocess.CompletedProcess([function, *map(str, args)], done.status, done.out, done.err)


@cache
def _server() -> Server:
    """One for all tests of this process."""
    # no TemporaryDirectory: from 3.13 on a process of multiprocessing forgets what is registered, and would delete it
    folder = Path(mkdtemp(prefix="commands-"))
    # a test's own Hub, which huggingface_hub would keep
    variables = {name: value for name, value in environment().items() if not name.startswith("HF_")}
    server = Server(variables, folder)
    atexit.register(shutil.rmtree, folder)
    atexit.register(server.close)  # before that
    return server


def code(text: str, *args: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """As :func:`command`, of Python code: a command with something in it replaced."""
    return _python("-c", text, *map(str, args), cwd=cwd, **env)


def _python(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment(**env), text=True, capture_output=True, timeout=300
    )


def check_mistakes(name: str, mistakes: Mapping[str, str], cwd: Path) -> None:
    """``run_NAME.py`` ends with status 2 and one line on every command line; the line contains what is expected.

    ``mistakes``: command line -> a part of its error message.
    """
    words = [sys.executable, "-c", SCRIPT, name, *mistakes]
    done = subprocess.run(words, cwd=cwd, env=environment(), text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    blocks = done.stderr.split("\nCASE\n")[1:]
    for (line, expected), block in zip(mistakes.items(), blocks, strict=True):
        *_, message, status = block.strip().splitlines()
        assert status == "status 2" and message.startswith("error: ") and expected in message, f"{line}\n{block}"
        assert "Traceback" not in block
