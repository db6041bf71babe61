"""benchmarks/gpu/run.sh, with a stand-in for the command that it calls."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RUN = """#!/bin/sh
folder=$4
[ ! -e "$folder/states-1.ckpt" ] || { echo "error: $folder: holds states-1.ckpt of an earlier run"; exit 2; }
mkdir -p "$folder"
touch "$folder/states-1.ckpt"
echo '{"audio_seconds_per_second": 100.0, "data_wait": 0.5}' >"$folder/metrics.jsonl"
"""


def test_the_papers_setting_is_measured_anew_by_each_call(tmp_path: Path) -> None:
    """WORK keeps data from one call to the next, and kept the run too, which refused the second call."""
    work = tmp_path / "work"
    (work / "data").mkdir(parents=True)
    (work / "data" / ".done").touch()
    command = tmp_path / "run_pretrain.py"
    command.write_text(RUN)
    command.chmod(0o755)
    script = Path(__file__).parent.parent / "benchmarks" / "gpu" / "run.sh"
    words = ["bash", str(script), "none", str(tmp_path), str(tmp_path / "out"), "full"]
    more = {"WORK": str(work), "DEVICE": "cpu", "PYTHON": sys.executable}
    environment = os.environ | more | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    for _ in range(2):
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0 and "100 audio seconds a second" in done.stdout, done.stdout + done.stderr
