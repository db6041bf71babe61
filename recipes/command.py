"""What the recipes' command lines share: messages, exit statuses."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable

from s3prl_ekd.bridge.interrupts import one_line
from s3prl_ekd.errors import EkdError


def carry_out(act: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> int:
    """Run a command; the exit status (0 done, 2 the user's mistake in one line, 130 interrupted)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        act(args)
    except EkdError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on\n")
        return 130
    return 0
