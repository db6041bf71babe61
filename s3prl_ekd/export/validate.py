"""``s3prl-ekd validate DIR``: would the SUPERB organisers accept this submission folder?

Two trials, each in a process of its own: the validator's assertions where only PyTorch can be imported and the network
is refused (``isolated.py``), then the organisers' loading code in s3prl's runner (``runner_trial.py``).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from s3prl_ekd.console import Console
from s3prl_ekd.errors import EkdError
from s3prl_ekd.export.isolated import CLOSING


@dataclass(frozen=True)
class Check:
    """One line of the answer."""

    title: str
    passed: bool
    detail: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="a submission folder, whose expert.py is run")
    parser.add_argument(
        "--python", type=Path, help="run all checks but the last with this interpreter (a bare venv with torch)"
    )
    parser.add_argument("--skip-runner", action="store_true", help="leave out the last check, with s3prl's runner")


def run(args: argparse.Namespace) -> int:
    """Show every check; returns 0 when all pass, else 1."""
    if not args.folder.is_dir():
        raise EkdError(f"{args.folder}: no such folder; s3prl-ekd export superb makes one")
    console = Console()
    checks = run_isolated(args.folder, args.python)
    for check in checks:
        _show(console, check)
    if all(check.passed for check in checks):
        if args.skip_runner or importlib.util.find_spec("s3prl") is None:
            console.print("[dim]s3prl's runner: not tried[/]")
        else:
            checks.append(run_in_s3prl(args.folder))
            _show(console, checks[-1])
    passed = all(check.passed for check in checks)
    console.print("[bold green]valid submission[/]" if passed else "[bold red]not a valid submission[/]")
    return 0 if passed else 1


def run_isolated(folder: Path, python: Path | None = None) -> list[Check]:
    """The validator's assertions in a fresh process without our package, s3prl and the network.

    Args:
        folder: the submission.
        python: another interpreter, which brings its own PyTorch.

    Returns:
        the checks that were made; the last one has not passed where one fails, or the process ended before all were.

    Raises:
        EkdError: that interpreter cannot be started.
    """
    script = str(Path(__file__).with_name("isolated.py"))
    if python is None:
        command = [sys.executable, "-I", "-B", "-S", script, str(folder.resolve()), *_torch_folders()]
    else:
        command = [str(python), "-I", "-B", script, str(folder.resolve())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=_environment())
    except OSError as error:
        raise EkdError(f"--python {python}: cannot be started ({error.strerror})") from error
    checks, closed = [], False
    for line in done.stdout.splitlines():
        if line.startswith('{"check"'):  # whatever else the folder's code prints is not ours
            found = json.loads(line)
            checks.append(Check(found["check"], found["passed"], found["detail"]))
        closed = closed or line == CLOSING
    if all(check.passed for check in checks) and (done.returncode or not closed):
        ended = f"ended with status {done.returncode} after {len(checks)} checks that passed"
        reason = _last_line(done.stderr)
        checks.append(Check("the process makes every check and ends well", False, f"{ended} {reason}".rstrip()))
    return checks


def run_in_s3prl(folder: Path) -> Check:
    """Two training steps of ER with s3prl's runner, which loads the folder as the organisers' machines do."""
    with tempfile.TemporaryDirectory(prefix="s3prl-ekd-validate-") as work:
        # -P: an expert.py or an s3prl in the current folder must not come before theirs
        command = [sys.executable, "-P", "-m", "s3prl_ekd.export.runner_trial", str(folder), work]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=_environment())
        trained = any(Path(work, "experiment").glob("states-*.ckpt"))
    title = "s3prl's runner loads it as the organisers do and trains ER"
    if done.returncode == 0 and trained:
        return Check(title, True)
    return Check(title, False, _last_line(done.stderr) or f"exit status {done.returncode}")


def _torch_folders() -> list[str]:
    """Where PyTorch and what it needs are installed: its own folder first, then the other site folders."""
    import torch

    home = str(Path(torch.__file__).resolve().parents[1])
    others = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages")) and entry != home]
    return [home, *others]


def _environment() -> dict[str, str]:
    """Ours, with any GPU hidden (s3prl's runner on ``--device cpu`` trips over one) and no __pycache__ left behind."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _show(console: Console, check: Check) -> None:
    mark = "[green]ok[/]" if check.passed else "[red]FAILED[/]"
    text = escape(check.detail)  # the words of the folder's own code
    detail = f" [dim]({text})[/]" if check.passed and text else f": {text}" if text else ""
    console.print(f"{mark} {check.title}{detail}", highlight=False, soft_wrap=True)
