"""How the project starts its own commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from s3prl_ekd.own_scripts import MODULES, own_command


def test_a_command_is_this_pythons_own_or_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MODULES:
        assert own_command([name, "-h"]) == [str(Path(sys.executable).with_name(name)), "-h"]
    python = sys.executable
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert own_command(("run_pretrain.py", "-h"))[1:] == ["-P", "-m", "s3prl_ekd.bridge.launch", "run_pretrain", "-h"]
    _, *words = own_command(["s3prl-ekd", "--help"])
    (tmp_path / "s3prl_ekd.py").write_text("raise RuntimeError('of the current folder')")
    done = subprocess.run([python, *words], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0 and "prepare" in done.stdout
