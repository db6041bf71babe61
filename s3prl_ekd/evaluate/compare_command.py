"""``s3prl-ekd compare``: whether evaluated models differ by more than the chance of their test sets."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from s3prl_ekd.console import Console
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.compare import Model, Settings, compare
from s3prl_ekd.evaluate.compare_table import comparison_markdown, comparison_table
from s3prl_ekd.evaluate.scores_file import read_models, told_apart
from s3prl_ekd.whole_file import write_whole
from s3prl_ekd.writable import output_file

EXAMPLES = """\
examples:
  s3prl-ekd compare table --baseline distilhubert
  s3prl-ekd compare scores/ekd scores/hubert --tasks pr,asr --blocks '^([0-9]+)-'      # LibriSpeech: by speaker
  s3prl-ekd compare table --condition noise --out noise.md                             # what robustness has tested
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "scores", nargs="+", type=Path, metavar="SCORES", help="what s3prl-ekd evaluate wrote (its --out)"
    )
    parser.add_argument(
        "--baseline", metavar="LABEL", help="the model that the others are compared with (default: the first)"
    )
    parser.add_argument("--tasks", metavar="T,T", help="some of those that were evaluated (default: all)")
    parser.add_argument(
        "--condition", metavar="NAME", help="compare on distorted audio: the NAME of s3prl-ekd robustness --distortion"
    )
    parser.add_argument(
        "--blocks", metavar="REGEX",
        help="resample whole blocks of utterances, such as speakers: utterances with the same first group of REGEX in "
        "their name are one block (default: each utterance is its own)",
    )  # fmt: skip
    parser.add_argument("--draws", type=int, default=10_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the table in Markdown too")


def run(args: argparse.Namespace) -> int:
    """Carry the command out; returns 0.

    Raises:
        EkdError: what the user can correct.
    """
    settings = Settings(args.draws, args.seed, _pattern(args.blocks), args.condition)
    if args.draws < 100:
        raise EkdError(f"--draws {args.draws}: expected 100 or more")
    if args.seed < 0:
        raise EkdError(f"--seed {args.seed}: expected 0 or more")
    models = _labelled([one for folder in args.scores for one in _read(folder)])
    if not models:
        raise EkdError(f"{' '.join(map(str, args.scores))}: holds no model; s3prl-ekd evaluate writes them")
    if args.out is not None:
        output_file(args.out)
    found = compare(models, settings, args.baseline, args.tasks)
    console = Console()
    console.print_table(comparison_table(found))
    if args.out is not None:
        write_whole(args.out, comparison_markdown(found))
        console.print(f"[dim]{escape(str(args.out))}[/]", highlight=False, soft_wrap=True)
    return 0


def _pattern(text: str | None) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise EkdError(f"--blocks {text}: not a regular expression ({error})") from error
    if pattern.groups < 1:
        raise EkdError(f"--blocks {text}: expected a group in brackets, which names the block, such as '^([0-9]+)-'")
    return pattern


def _read(folder: Path) -> list[Model]:
    if not folder.exists():
        raise EkdError(f"{folder}: no such folder; s3prl-ekd evaluate --out {folder} makes it")
    return [*read_models(folder)]


def _labelled(models: Sequence[Model]) -> list[Model]:
    """The models, those that share a label with their folders behind it."""
    if len({home.resolve() for home, _ in models}) < len(models):
        raise EkdError("SCORES: a model's folder is given twice; name each once")
    return [*told_apart(models)]
