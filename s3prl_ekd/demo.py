"""``s3prl-ekd demo``: the whole job on embedded data, from speech to a page, through the commands that a user types.

Corpus (espeak-ng voices) -> prepare -> the embedded teachers -> run_pretrain.py -> evaluate: student, untrained
student, fbank -> report. Every command is shown, so that the demo reads as the tutorial. The teachers are small but
real: trained on 7.6 hours of speech (recipes/tiny_teachers).
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape
from rich.rule import Rule

from s3prl_ekd.console import Console
from s3prl_ekd.device import find_device
from s3prl_ekd.ending import STOPPED
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.process import run_logged
from s3prl_ekd.evaluate.progress import Board
from s3prl_ekd.metrics_file import METRICS, VALIDATION, read_metrics
from s3prl_ekd.own_scripts import fits_option, own_command
from s3prl_ekd.whole_file import write_whole
from s3prl_ekd.writable import empty_folder, make_writable

MARKER = ".s3prl-ekd-demo.json"
VARIANT = "embedded"
SMALL_TEACHERS = "The three teachers are a thirtieth of the published ones' size and learned from 7.6 hours of speech."
SYNTHETIC = "The speech is synthetic (espeak-ng voices); no number here is a SUPERB number."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--out", type=Path, default=Path("demo_out"),
        help="a new or empty folder, or that of an earlier demo (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--small", action="store_true", help="a shorter demo of about two minutes, for CI")
    parser.add_argument("--fresh", action="store_true", help="empty an earlier demo's folder first; do not resume it")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Carry the demo out; returns 0."""
    if args.device != "cpu":  # torch takes a while, and the stage that needs it comes late
        find_device(args.device)
    demo = Demo(args.out, args.small, args.device, args.fresh)
    for name, (what, act) in STAGES.items():
        demo.stage(name, what, partial(act, demo), again=name == "report")
    total = sum(demo.marker["stages"].values())
    page = escape(str(args.out / "report.html"))
    done = f"\n[bold green]done[/] in {total:.0f} s: [bold]{page}[/]"
    demo.console.print(done, highlight=False, soft_wrap=True)
    return 0


class Demo:
    """The demo's folder, its stages and which of them are done."""

    def __init__(self, out: Path, small: bool, device: str, fresh: bool = False) -> None:
        self.out, self.small, self.device = out, small, device
        self.console = Console()
        marker = out / MARKER
        if not fits_option(out.resolve()):
            raise EkdError(f"--out {out}: expected a folder without '=' and ',,' in its path: s3prl's -o takes none")
        if out.exists() and not out.is_dir():
            raise EkdError(f"--out {out}: is a file; expected a folder")
        if out.is_dir() and any(out.iterdir()) and not marker.is_file():
            raise EkdError(f"--out {out}: holds other files; expected an empty folder or one of an earlier demo")
        if fresh and marker.is_file():
            write_whole(marker, "{}")  # interrupted, it is a demo's folder still, which goes on under --fresh alone
            empty_folder(out, last=marker.name)
        make_writable(out, f"--out {out}")
        self.marker: dict[str, Any] = {"small": small, "stages": {}}
        if marker.is_file():
            self.marker = _read_marker(marker)
            if self.marker["small"] != small:
                raise EkdError(
                    f"--out {out}: its demo was made {'with' if not small else 'without'} --small; add --fresh"
                )
        self._save()

    def stage(self, name: str, what: str, act: Callable[[], None], again: bool = False) -> None:
        """Do one stage unless an earlier call did it; ``again``: do it every time."""
        number = list(STAGES).index(name) + 1
        self.console.print(Rule(f"[bold]{number}/{len(STAGES)} {name}[/] [dim]{what}[/]", align="left", style="dim"))
        if name in self.marker["stages"] and not again:
            self.console.print(f"[dim]done before, in {self.marker['stages'][name]:.0f} s[/]", highlight=False)
            return
        started = time.monotonic()
        act()
        seconds = time.monotonic() - started
        self.marker["stages"][name] = seconds
        self._save()
        self.console.print(f"[dim]{name}: {seconds:.0f} s[/]", highlight=False)

    def speak(self) -> None:
        from s3prl_ekd.corpora.demo import FULL, SMALL, make_demo_corpus

        make_demo_corpus(self.out / "speech", SMALL if self.small else FULL)

    def prepare(self) -> None:
        manifests = [str(self.out / "speech" / name / "manifest.tsv") for name in ("asr", "sid", "er", "pretrain")]
        self.call("s3prl-ekd", "prepare", "--manifest", *manifests, "--out", str(self.out / "data"))

    def teachers(self) -> None:
        from s3prl_ekd.config import load_model_config
        from s3prl_ekd.variants import variant_file

        for teacher in load_model_config(variant_file(VARIANT)).ekd.teachers:
            self.console.print(f"  {teacher.name:<14} {teacher.source}", highlight=False)
        self.console.print(f"variant {VARIANT!r}, which -g chooses: {variant_file(VARIANT)}", soft_wrap=True)

    def pretrain(self) -> None:
        runner = yaml.safe_load((self.out / "data" / "pretrain.yaml").read_text())
        steps = 40 if self.small else 400
        runner["runner"] |= {
            "total_steps": steps,
            "log_step": max(1, steps // 60),
            "save_step": steps // 5,
            "max_keep": 1,
        }
        runner["optimizer"]["lr"] = 1.0e-3  # a model a hundredth of the paper's takes a larger one
        runner["pretrain_expert"]["datarc"] |= {"train_batch_size": 4, "num_workers": 0}
        (self.out / "runner.yaml").write_text(yaml.safe_dump(runner, sort_keys=False))
        folder = self.out / "pretrain"
        command = ["run_pretrain.py", "-u", "ekd", "-a", "-p", str(folder), "-g", VARIANT]
        command += ["-c", str(self.out / "runner.yaml"), "--device", self.device]
        self.say(command)
        with Board(self.console) as board, board.phase("pretrain", "train") as watch:
            # Threads that spin while they wait make a busy machine several times slower; an idle one loses nothing.
            passive = {"OMP_WAIT_POLICY": "PASSIVE"}
            run_logged(own_command(command), folder / "pretrain.log", watch, passive, name=command[0])
        for name, file in (("loss", METRICS), ("validation loss", VALIDATION)):
            first, *_, last = read_metrics(folder / file)
            told = f"{name} {first['loss']:.3f} at step {first['step']}, {last['loss']:.3f} at step {last['step']}"
            self.console.print(told, highlight=False)

    def evaluate_student(self) -> None:
        self.evaluate("student", "student", "--ckpt", str(self.out / "pretrain"))

    def baselines(self) -> None:
        self.evaluate("untrained", "untrained student", "--untrained", VARIANT)
        self.evaluate("fbank", "fbank", "--upstream", "fbank")

    def evaluate(self, name: str, label: str, *upstream: str) -> None:
        words = ["--data", str(self.out / "data"), "--out", str(self.out / name), "--preset", "tiny"]
        words += ["--folds", "fold1", "--jobs", "2", "--device", self.device]
        words += ["--cache-states", str(self.out / "states"), "--label", label]
        if self.small:
            items = (f"config.runner.{key}=20" for key in ("total_steps", "eval_step", "save_step"))
            words += ["--override", ",,".join(items)]
        self.call("s3prl-ekd", "evaluate", *upstream, *words)

    def report(self) -> None:
        folders = [str(self.out / name) for name in ("pretrain", "student", "untrained", "fbank")]
        words = ["--out", str(self.out / "report.html"), "--title", "s3prl-ekd demo"]
        self.call("s3prl-ekd", "report", *folders, *words, "--note", SMALL_TEACHERS, "--note", SYNTHETIC)

    def call(self, *command: str) -> None:
        """Run one of our commands on this terminal; its own messages tell what happens."""
        self.say(list(command))
        status = subprocess.run(own_command(command), check=False).returncode
        if status in STOPPED:
            raise KeyboardInterrupt
        if status != 0:
            raise EkdError(f"the demo stopped in: {shlex.join(command)} (exit {status})")

    def say(self, command: list[str]) -> None:
        """Show a command as a user would type it."""
        self.console.print(f"[bold cyan]$ {escape(shlex.join(command))}[/]", highlight=False, soft_wrap=True)

    def _save(self) -> None:
        write_whole(self.out / MARKER, json.dumps(self.marker))


def _read_marker(file: Path) -> dict[str, Any]:
    """What the demo noted of its folder: how it was made, and the seconds of each stage that is done."""
    try:
        marker = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise EkdError(f"{file}: cannot be read ({error}); add --fresh, which empties the folder first") from error
    stages = marker.get("stages") if isinstance(marker, dict) else None
    if not isinstance(stages, dict) or not isinstance(marker.get("small"), bool):
        raise EkdError(f"{file}: expected the keys small and stages; add --fresh, which empties the folder first")
    return marker


STAGES: dict[str, tuple[str, Callable[[Demo], None]]] = {
    "speech": ("speak a small corpus: 12 espeak-ng voices, 4 emotions", Demo.speak),
    "prepare": ("turn it into what pretraining and the four tasks read", Demo.prepare),
    "teachers": ("choose the three small teachers that ship with the package", Demo.teachers),
    "pretrain": ("distil them into one student", Demo.pretrain),
    "student": ("train and test the four tasks on the student", Demo.evaluate_student),
    "baselines": ("the same on an untrained student and on log-mel, to compare with", Demo.baselines),
    "report": ("scores and curves on one page", Demo.report),
}
