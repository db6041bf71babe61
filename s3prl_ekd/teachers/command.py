"""``s3prl-ekd teachers``: list what can be named as a teacher; load one and show what it is and does.

s3prl-ekd teachers
s3prl-ekd teachers hubert_base --audio clip.flac --precision bf16

Here are the arguments and the list, which need no torch; what is shown of one teacher is in ``facts.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from s3prl_ekd.audio import read_audio
from s3prl_ekd.console import Console
from s3prl_ekd.errors import EkdError
from s3prl_ekd.teachers import embedded
from s3prl_ekd.teachers.hub import HUB
from s3prl_ekd.teachers.names import check_source
from s3prl_ekd.teachers.shapes import TRANSFORMERS_FAMILIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("source", nargs="?", help="a source, as in ekd.teachers[].source; without it, a list of them")
    parser.add_argument("--audio", type=Path, metavar="FILE", help="a clip to encode (default: a synthetic one of 2 s)")
    parser.add_argument("--precision", choices=("bf16", "fp16"), help="compare this arithmetic with fp32, by layer")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")


def run(args: argparse.Namespace) -> int:
    """Print the list, or one teacher's facts."""
    # tables keep their columns when piped into a file
    console = Console(highlight=False, markup=False, width=None if Console().is_terminal else 120)
    if args.source is None:
        if args.audio is not None or args.precision is not None:
            raise EkdError("--audio and --precision need a teacher: s3prl-ekd teachers SOURCE")
        _list(console)
        return 0
    clip = None if args.audio is None else (args.audio, read_audio(args.audio))
    check_source(args.source, "teachers")
    from s3prl_ekd.teachers.facts import show  # torch: not needed for --help and the mistakes above

    show(console, args.source, clip, args.precision, args.device)
    return 0


def _list(console: Console) -> None:
    table = Table(box=None, pad_edge=False, title="s3prl hub names that our own encoder computes", title_justify="left")
    for column in ("family", "name"):
        table.add_column(column)
    for column in ("layers", "width"):
        table.add_column(column, justify="right")
    for name, entry in HUB.items():
        table.add_row(entry.family, name, str(entry.shape.layers), str(entry.shape.width))
    console.print(table)
    console.print("\nShipped with this package")
    for name in embedded.names():
        record = embedded.record(embedded.folder(name)) or {}
        console.print(f"  {embedded.PREFIX + name:<28} {record.get('summary', '')}", soft_wrap=True)
    rows = [
        ("FILE", "a checkpoint: s3prl's converted format, WavLM's, a distiller's, or a fairseq .pt; also gzip'ed"),
        ("FOLDER", f"a transformers model: {', '.join(TRANSFORMERS_FAMILIES)}; safetensors or .bin, whole or sharded"),
        ("hf:OWNER/NAME", "such a folder on the Hugging Face Hub; hf:OWNER/NAME/FILE: such a file; either @REVISION"),
        ("s3prl:NAME", "any other s3prl upstream through its own expert, e.g. s3prl:fbank (10 ms frames are pooled)"),
        ("s3prl:NAME:CKPT", "the same with a checkpoint file, e.g. s3prl:tera_local:states.ckpt"),
        ("random:SOURCE", "any of the above but s3prl's, with random weights: for benchmarks, and to compare with"),
    ]
    console.print("\nOther sources")
    for kind, meaning in rows:
        console.print(f"  {kind:<16} {meaning}", soft_wrap=True)
