"""The three commands of this package as other processes are started (by this Python), and what ``-o`` can carry."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

MODULES = {
    "s3prl-ekd": ("s3prl_ekd.cli",),
    "run_pretrain.py": ("s3prl_ekd.bridge.launch", "run_pretrain"),
    "run_downstream.py": ("s3prl_ekd.bridge.launch", "run_downstream"),
}


def own_command(words: Sequence[str]) -> list[str]:
    """``["run_pretrain.py", ...]`` as it is started by this Python; the first word is one of :data:`MODULES`.

    The script that pip put beside this Python, or, where it put it elsewhere (``pip install --user``), the module
    behind it, to which the current folder is no place to import from (``-P``), as it is none to the script.
    """
    script = Path(sys.executable).with_name(words[0])
    start = [str(script)] if script.is_file() else [sys.executable, "-P", "-m", *MODULES[words[0]]]
    return [*start, *words[1:]]


def fits_option(value: object) -> bool:
    """Whether s3prl's ``-o`` can carry a text or a path: it splits at ``=`` and ``,,``."""
    return "=" not in str(value) and ",," not in str(value)
