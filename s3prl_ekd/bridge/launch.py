"""The console commands ``run_pretrain.py`` and ``run_downstream.py``: s3prl's own, made to work from any folder.

Here are only the two entry points; what each does is in ``pretrain_launch.py`` and ``downstream_launch.py``.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.data_workers import end_with_this_process
from s3prl_ekd.signals import leave

if TYPE_CHECKING:
    from s3prl_ekd.distill.objective import Objective


def run_pretrain(objective: type[Objective] | None = None) -> int:
    """Entry point of ``run_pretrain.py``; returns the exit status.

    Args:
        objective: a class of a script's own, which ``-u ekd`` minimises instead of ``Objective`` (docs/extending.md).
    """
    return _run("pretrain_launch", *([] if objective is None else [objective]))


def run_downstream() -> int:
    """Entry point of ``run_downstream.py``; returns the exit status."""
    return _run("downstream_launch")


def _run(launcher: str, *options: Any) -> int:
    # s3prl's runners count their steps in the progress bar: a disabled one stays at step 0, and training never ends.
    # tqdm reads the variable when it is imported, which is later than this.
    os.environ.pop("TQDM_DISABLE", None)
    end_with_this_process()
    argv = sys.argv[1:]
    current = Run(argv)
    _show_messages(logging.INFO if current.world.is_rank_zero else logging.WARNING)

    def body() -> None:
        importlib.import_module(f"s3prl_ekd.bridge.{launcher}").run(argv, current, *options)

    return leave(current.execute(body), hard=current.world.distributed)


def _show_messages(level: int) -> None:
    """Our messages on stderr from a level on (without a handler: warnings only); s3prl's logging stays as it is.

    Of several ranks one says what all do; each warns of what it alone met.
    """
    ours = logging.getLogger("s3prl_ekd")
    if not ours.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)
        ours.setLevel(level)
        ours.propagate = False  # some of s3prl's modules give the root logger a handler: each line would come twice


if __name__ == "__main__":  # python -m s3prl_ekd.bridge.launch run_downstream ..., where the scripts' folder is unknown
    command = sys.argv.pop(1)
    sys.exit({"run_pretrain": run_pretrain, "run_downstream": run_downstream}[command]())
