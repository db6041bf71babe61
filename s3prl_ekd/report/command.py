"""``s3prl-ekd report RESULT_DIR...``: the page, the PNG files beside it, the score table in the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from s3prl_ekd.console import Console
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.compare import Settings, compare
from s3prl_ekd.evaluate.compare_table import comparison_table
from s3prl_ekd.evaluate.grid_table import grid_tables
from s3prl_ekd.evaluate.table import score_table
from s3prl_ekd.report import comparison
from s3prl_ekd.report.earlier import stale_figures
from s3prl_ekd.report.page import page
from s3prl_ekd.report.pngs import write_pngs
from s3prl_ekd.report.sources import Pretraining, read_results
from s3prl_ekd.whole_file import write_whole
from s3prl_ekd.writable import output_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULT_DIR",
        help="experiment folders of run_pretrain.py -u ekd and --out folders of s3prl-ekd evaluate",
    )
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="default: %(default)s")
    parser.add_argument("--title", default="Ensemble knowledge distillation: report")
    parser.add_argument("--note", action="append", default=[], help="a sentence shown on top of the page; repeatable")
    parser.add_argument(
        "--reference", action="store_true", help="add published SUPERB scores of other systems, set apart"
    )
    parser.add_argument(
        "--baseline", metavar="LABEL",
        help="add a table of the differences from this model, with intervals, as s3prl-ekd compare makes it",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write the report; returns 0."""
    if args.out.is_dir() or args.out.suffix.lower() not in (".html", ".htm"):
        raise EkdError(f"--out {args.out}: expected a file that ends in .html (figures go into a folder beside it)")
    pretrainings, evaluations = read_results(args.results)
    found = None
    if args.baseline is not None:
        found = compare([(one.folder, one.scores) for one in evaluations], Settings(), args.baseline)
    output_file(args.out)
    folder = args.out.with_suffix("")
    if folder.resolve() in [one.resolve() for one in args.results]:  # report run --out run.html
        folder = folder.with_name(f"{folder.name}_figures")
    if folder.exists() and not folder.is_dir():
        raise EkdError(f"--out {args.out}: its figures go into {folder}, which is no folder; name another file")
    console = Console()
    if len(pretrainings) > 1:
        console.print(_runs(pretrainings))
        moved = comparison.moving_note(pretrainings)
        if moved:
            console.print(f"[dim]{escape(moved)}[/]\n", highlight=False)
    if evaluations:
        records = [one.scores for one in evaluations]
        for table in [*grid_tables(records), score_table(records)]:
            console.print_table(table)
    if found is not None:
        console.print_table(comparison_table(found))
    figures = write_pngs(folder, pretrainings, evaluations)
    stale = stale_figures(args.out, figures)
    text = page(pretrainings, evaluations, args.title, args.note, args.reference, figures, found)
    write_whole(args.out.resolve(), text)  # which may be a link
    for old in stale:
        old.unlink()
    beside = f" [dim]and {len(figures)} PNG files in {escape(str(folder))}/[/]" if figures else ""
    console.print(f"{escape(str(args.out))}{beside}", highlight=False, soft_wrap=True)
    return 0


def _runs(pretrainings: list[Pretraining]) -> Table:
    """A row a run."""
    columns = comparison.results(pretrainings)
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    table.add_column("pretraining", overflow="fold")  # runs of one name are told apart by the end of their paths
    for heading, values in columns:  # headings in two lines: the room is the names'
        table.add_column(heading, justify="right", max_width=max(10, *map(len, values)))
    for row, run in enumerate(pretrainings):
        table.add_row(escape(run.label), *(values[row] for _, values in columns))
    return table
