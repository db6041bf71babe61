"""Our launcher beside s3prl itself: the same tasks, trained and tested by both, number by number.

python -m benchmarks.parity --data DATA --checkout S3PRL --stock PYTHON [--tasks pr,sid] [--upstream fbank] [--out DIR]

DATA is what `s3prl-ekd prepare` wrote, S3PRL a git checkout of s3prl 0.4.18 that is not linked, PYTHON that of the last
stack on which it runs unchanged (docs/tasks.md has the commands that set both up). s3prl's side is a copy of the
checkout, run by its own scripts. Compared are all curves of tensorboard, the trained heads, the test scores and the
prediction files.

One thing of s3prl's side is changed, from outside: it lists PR's and KS's clips in the order of the disk, which is a
draw like the seed's; here in that of their names.
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from tensorboardX.proto.event_pb2 import Event

from benchmarks import common
from s3prl_ekd.bridge.checkpoints import newest
from s3prl_ekd.evaluate.presets import apply_overrides, parse_overrides
from s3prl_ekd.evaluate.score import runner_scores
from s3prl_ekd.evaluate.tasks import Task, parse_tasks
from s3prl_ekd.own_scripts import own_command
from s3prl_ekd.task_names import PAPER_TASKS
from s3prl_ekd.torch_file import read_torch_file

BY_NAME = """
import os, pathlib, runpy, sys
for name in ("iterdir", "glob", "rglob"):
    listed = getattr(pathlib.Path, name)
    setattr(pathlib.Path, name, lambda self, *words, listed=listed: iter(sorted(listed(self, *words))))
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""
NOT_COMPARED = (".ckpt", ".yaml", ".log")  # holding paths and dates; the heads of checkpoints are compared


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    name: str
    program: list[str]
    out: Path
    folder: Path
    """To run in."""
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, words: list[str], log: Path) -> str:
        """Run the program; returns what it printed, which is in ``log`` too."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | self.environment
        with log.open("w") as stream:
            done = subprocess.run(
                [*self.program, *words], cwd=self.folder, env=environment, stdout=stream, stderr=subprocess.STDOUT
            )
        text = log.read_text(errors="replace")
        if done.returncode:
            sys.exit(f"{self.name}: status {done.returncode}: {log}\n" + "\n".join(text.splitlines()[-5:]))
        return text


def stock_side(checkout: Path, python: Path, out: Path) -> Side:
    """s3prl itself, in a copy: it keeps SID's file lists in its own folders, and would take one of another corpus."""
    package = checkout / "s3prl"
    if not (package / "run_downstream.py").is_file():
        sys.exit(f"--checkout: {checkout}: no git checkout of s3prl (no s3prl/run_downstream.py)")
    if "s3prl_ekd" in (package / "hub.py").read_text():
        sys.exit(f"--checkout: {checkout}: is linked; `s3prl-ekd unlink {checkout}` first")
    copy = out / "s3prl-checkout"
    shutil.copytree(package, copy / "s3prl", ignore=shutil.ignore_patterns(".cache", "__pycache__"), dirs_exist_ok=True)
    # its checkpoints hold a Namespace, which torch 2.6 and later refuse to it
    environment = {"PYTHONPATH": str(copy), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    program = [str(python), "-W", "ignore", "-c", BY_NAME, "run_downstream.py"]
    return Side("s3prl", program, out / "s3prl", copy / "s3prl", environment)


def our_side(out: Path) -> Side:
    return Side("ours", own_command(["run_downstream.py"]), out / "ours", out)


def configure(task: Task, options: Any) -> Path:
    """The task's configuration for both: the recipe, shortened, two evaluations on the way."""
    config = yaml.safe_load((options.data / f"{task.name}.yaml").read_text())
    steps = max(options.steps // 6, 1)
    config["runner"] |= {"total_steps": 6 * steps, "eval_step": 3 * steps, "save_step": 3 * steps, "log_step": steps}
    workers = {task.workers_key: "2"}  # some tasks draw their crops there
    config = apply_overrides(config, workers | parse_overrides(options.override)[task.name])
    written: Path = options.out / f"{task.name}.yaml"
    written.write_text(yaml.safe_dump(config, sort_keys=False))
    return written


def train_and_test(side: Side, task: Task, config: Path, options: Any) -> tuple[Path, float]:
    """Experiment folder and test score in percent."""
    folder = side.out / task.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    model = ["-u", options.upstream, *(["-k", str(options.ckpt)] if options.ckpt else [])]
    words = ["-m", "train", "-p", str(folder), *model, "-d", task.downstream, "-c", str(config), "--device", "cpu"]
    side.run([*words, *options.more], side.out / f"{task.name}-train.log")
    best = folder / task.best_checkpoint
    checkpoint = best if best.is_file() else newest(folder, read_torch_file)
    words = ["-m", "evaluate", "-t", task.test_split, "-e", str(checkpoint), "--device", "cpu"]
    text = side.run(words, side.out / f"{task.name}-test.log")
    return folder, runner_scores(task, text, task.test_split)[-1]


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """(tag, step) -> value of all curves."""
    found = {}
    for file in sorted(folder.glob("events.*")):
        for event in events(file.read_bytes()):
            found.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
    return found


def events(data: bytes) -> Iterator[Any]:
    """Tensorboard's records: a length, its checksum, the event, its checksum."""
    place = 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += length + 16


def head(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the last checkpoint's head and layer weights."""
    last = newest(folder, read_torch_file)
    if last is None:
        sys.exit(f"{folder}: holds no states-N.ckpt")
    content = read_torch_file(last)
    parts = [part for key in ("Downstream", "Featurizer") for part in content[key].items()]
    return {f"{number}.{name}": value for number, (name, value) in enumerate(parts) if torch.is_tensor(value)}


def relative(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / max(abs(theirs), 1e-12)


def compare(folders: dict[str, Path], scores: dict[str, float]) -> dict[str, Any]:
    """What is equal, and by how much the rest differs."""
    theirs, ours = (scalars(folders[side]) for side in ("s3prl", "ours"))
    if theirs.keys() != ours.keys():
        sys.exit(f"curves of one side alone: {sorted(theirs.keys() ^ ours.keys())}")
    heads = head(folders["s3prl"]), head(folders["ours"])
    files = [
        file.name for file in sorted(folders["s3prl"].iterdir())
        if file.suffix not in NOT_COMPARED and not file.name.startswith("events.")
    ]  # fmt: skip
    same = [name for name in files if (folders["ours"] / name).read_bytes() == (folders["s3prl"] / name).read_bytes()]
    return {
        "test_percent": scores,
        "curve_points": len(theirs),
        "curve_points_equal": sum(theirs[key] == ours[key] for key in theirs),
        "largest_relative_difference": max(relative(ours[key], theirs[key]) for key in theirs),
        "head_weights": len(heads[0]),
        "head_weights_equal": sum(torch.equal(heads[0][key], heads[1][key]) for key in heads[0]),
        "prediction_files": len(files),
        "prediction_files_equal": len(same),
    }


def line(task: Task, found: dict[str, Any]) -> str:
    equal = (
        f"{found[f'{what}_equal']} of {found[what]} {shown}"
        for what, shown in (
            ("curve_points", "points of curves"),
            ("head_weights", "tensors of the head"),
            ("prediction_files", "files"),
        )
    )
    test, apart = found["test_percent"], found["largest_relative_difference"]
    return (
        f"{task.name:4} test {task.metric} {test['s3prl']:.6g} (s3prl) {test['ours']:.6g} (ours); "
        f"equal are {', '.join(equal)}; curves differ by {apart:.1e} at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what s3prl-ekd prepare wrote")
    parser.add_argument("--checkout", type=Path, required=True, help="git checkout of s3prl")
    parser.add_argument("--stock", type=Path, required=True, help="Python of a stack that s3prl runs on unchanged")
    parser.add_argument("--tasks", type=parse_tasks, default=",".join(PAPER_TASKS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--upstream", default="fbank", help="s3prl's -u")
    parser.add_argument("--ckpt", type=Path, help="s3prl's -k")
    parser.add_argument("--override", action="append", default=[], help="as of s3prl-ekd evaluate")
    parser.add_argument("--more", nargs="*", default=[], help="further words of the training command, as -f")
    parser.add_argument("--out", type=Path, help="kept; else a folder that goes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        options.out = (options.out or Path(scratch)).resolve()
        options.out.mkdir(parents=True, exist_ok=True)
        sides = [stock_side(options.checkout.resolve(), options.stock.absolute(), options.out), our_side(options.out)]
        result = {}
        for task in options.tasks:
            config = configure(task, options)
            done = {side.name: train_and_test(side, task, config, options) for side in sides}
            folders = {name: folder for name, (folder, _) in done.items()}
            found = result[task.name] = compare(folders, {name: score for name, (_, score) in done.items()})
            print(line(task, found), flush=True)
        result = {"steps": options.steps, "upstream": options.upstream, "tasks": result}
        common.save(result, options.json, "cpu", "benchmarks.parity")


if __name__ == "__main__":
    main()
