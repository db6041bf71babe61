"""What the recipes' command lines share: messages, exit statuses."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

from s3prl_ekd import ending
from s3prl_ekd.signals import Signals


def carry_out(act: Callable[[argparse.Namespace], object], args: argparse.Namespace, signals: Signals | None) -> int:
    """Run a command; the exit status (0 done, 2 the user's mistake in one line, 130 or 143 after a signal)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    def run() -> None:
        act(args)

    return ending.carry_out(run, signals or Signals(), advice="run the same command again to resume")
