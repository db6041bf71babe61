"""``s3prl-ekd``: distil several speech teachers into one student and evaluate it through s3prl."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import sys

from s3prl_ekd.ending import carry_out
from s3prl_ekd.signals import Signals, leave
from s3prl_ekd.version import __version__

# command -> (module with add_arguments(parser) and run(args) -> int | None, one line for --help)
COMMANDS = {
    "prepare": ("s3prl_ekd.corpora.command", "prepare a corpus or a manifest.tsv for pretraining and the tasks"),
    "teachers": ("s3prl_ekd.teachers.command", "list possible teachers, or load one and describe it"),
    "targets": ("s3prl_ekd.bridge.targets_command", "precompute the teachers' targets of a pretraining run"),
    "evaluate": ("s3prl_ekd.evaluate.command", "train and test the tasks with s3prl's runner; writes a score table"),
    "robustness": ("s3prl_ekd.evaluate.robustness_command", "test evaluated models again, on distorted audio"),
    "compare": (
        "s3prl_ekd.evaluate.compare_command",
        "paired bootstrap over test utterances: do models differ by more than chance?",
    ),
    "report": ("s3prl_ekd.report.command", "HTML page and PNGs of pretraining curves and evaluation scores"),
    "export": ("s3prl_ekd.export.command", "export a student: SUPERB submissions, Hugging Face, ONNX"),
    "validate": ("s3prl_ekd.export.validate", "check a SUPERB hidden-set submission folder as the organisers do"),
    "merge": ("s3prl_ekd.export.merge_command", "average the weights of students that started from the same weights"),
    "macs": ("s3prl_ekd.macs.command", "parameters and MACs of a model, counted as the SUPERB challenge does"),
    "link": ("s3prl_ekd.bridge.link_command", "add this project to the scripts of an s3prl git checkout"),
    "unlink": ("s3prl_ekd.bridge.unlink_command", "undo link"),
    "doctor": ("s3prl_ekd.doctor", "show versions, patches of s3prl and devices; check a configuration"),
    "demo": ("s3prl_ekd.demo", "the whole job on small data of this package: pretrain, four tasks, report"),
}


def command() -> int:
    """Entry point of ``s3prl-ekd``: :func:`main`, in a process of its own."""
    signals = Signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a question mark for what the locale cannot show (LANG=en_US), no end
            stream.reconfigure(errors="replace")
    return leave(main(sys.argv[1:], signals))


def main(argv: list[str], signals: Signals | None = None) -> int:
    """Run one command in this process.

    Args:
        argv: its name and arguments.
        signals: what is kept of an interrupted command lives as long.

    Returns:
        The exit status: 0 done, 2 the user's mistake in one line, 130 after SIGINT, 138 SIGUSR1, 143 SIGTERM.
    """
    signals = signals or Signals()
    logging.basicConfig(format="%(message)s")  # warnings of all, and what we say
    logging.getLogger("s3prl_ekd").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(prog="s3prl-ekd", description=__doc__.split(":", 1)[1].strip())
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = next((word for word in argv if not word.startswith("-")), None)
    modules = {}
    for name, (module_name, summary) in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=summary)
        if name == wanted:
            modules[name] = importlib.import_module(module_name)
            modules[name].add_arguments(subparser)
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    args = parser.parse_args(argv)
    return carry_out(lambda: modules[args.command].run(args), signals)


if __name__ == "__main__":
    sys.exit(command())
