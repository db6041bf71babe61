"""``s3prl-ekd robustness``: test what ``evaluate`` has trained once more, on distorted audio; one table.

Arguments and what the user sees; a test is in ``distorted.py``, the tables in ``robustness.py``.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from s3prl_ekd.console import Console
from s3prl_ekd.device import default_device
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.devices import add_running_arguments, check_devices, given_devices, slots
from s3prl_ekd.evaluate.distorted import (
    Condition,
    Test,
    check_earlier,
    do_test,
    forget_other,
    parse_conditions,
    plan_tests,
)
from s3prl_ekd.evaluate.dry_run import dealt, pasted
from s3prl_ekd.evaluate.folder_lock import locked_folders
from s3prl_ekd.evaluate.progress import Board
from s3prl_ekd.evaluate.robustness import FILE_NAME, robustness_table, write_robustness
from s3prl_ekd.evaluate.scores_file import read_models
from s3prl_ekd.evaluate.side_by_side import native_children, work_off
from s3prl_ekd.evaluate.tasks import tasks_among

EXAMPLES = """\
examples:
  s3prl-ekd robustness scores --distortion noise=musan_5db.yaml --distortion rooms.yaml
  s3prl-ekd robustness table --distortion noise.yaml --tasks pr,sid --devices cuda:0,cuda:1

A file is YAML with the section distortion of a model configuration, such as
  distortion:
    additive: {noise: [/corpora/musan/noise], snr: [5, 5], gaussian: false, clean: false}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("scores", type=Path, metavar="SCORES", help="what s3prl-ekd evaluate wrote (its --out)")
    parser.add_argument(
        "--distortion", action="append", default=[], metavar="[NAME=]FILE",
        help="YAML with the distortion of the test audio; NAME is for the table (default: the file's name); repeatable",
    )  # fmt: skip
    parser.add_argument("--tasks", metavar="T,T", help="some of those that were evaluated (default: all)")
    add_running_arguments(parser, "tests")
    parser.add_argument("--overwrite", action="store_true", help="test again if a NAME was used for another distortion")
    parser.add_argument("--dry-run", action="store_true", help="print the run_downstream.py commands and stop")


def run(args: argparse.Namespace) -> int:
    """Carry the command out; returns 0.

    Raises:
        EkdError: what the user can correct; a test that failed.
    """
    devices = given_devices(args)
    if not args.distortion:
        raise EkdError("robustness: give --distortion FILE, a YAML file with a section distortion (see --help)")
    conditions = parse_conditions(args.distortion)
    tests = _plan(args, conditions)[0]
    devices = devices or [default_device()]
    jobs = args.jobs or len(devices)
    console = Console()
    if args.dry_run:
        placed = dealt(tests, slots(devices, jobs))
        console.out("\n".join(pasted(test.command(), test.device) for test in placed), highlight=False)
        return 0
    check_devices(devices)
    with locked_folders([args.scores, *(home for home, _ in read_models(args.scores))]):
        tests, every = _plan(args, conditions)  # again: a call that had the folder may have ended since
        for test in every if args.overwrite else ():
            forget_other(test)
        pending = [test for test in tests if not check_earlier(test)]
        where = f"{len(pending)} of {len(tests)} tests to do, on {', '.join(devices)} -> {args.scores}"
        console.print(escape(where), highlight=False, soft_wrap=True)
        try:
            _carry_out(pending, devices, jobs, console, args.keep_going)
        finally:
            rows = write_robustness(args.scores)
    console.print_table(robustness_table(rows))
    console.print(f"[dim]{escape(str(args.scores / FILE_NAME))}[/]", highlight=False, soft_wrap=True)
    return 0


def _plan(args: argparse.Namespace, conditions: Sequence[Condition]) -> tuple[list[Test], list[Test]]:
    """The call's tests, and those of all tasks; refuses names that were another distortion's in any of them."""
    if not args.scores.is_dir():
        raise EkdError(f"{args.scores}: no such folder; s3prl-ekd evaluate --out {args.scores} makes it")
    models: list[tuple[Path, dict[str, Any]]] = read_models(args.scores)
    there = dict.fromkeys(name for _, record in models for name in record["tasks"])
    tasks = tasks_among(args.tasks, there, f"not evaluated in {args.scores}, which has {', '.join(there)}")
    every = plan_tests(models, conditions, tasks_among(None, there))
    for test in every if not args.overwrite else ():
        check_earlier(test)
    return [test for test in every if test.task in tasks], every


def _carry_out(tests: Sequence[Test], devices: Sequence[str], jobs: int, console: Console, keep_going: bool) -> None:
    width = max([10, *(len(test.key) for test in tests)])
    with Board(console, width) as board, native_children(devices, jobs) as children:
        action, say = partial(do_test, board=board, children=children), board.say if keep_going else None
        work_off(deque((action, test) for test in tests), slots(devices, jobs), children, lambda *_: None, say)
