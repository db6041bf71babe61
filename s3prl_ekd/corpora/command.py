"""``s3prl-ekd prepare``: arguments, the closing table, the next command to type. The work is elsewhere."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from s3prl_ekd.audio import count_other_audio, find_audio
from s3prl_ekd.console import Console
from s3prl_ekd.corpora.fluent_commands import prepare_fluent_commands
from s3prl_ekd.corpora.folders import MARKER, Prepared, check_apart, turn_in
from s3prl_ekd.corpora.iemocap import prepare_iemocap
from s3prl_ekd.corpora.layout_pretrain import prepare_pretrain
from s3prl_ekd.corpora.librispeech import prepare_librispeech
from s3prl_ekd.corpora.prepare import lay_out, parse_tasks, plan_manifest
from s3prl_ekd.corpora.speech_commands import prepare_speech_commands
from s3prl_ekd.corpora.voxceleb1 import prepare_voxceleb1
from s3prl_ekd.device import shows_gpu
from s3prl_ekd.errors import EkdError
from s3prl_ekd.task_names import DOWNSTREAM

TASKS_OF = {
    "librispeech": ("pr", "asr", "pretrain"),
    "voxceleb1": ("sid",),
    "iemocap": ("er",),
    "speech_commands": ("ks",),
    "fluent_commands": ("ic",),
    "audio": ("pretrain",),
}
SOURCES = ("manifest", *TASKS_OF)
READERS = {  # option -> the sources that read it
    "lexicon": {"manifest", "librispeech"},
    "root": {"manifest"},
    "skip_bad": {"manifest"},
    "split_file": {"voxceleb1"},
    "allow_missing": {"voxceleb1"},
    "test_set": {"speech_commands"},
    "name": {"manifest", "audio"},
    "held_out": {"manifest", "audio"},
}
EXAMPLES = """\
examples:
  s3prl-ekd prepare --manifest speech/asr/manifest.tsv --out data            tasks are chosen by the columns
  s3prl-ekd prepare --manifest asr/manifest.tsv sid/manifest.tsv --out data  several at once
  s3prl-ekd prepare --manifest my.tsv --tasks pr --lexicon my.lexicon --out data
  s3prl-ekd prepare librispeech /corpora/LibriSpeech --out data              pr, asr, pretrain
  s3prl-ekd prepare voxceleb1 /corpora/VoxCeleb1 --split-file iden_split.txt --out data
  s3prl-ekd prepare iemocap /corpora/IEMOCAP_full_release --out data
  s3prl-ekd prepare speech_commands /corpora/KS --out data                   holds the two archives' folders
  s3prl-ekd prepare fluent_commands /corpora/fluent_speech_commands_dataset --out data
  s3prl-ekd prepare audio /corpora/podcasts --name podcasts --out data       pretraining on any audio
  s3prl-ekd prepare audio /corpora/held_out --held-out --out data            its validation loss

columns of a manifest (tab-separated, with a header; further columns are ignored):
  pr, asr   path split speaker text [phones]    split: train, dev, test
  sid       path split speaker
  er        path fold speaker emotion           fold: 1, 2, ...
  ks        path split keyword                  [speaker]; other words than the ten are the class unknown
  ic        path split action object location   [speaker] [text]
  pretrain  path [speaker] [split]              dev is held out for the validation loss, test left out

Audio is linked where it can be; other than 16 kHz mono (for pr, asr: FLAC, for ks: WAV) is converted to that. Calls
with the same --out add up: each task's folder is replaced as a whole, pretraining sets are added.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("source", nargs="?", choices=SOURCES, help="what PATH is (not needed with --manifest)")
    parser.add_argument("path", nargs="?", type=Path, metavar="PATH", help="the corpus, manifest or folder of audio")
    parser.add_argument("--manifest", nargs="+", type=Path, default=[], metavar="FILE", help="manifest.tsv files")
    parser.add_argument("--out", type=Path, required=True, metavar="DATA", help="the data folder to fill")
    parser.add_argument("--tasks", metavar="T,T", help="some of pr,asr,sid,er,ks,ic,pretrain (default: by the data)")
    parser.add_argument(
        "--lexicon", nargs="+", type=Path, default=[], metavar="FILE",
        help="WORD<TAB>PH PH PH lines for pr, the first file first; CMUdict for words they lack",
    )  # fmt: skip
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder that a manifest's paths are relative to")
    parser.add_argument("--skip-bad", action="store_true", help="leave out a manifest's missing and damaged audio")
    parser.add_argument("--split-file", type=Path, metavar="FILE", help="VoxCeleb1's iden_split.txt")
    parser.add_argument("--test-set", type=Path, metavar="DIR", help="Speech Commands' test archive, unpacked")
    parser.add_argument("--allow-missing", action="store_true", help="VoxCeleb1: leave out files that are not there")
    parser.add_argument("--name", metavar="SET", help="the pretraining set's name (default: its folder's name)")
    parser.add_argument("--held-out", action="store_true", help="the pretraining set is for the validation loss")


def run(args: argparse.Namespace) -> int:
    """Prepare what was asked for and print the table.

    Raises:
        EkdError: anything the user can fix; also a file that cannot be written.
    """
    try:
        results = _prepare(args)
    except OSError as error:
        where = error.filename2 or error.filename or args.out  # of a link or a move, what was to be there
        raise EkdError(f"{where}: {error.strerror or error}") from error
    show(results)
    return 0


def _prepare(args: argparse.Namespace) -> list[Prepared]:
    tasks = None if args.tasks is None else parse_tasks(args.tasks)
    manifests = list(args.manifest)
    source = args.source
    if source == "manifest" and args.path:
        manifests.append(args.path)
    elif source and not args.path:
        raise EkdError(f"prepare {source}: no PATH given")
    if not manifests and not source:
        raise EkdError(f"prepare: give --manifest FILE, or one of {', '.join(SOURCES[1:])} and a PATH (see --help)")
    if args.name and len(manifests) > 1:
        raise EkdError("--name: one name for several manifests; give them one by one")
    used = {"manifest"} if manifests else set()
    _check_options(args, used | ({source} if source else set()))
    wanted: tuple[str, ...] = ()
    if source in TASKS_OF:
        wanted = tasks or TASKS_OF[source]
        _check_source(source, args, wanted)
    plans = [plan_manifest(manifest, tasks, args.root) for manifest in manifests]
    claims = [(str(rows.file), args.name or rows.name, served) for rows, served in plans]
    if wanted:
        claims.append((f"{source} {args.path}", args.name or args.path.resolve().name, wanted))
    _check_no_task_twice(claims)
    for flag, given in (("--name", args.name), ("--held-out", args.held_out)):
        if given and not any("pretrain" in served for *_, served in claims):
            chosen = ", ".join(task for *_, served in claims for task in served)
            raise EkdError(
                f"{flag}: is for a pretraining set, but this call prepares only {chosen}; add --tasks pretrain"
            )
    results = []
    for rows, tasks_of in plans:
        results += lay_out(rows, tasks_of, args.out, args.lexicon, args.skip_bad, args.name, args.held_out)
    if wanted:
        with turn_in(args.out):
            results += _real(source, args, wanted)
    return results


def _check_options(args: argparse.Namespace, sources: set[str]) -> None:
    """Refuse an option that none of the given sources reads: it would silently have no effect."""
    for name, readers in READERS.items():
        if getattr(args, name) and not sources & readers:
            flag = "--" + name.replace("_", "-")
            raise EkdError(f"{flag}: is for {' and '.join(sorted(readers))}, not for {', '.join(sorted(sources))}")


def _check_source(source: str, args: argparse.Namespace, tasks: Sequence[str]) -> None:
    foreign = [task for task in tasks if task not in TASKS_OF[source]]
    if foreign:
        raise EkdError(f"--tasks: {source} is for {', '.join(TASKS_OF[source])}, not for {', '.join(foreign)}")
    if not args.path.is_dir():
        raise EkdError(f"{args.path}: no such folder")
    if source == "voxceleb1" and not args.split_file:
        raise EkdError("prepare voxceleb1: --split-file is missing; VoxCeleb1's iden_split.txt is meant")
    corpora = [corpus for corpus in (args.path, args.test_set) if corpus]
    check_apart([args.out / task for task in tasks], zip(corpora, corpora, strict=True))


def _check_no_task_twice(claims: Sequence[tuple[str, str, Sequence[str]]]) -> None:
    """A task has one folder, and a pretraining set one table: the second in a call would replace the first.

    ``claims``: what is given, its name as a pretraining set, its tasks.
    """
    first: dict[str, str] = {}
    for given, name, tasks in claims:
        for task in tasks:
            place = f"the pretraining set {name}" if task == "pretrain" else f"task {task}"
            if place in first:
                raise EkdError(
                    f"{first[place]} and {given}: both are for {place}; give one, or choose by --tasks, --name"
                )
            first[place] = given


def _real(source: str, args: argparse.Namespace, tasks: Sequence[str]) -> list[Prepared]:
    if source == "librispeech":
        return prepare_librispeech(args.path, args.out, tasks, args.lexicon)
    if source == "voxceleb1":
        return [prepare_voxceleb1(args.path, args.out, args.split_file, args.allow_missing)]
    if source == "iemocap":
        return [prepare_iemocap(args.path, args.out)]
    if source == "speech_commands":
        return [prepare_speech_commands(args.path, args.out, args.test_set)]
    if source == "fluent_commands":
        return [prepare_fluent_commands(args.path, args.out)]
    name = args.name or args.path.resolve().name
    others, types = count_other_audio(args.path)
    notes = [f"{others} files of other types left out ({', '.join(types)})"] if others else []
    files = find_audio(args.path)
    used = _not_prepared(files, args.path)
    if len(used) < len(files):
        notes.append(f"{len(files) - len(used)} files left out: an earlier call put them there for other tasks")
    held_out = [name] if args.held_out else []
    return [prepare_pretrain({name: used}, args.out, args.path, speakers=0, notes=notes, held_out=held_out)]


def _not_prepared(files: Sequence[Path], root: Path) -> list[Path]:
    """The files that lie in no folder of ``prepare``'s below ``root``: where DATA is in the corpus, each clip is there
    once more for every task, the test's too."""

    @cache
    def prepared(folder: Path) -> bool:
        return folder != root and ((folder / MARKER).is_file() or prepared(folder.parent))

    return [file for file in files if not prepared(file.parent)]


def next_command(result: Prepared) -> str:
    """The s3prl command that uses what was prepared, on this machine: s3prl's own default is ``--device cuda``."""
    end = shlex.quote(str(result.config)) + ("" if shows_gpu() else " --device cpu")
    if result.task == "pretrain":
        return f"run_pretrain.py -u ekd -n NAME -c {end}"
    student = "-u ekd_student -k result/pretrain/NAME"  # of the command above
    return f"run_downstream.py -m train -n NAME-{result.task} {student} -d {DOWNSTREAM[result.task]} -c {end}"


def show(results: Sequence[Prepared]) -> None:
    """Print one line per task, what was noted on the way, and the next commands, in the order in which they are run."""
    console = Console()
    results = sorted(results, key=lambda result: ["pretrain", *DOWNSTREAM].index(result.task))
    table = Table("task", "utterances", box=None, header_style="bold")
    for name in ("minutes", "speakers"):
        table.add_column(name, justify="right")
    for result in results:
        counts = ", ".join(f"{name} {count}" for name, count in zip(result.splits, result.utterances, strict=True))
        table.add_row(result.task, escape(counts), f"{result.minutes:.1f}", str(result.speakers or "-"))
    console.print(table)
    for result in results:
        for note in result.notes:
            console.print(f"{result.task}: {note}", highlight=False, markup=False, soft_wrap=True)
    commands = [next_command(result) for result in results if result.ready]
    for line in ["next:", *(f"  {command}" for command in commands)] if commands else ():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
