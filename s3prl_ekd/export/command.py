"""``s3prl-ekd export KIND``: the command line of every way to take a student away. The work is in a file a kind."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from s3prl_ekd.console import Console
from s3prl_ekd.errors import EkdError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)

    superb = kinds.add_parser("superb", help="SUPERB hidden-set submission: expert.py and model.pt")
    _common(superb, "folder")
    superb.add_argument("--heads", action="store_true", help="append the heads' predictions to the hidden states")
    superb.add_argument(
        "--task-layers", nargs="+", action="extend", default=[], metavar="TASK=NUMBERS",
        help="hidden states of a task, e.g. PR=2 SID=0,1 (default: all of them)",
    )  # fmt: skip

    about = "What --scores, --training-data and --licence said of the same weights in an earlier export to OUT stays."
    hf = kinds.add_parser("hf", help="Hugging Face folder: a HubertModel that transformers loads", description=about)
    _common(hf, "folder")
    hf.add_argument("--scores", type=Path, help="scores.json of s3prl-ekd evaluate, or its folder, for the model card")
    hf.add_argument(
        "--training-data", metavar="TEXT", help="what the student was trained on, in your words, for the model card"
    )
    hf.add_argument("--licence", help="identifier of the weights' licence (default: mit)")
    hf.add_argument("--push", metavar="OWNER/NAME", help="also upload the folder to this repository of the hub")
    hf.add_argument("--private", action="store_true", help="with --push: make a new repository private")

    onnx = kinds.add_parser("onnx", help="one ONNX file with dynamic batch and length")
    _common(onnx, "file")

    public = kinds.add_parser("public", help="SUPERB public-set submission: predict.zip")
    public.add_argument("--runs", type=Path, required=True, help="the --out folder of s3prl-ekd evaluate")
    public.add_argument("--out", type=Path, required=True, help="the zip file to write")
    public.add_argument("--tasks", metavar="T,T", help="default: every task that has a run")
    public.add_argument("--seed", type=int, help="the seed whose predictions are submitted, if --runs has several")


def _common(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "-k", "--ckpt", type=Path, required=True,
        help="a student: states-N.ckpt, its experiment folder, or hf:OWNER/NAME",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help=f"the {what} to write")


def run(args: argparse.Namespace) -> int:
    """Carry the command out; returns 0."""
    console = Console()
    note = ""
    if args.kind == "superb":
        from s3prl_ekd.export.superb import export_superb, parse_task_states

        path = export_superb(args.ckpt, args.out, args.heads, parse_task_states(args.task_layers))
        note = f"check it with: s3prl-ekd validate {shlex.quote(str(path))}"
    elif args.kind == "hf":
        if args.private and not args.push:
            raise EkdError("--private: is for --push OWNER/NAME")
        from s3prl_ekd.export.huggingface import export_huggingface, push

        path = export_huggingface(
            args.ckpt, args.out, data=args.training_data, licence=args.licence, scores=args.scores
        )
        if args.push:
            note = push(path, args.push, args.private)
    elif args.kind == "onnx":
        from s3prl_ekd.export.onnx_file import export_onnx

        path, difference = export_onnx(args.ckpt, args.out)
        note = f"onnxruntime differs from PyTorch by {difference:.1g} of a state's largest number at most"
    else:
        from s3prl_ekd.export.public import export_public, score_lines

        path, scores = export_public(args.runs, args.out, args.tasks, args.seed)
        note = "\n".join(score_lines(scores))
    for text in filter(None, (str(path), note)):
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 0
