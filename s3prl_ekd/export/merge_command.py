"""``s3prl-ekd merge``: the command's arguments; the merging is in ``merge.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_ekd.errors import EkdError
from s3prl_ekd.export.shares import shares_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "ckpt", type=Path, nargs="+", metavar="CKPT", help="students: states-N.ckpt files or their experiment folders"
    )
    parser.add_argument("--weights", type=float, nargs="+", help="one for each, scaled to add to 1 (default: equal)")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")


def run(args: argparse.Namespace) -> int:
    """Carry the command out; returns 0."""
    shares_of(args.ckpt, args.weights)
    for file in args.ckpt:
        if not file.exists():
            raise EkdError(f"{file}: no such checkpoint")
    from s3prl_ekd.export.merge import merge_checkpoints  # torch: not needed for --help and the mistakes above

    merge_checkpoints(args.ckpt, args.out, args.weights)
    return 0
