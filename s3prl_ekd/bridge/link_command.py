"""``s3prl-ekd link CHECKOUT``: the command line of ``link.py``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from s3prl_ekd.bridge import link
from s3prl_ekd.compat.modules import s3prl_folder
from s3prl_ekd.console import Console
from s3prl_ekd.errors import EkdError
from s3prl_ekd.user_paths import expanded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("checkout", type=Path, help="the folder that `git clone` of s3prl made")


def run(args: argparse.Namespace) -> int:
    """Link, and say how the stock commands are called."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    changed = link.link(args.checkout)
    for path in changed:
        console.print(f"wrote {path}")
    if not changed:
        console.print("already linked, nothing to change")
    root = expanded(args.checkout).resolve() / "s3prl"
    console.print(f"\ncd {shlex.quote(str(root))}")
    try:
        imported = s3prl_folder().resolve()
    except EkdError:
        imported = None
    if imported != root:
        # run_downstream.py imports s3prl by its full name, and a wheel would be found instead of the checkout
        home = shlex.quote(str(root.parent))
        console.print(f"export PYTHONPATH={home}   # this Python would import s3prl from {imported or 'nowhere'}")
    console.print("python3 run_pretrain.py -u ekd -n NAME -c DATA/pretrain.yaml")
    console.print("python3 run_downstream.py -m train -u ekd_student -k CKPT -d TASK -c CONFIG -n NAME")
    return 0
