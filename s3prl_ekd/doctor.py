"""``s3prl-ekd doctor``: what is installed, what of s3prl is patched, and what a given run would lack.

No teacher is loaded, and of one nothing is downloaded but a few kilobytes: the configuration of a model of the Hugging
Face Hub. The checks themselves belong to their packages (config, teachers, data, shims); here they are called one by
one and their messages shown together. Whichever package is missing is what the first table says (``installed.py``), so
that each check imports its own, and these two modules need only rich and packaging.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.markup import escape
from rich.table import Table

from s3prl_ekd.bridge import link
from s3prl_ekd.compat.hub import register
from s3prl_ekd.compat.modules import s3prl_folder
from s3prl_ekd.compat.shims import active_shims, apply_shims
from s3prl_ekd.console import Console
from s3prl_ekd.errors import EkdError, one_line
from s3prl_ekd.installed import Finding, software
from s3prl_ekd.task_names import DOWNSTREAM, PAPER_TASKS
from s3prl_ekd.teachers.names import check_source

if TYPE_CHECKING:
    from s3prl_ekd.teachers.sources import TeacherSource

GIB = 2**30
PIPED_WIDTH = 2_000  # columns; a table only takes as many as it needs
MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "broken": "[red]broken[/]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("-c", "--config", metavar="FILE", help="what -c of run_pretrain.py takes: is its data there?")
    parser.add_argument(
        "-g", "--upstream-config", "--upstream_config", metavar="MODEL",
        help="what -g of run_pretrain.py takes: its teachers",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="DATA", help="a folder that `s3prl-ekd prepare` wrote")


def run(args: argparse.Namespace) -> int:
    """Print the tables; 1 where something needed is broken."""
    # piped into a file or grep, every finding stays one line, however long its paths
    console = Console(highlight=False, width=None if Console().is_terminal else PIPED_WIDTH)
    sections: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("software", software),
        ("s3prl", bridge),
        ("devices", devices),
    ]
    if args.upstream_config is not None:
        sections.append((args.upstream_config, lambda: teachers(_find("-g", args.upstream_config))))
    if args.config is not None:
        sections.append((args.config, lambda: pretraining_data(_find("-c", args.config))))
    if args.data is not None:
        sections.append((str(args.data), lambda: prepared(args.data)))
    broken = 0
    for title, check in sections:
        try:
            findings = check()
        except EkdError as error:
            findings = [Finding("check", "broken", str(error))]
        except (ImportError, OSError) as error:  # a package that is missing, or whose own libraries do not load
            findings = [Finding("check", "broken", _reason(error))]
        _show(console, title, findings)
        broken += sum(finding.state == "broken" for finding in findings)
    console.print(f"{broken} broken" if broken else "nothing needed is broken")
    return 1 if broken else 0


def _find(flag: Literal["-c", "-g"], value: str) -> Path:
    from s3prl_ekd.bridge.pretrain_configs import find

    return find(flag, value)


def bridge() -> list[Finding]:
    """Where s3prl lies, whether its hub imports, and the patches in force."""
    root = s3prl_folder()
    checkout = (root.parent / ".git").exists()
    kind = "git checkout" if checkout else "wheel"
    linked = ", linked" if link.is_linked(root) else ""
    rows = [Finding("folder", "ok", f"{root} ({kind}{linked})")]
    if checkout and not linked:
        hint = f"for its own scripts: s3prl-ekd link {shlex.quote(str(root.parent))}"
        rows.append(Finding("link", "note", "not linked; our run_*.py commands need no link", hint))
    try:
        apply_shims("all")
        register()
        rows.append(Finding("hub", "ok", "imports, and has ekd_student"))
    except Exception as error:  # whatever an unknown stack raises is what this command is asked to show
        rows.append(Finding("hub", "broken", _reason(error), "install the versions of constraints.txt"))
    rows += [Finding("shim", "ok", shim.name, f"{shim.removed_by}: {shim.reason}") for shim in active_shims()]
    return rows


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def devices() -> list[Finding]:
    """What torch can compute on."""
    import torch

    if not torch.cuda.is_available():
        hint = "give --device cpu; for an NVIDIA GPU install a CUDA build of torch and its driver"
        return [Finding("cuda", "note", f"none (torch built for {torch.version.cuda or 'CPU only'})", hint)]
    rows = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        bf16 = facts.major >= 8  # Ampere and later compute bf16 in hardware
        text = f"{facts.name}, {facts.total_memory / GIB:.0f} GiB, bf16 {'yes' if bf16 else 'no'}"
        rows.append(
            Finding(f"cuda:{index}", "ok", text, "" if bf16 else "leave ekd.precision: auto, which is fp32 here")
        )
    return rows


def teachers(file: Path) -> list[Finding]:
    """A config_model.yaml: what each teacher is, whether its weights are on this machine, and whether all that fits.

    The last are the checks that run_pretrain.py begins with, one finding where they fail and none where they don't.
    """
    from s3prl_ekd.config import load_model_config
    from s3prl_ekd.teachers import sources
    from s3prl_ekd.teachers.build import check_model, check_without_teachers, describe_start

    config = load_model_config(file)
    rows = [Finding("config", "ok", f"{config.ekd.mode}, {config.student.layers}-layer student")]
    for index, teacher in enumerate(config.ekd.teachers):
        rows.append(_teacher(teacher.name, teacher.source, teacher.layers, f"ekd.teachers[{index}].source"))
    start = config.ekd.initialise_from
    if start is not None and start not in {teacher.name for teacher in config.ekd.teachers}:
        rows.append(_teacher("initialise_from", start, [], "ekd.initialise_from", describe_start))
    known = not any(row.state == "broken" for row in rows)  # a broken teacher's row says why
    named = [start or "", *(teacher.source for teacher in config.ekd.teachers)]
    known = known and not any(sources.is_known_by_loading(source) for source in named)
    try:
        if known:
            check_model(config, str(file))
        else:
            check_without_teachers(config, str(file))
    except EkdError as error:
        rows.append(Finding("checks", "broken", str(error)))
    return rows


def _teacher(
    name: str, source: str, layers: list[int], where: str, describe: Callable[[str, str], TeacherSource] | None = None
) -> Finding:
    """``where``: the key of the source; ``describe``: who says what it is, where it may be more than a teacher."""
    from s3prl_ekd.teachers import sources

    describe = describe or sources.describe
    try:
        check_source(source, where)
        if sources.is_known_by_loading(source):
            return Finding(
                name,
                "note",
                f"{source}: known only by loading it, so its layers are not checked",
                f"s3prl-ekd teachers {shlex.quote(source)}",
            )
        described = describe(source, where)
    except EkdError as error:
        return Finding(name, "broken", str(error))
    shape = described.shape
    text = f"{source}: {described.family}, {shape.layers} layers of {shape.width}"
    wrong = [layer for layer in layers if layer > shape.layers]
    if wrong:
        return Finding(name, "broken", text, f"{where.removesuffix('source')}layers: {wrong[0]} > {shape.layers}")
    if described.kind == "random":
        return Finding(name, "note", f"{text}, random weights", "for benchmarks only")
    path = sources.weights_path(described, where, download=False)
    if path is None:
        what = sources.HUB[source].url if described.kind == "hub" else "its weights"
        return Finding(name, "note", f"{text}, not downloaded", f"the first run downloads {what}")
    downloaded = "downloaded, " if described.kind in ("hub", "huggingface") else ""
    return Finding(name, "ok", f"{text}, {downloaded}{_size(path)}")


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 2**20:.0f} MiB"


def pretraining_data(file: Path) -> list[Finding]:
    """The length CSVs and audio of a config_runner.yaml."""
    from s3prl_ekd.checked import read_yaml
    from s3prl_ekd.config import check_runner_config
    from s3prl_ekd.data.lengths import read_held_out, read_lengths

    config = check_runner_config(read_yaml(file), str(file))
    data = config.pretrain_expert.datarc
    rows = [Finding("config", "ok", f"{config.runner.total_steps} steps")]
    try:
        table = read_lengths(data, str(file))
        held_out = read_held_out(data, table, str(file))
        for name, sets, rows_of in (("data", data.sets, table), ("validation", data.valid_sets, held_out)):
            if rows_of is not None:
                text = f"{len(rows_of.paths)} utterances, {rows_of.hours:.2f} h in {data.libri_root}"
                rows.append(Finding(name, "ok", f"{', '.join(sets)}: {text}"))
    except EkdError as error:
        rows.append(
            Finding("data", "broken", str(error), "s3prl-ekd prepare ... --out DATA, then -c DATA/pretrain.yaml")
        )
    return rows


def prepared(folder: Path) -> list[Finding]:
    """What of a prepared data folder is there, with the audio that it names."""
    again = f"s3prl-ekd prepare ... --out {shlex.quote(str(folder))}"
    if not folder.is_dir():
        return [Finding("folder", "broken", f"no folder {folder}", again)]
    rows = []
    for task in DOWNSTREAM:
        file = folder / f"{task}.yaml"
        if file.is_file():
            rows.append(_task_data(task, file))
        elif task in PAPER_TASKS:
            rows.append(Finding(task, "note", f"not prepared (no {file.name})"))
    rows.append(_pretraining_sets(folder, again))
    if all(row.state == "note" for row in rows):
        rows.append(Finding("folder", "broken", "nothing prepared here", again))
    return rows


def _pretraining_sets(folder: Path, again: str) -> Finding:
    """``again``: the command that prepares this folder."""
    from s3prl_ekd.corpora.layout_pretrain import earlier_held_out

    tables, root_file = sorted((folder / "pretrain").glob("*.csv")), folder / "pretrain" / "root.txt"
    if not tables:
        return Finding("pretrain", "note", "no length CSVs in pretrain/")
    if not root_file.is_file():
        return Finding("pretrain", "broken", f"no {root_file}", "prepare this folder again")
    try:
        if {table.stem for table in tables} <= set(earlier_held_out(folder / "pretrain")):
            todo = f"{again}, without --held-out"
            return Finding("pretrain", "broken", "held-out sets, and none to train on yet", todo)
        _, *found = pretraining_data(folder / "pretrain.yaml")
    except EkdError as error:
        return Finding("pretrain", "broken", str(error), "prepare this folder again")
    broken = [row.found for row in found if row.state == "broken"]
    if broken:
        return Finding("pretrain", "broken", broken[0], "prepare this folder again, or bring the audio back")
    text = "; ".join(row.found if row.what == "data" else f"{row.what}: {row.found}" for row in found)
    return Finding("pretrain", "ok", text)


def _task_data(task: str, file: Path) -> Finding:
    """A task's YAML as run_downstream.py checks it before it trains (all folds of ER) and before it tests."""
    from s3prl_ekd.bridge import taskdata, taskkeys
    from s3prl_ekd.checked import read_yaml
    from s3prl_ekd.corpora.folds_file import read_folds

    downstream, found = DOWNSTREAM[task], str(file)
    try:
        apply_shims()
        config = read_yaml(file)
        taskdata.check_sections(config, downstream, found)
        taskkeys.check_ours(config, downstream, found)
        with tempfile.TemporaryDirectory() as scratch:
            args = argparse.Namespace(downstream=downstream, expdir=scratch, downstream_variant=None, local_rank=None)

            def check(mode: str, split: str) -> None:
                args.mode, args.evaluate_split = mode, split
                taskdata.complete(args, config, str(file), s3prl_folder())

            check("train", "test")
            if task == "er":
                folds = read_folds(file.parent / "er" / "folds.json")
                for fold in folds:
                    config["downstream_expert"]["datarc"]["test_fold"] = fold
                    check("train", "test")
                found += f" ({len(folds)} folds)"
            elif task in ("pr", "asr"):
                for split in taskdata.splits(downstream, config) or ():
                    if split.startswith("test"):
                        check("evaluate", split)
    except EkdError as error:
        return Finding(task, "broken", str(error), "prepare this folder again, or bring the corpus back")
    except ImportError as error:  # s3prl's own task, which the row "hub" of the first table says more about
        return Finding(task, "broken", _reason(error), "install the versions of constraints.txt")
    return Finding(task, "ok", found)


def _show(console: Console, title: str, findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, title=escape(title), title_justify="left", title_style="bold")
    for column in ("what", "state", "found", "why, or what to do"):
        table.add_column(column, overflow="fold", no_wrap=column == "state")
    for item in findings:
        table.add_row(escape(item.what), MARKS[item.state], escape(item.found), escape(item.todo))
    console.print(table)
    console.print()
