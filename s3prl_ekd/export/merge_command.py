"""``s3prl-ekd merge``: the command's arguments; the merging is in ``merge.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_ekd.errors import EkdError
from s3prl_ekd.export.shares import shares_of
from s3prl_ekd.source_names import HF


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "ckpt", type=Path, nargs="+", metavar="CKPT",
        help="students: states-N.ckpt files, their experiment folders, or hf:OWNER/NAME",
    )  # fmt: skip
    parser.add_argument("--weights", type=float, nargs="+", help="one for each, scaled to add to 1 (default: equal)")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")


def run(args: argparse.Namespace) -> int:
    """Carry the command out; returns 0."""
    shares_of(args.ckpt, args.weights)
    for file in args.ckpt:
        if not file.exists() and not _is_published(file):
            raise EkdError(f"{file}: no such checkpoint")
    from s3prl_ekd.export.merge import merge_checkpoints  # torch: not needed for --help and the mistakes above
    from s3prl_ekd.student_checkpoint import pinned_student

    files = [Path(pinned_student(str(file), "merge")) if _is_published(file) else file for file in args.ckpt]
    merge_checkpoints(files, args.out, args.weights)
    return 0


def _is_published(file: Path) -> bool:
    return str(file).startswith(HF)
