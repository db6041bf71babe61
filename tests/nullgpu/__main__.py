"""Run a command on the null GPU: python -m tests.nullgpu -- run_pretrain.py ... (README.md)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from . import build, environment, why_not


def main() -> int:
    words = sys.argv[1:]
    if words[:1] == ["--"]:
        del words[0]
    reason = why_not() if words else "usage: python -m tests.nullgpu -- COMMAND ..."
    if reason:
        print(reason, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="nullgpu-") as folder:
        return subprocess.run(words, env=environment(build(Path(folder)))).returncode


if __name__ == "__main__":
    sys.exit(main())
