"""``s3prl-ekd macs X``: show the parameters and MACs of X. ``models.py`` finds what X is, ``counting.py`` counts."""

from __future__ import annotations

import argparse
import json

from rich.markup import escape
from rich.table import Table

from s3prl_ekd.console import Console
from s3prl_ekd.errors import EkdError
from s3prl_ekd.macs.counting import SHAPES
from s3prl_ekd.teachers.names import check_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Parameters, and multiply-accumulates over the challenge's 32 utterances in four buckets of length, as the "
        "SUPERB leaderboard shows them."
    )
    parser.add_argument(
        "model", nargs="?",
        help="a student's checkpoint or experiment folder, a teacher's source, a list for -u ekd_ensemble (.yaml), "
        "a submission folder (its expert.py is run where it is not ours), fbank",
    )  # fmt: skip
    parser.add_argument("--shape", choices=list(SHAPES), help="instead: a published model's shape (random weights)")
    parser.add_argument("--heads", action="store_true", help="count a student's heads too")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(args: argparse.Namespace) -> int:
    """Print the cost; returns 0."""
    if (args.model is None) == (args.shape is None):
        raise EkdError("macs: give either a model or --shape")
    if args.shape is not None:
        if args.heads:
            raise EkdError(f"--heads: --shape {args.shape} is no student checkpoint; its heads are as published")
        found = SHAPES[args.shape].cost()
    else:
        if args.model != "fbank":
            check_source(args.model, "macs")
        from s3prl_ekd.macs.models import model_cost  # torch: not needed for --help and the mistakes above

        found = model_cost(args.model, args.heads)
    if args.json:
        Console().print(json.dumps(found.to_dict()), highlight=False, markup=False, soft_wrap=True)
        return 0
    table = Table(title=escape(args.shape or args.model))
    table.add_column("")
    table.add_column("as counted", justify="right")
    table.add_column("", justify="right")
    table.add_row("parameters", str(found.params), f"{found.params / 1e6:.2f} M")
    for name, macs in {"MACs": found.macs, **found.buckets}.items():
        table.add_row(name, str(macs), f"{macs / 1e9:.1f} G")
    Console().print(table)
    return 0
