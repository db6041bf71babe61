"""The console commands ``run_pretrain.py`` and ``run_downstream.py``: s3prl's own, made to work from any folder.

Here are only the two entry points; what each does is in ``pretrain_launch.py`` and ``downstream_launch.py``.
"""

from __future__ import annotations

import logging
import os
import sys

from s3prl_ekd.bridge.interrupts import Run, leave


def _start() -> tuple[list[str], Run]:
    # s3prl's runners count their steps in the progress bar: a disabled one stays at step 0, and training never ends.
    # tqdm reads the variable when it is imported, which is later than this.
    os.environ.pop("TQDM_DISABLE", None)
    argv = sys.argv[1:]
    return argv, Run(argv)


def _show_our_messages() -> None:
    """What our modules say at INFO (teachers, where the student starts, distortions) on stderr; others as they were."""
    logging.basicConfig(format="%(message)s")  # the root logger stays at WARNING
    for name in ("s3prl_ekd", "pretrain.ekd"):  # s3prl imports the task by its bare name
        logging.getLogger(name).setLevel(logging.INFO)


def run_pretrain() -> int:
    """Entry point of ``run_pretrain.py``; returns the exit status."""
    argv, current = _start()
    _show_our_messages()

    def body() -> None:
        from s3prl_ekd.bridge import pretrain_launch

        pretrain_launch.run(argv, current)

    return leave(current.execute(body))


def run_downstream() -> int:
    """Entry point of ``run_downstream.py``; returns the exit status."""
    argv, current = _start()

    def body() -> None:
        from s3prl_ekd.bridge import downstream_launch

        downstream_launch.run(argv, current)

    return leave(current.execute(body))
