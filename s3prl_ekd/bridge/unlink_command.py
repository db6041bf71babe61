"""``s3prl-ekd unlink CHECKOUT``: the command line of ``link.unlink``."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_ekd.bridge import link
from s3prl_ekd.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("checkout", type=Path, help="a folder that `s3prl-ekd link` was called with")


def run(args: argparse.Namespace) -> int:
    """Unlink, and name what stays."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    changed, kept = link.unlink(args.checkout)
    for path in changed:
        console.print(f"restored {path}")
    for path in kept:
        console.print(f"kept {path}: not as link wrote it")
    if not changed:
        console.print("was not linked, nothing to change")
    return 0
