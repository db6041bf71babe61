"""A stand-in for s3prl's native runner, and a prepared folder for it: evaluate's tests without minutes of training."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_ekd.cli import main
from s3prl_ekd.evaluate import plan as planning
from s3prl_ekd.evaluate.fork_server import ForkServer
from s3prl_ekd.evaluate.models import Upstream
from s3prl_ekd.evaluate.plan import Run
from s3prl_ekd.evaluate.tasks import TASKS
from s3prl_ekd.task_names import PAPER_TASKS

# Prints and writes what s3prl's runner prints and writes, for two utterances; notes its calls in calls.txt, tests.txt
# and gpus.txt. Rows of dev.json set dev scores: [[task, lr, seed, model's folder, run's folder], score], null for any.
STAND_IN = """
import argparse, json, os, pathlib, shutil, sys
p = argparse.ArgumentParser()
for a in ("-m", "-p", "-u", "-d", "-c", "-o", "-e", "-t", "--seed", "--device"):
    p.add_argument(a)
p.add_argument("-g"); p.add_argument("-k"); p.add_argument("-s"); p.add_argument("-l", type=int)
p.add_argument("-a", action="store_true")
p.add_argument("--upstream_feature_normalize", action="store_true")
a = p.parse_args()
if a.m == "train":
    out = pathlib.Path(a.p)
    with (out.parent / "calls.txt").open("a") as f: f.write(out.name + chr(10))
    if (out.parent / "broken").exists():
        print("Traceback", flush=True); print("RuntimeError: boom"); sys.exit(1)
    print("\\roverall:  50%|#####     | 1/2 [00:01<00:01]", end="", file=sys.stderr)
    split = "dev-clean" if a.d == "asr" else "dev"
    metric, best = {"ctc": ("per", 0.5), "asr": ("wer", 120.0)}.get(a.d, ("acc", 0.5))
    options = dict(item.split("=") for item in (a.o or "").split(",,") if item)
    key = [a.d, options.get("config.optimizer.lr"), a.seed, out.parent.parent.name]
    table = pathlib.Path(__file__).with_name("dev.json")
    for names, value in json.loads(table.read_text()) if table.exists() else []:
        if all(name in (None, own) for name, own in zip(names, [*key, out.name])): best = value
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
    with (out.parent / "gpus.txt").open("a") as f: f.write(f"{gpu} {a.device}" + chr(10))
    if (out.parent / "full").exists():
        print("[Runner] - CUDA out of memory at step 1" + chr(10) + "[Runner] - CUDA out of memory at step 2")
    print(f"{split} {metric}: {best}")
    name = "states-2.ckpt" if a.d == "asr" else "dev-best.ckpt"
    shutil.copy(pathlib.Path(__file__).with_name("saved.ckpt"), out / name)
    (out / "task").write_text(a.d)
else:
    out = pathlib.Path(a.e).parent
    with (out.parent / "tests.txt").open("a") as f: f.write(out.name + chr(10))
    d, run = (out / "task").read_text(), out
    if a.p:  # on distorted audio
        if (out / "deaf").exists(): print("Traceback"); print("RuntimeError: boom"); sys.exit(1)
        out = pathlib.Path(a.p)
    if d == "ctc":
        names, hyp, ref, line = ("test-hyp.ark", "test-ref.ark"), ("A B", "C"), ("A B", "D"), f"test per: {1 / 3}"
    elif d == "asr":
        names, hyp, ref = ("test-clean-noLM-hyp.ark", "test-clean-noLM-ref.ark"), ("HI", "YOU"), ("HI", "YO")
        line = "test-clean wer: 50.0"
    else:
        fold = run.name.split("-")[1] + "_" if d == "emotion" else ""
        names = (f"test_{fold}predict.txt", f"test_{fold}truth.txt")
        hyp, ref, line = ("x", "y"), ("x", "z"), "test acc: 0.5"
        if a.p: hyp, line = ("y", "y"), "test acc: 0.0"
    for name, texts in zip(names, (hyp, ref)):
        (out / name).write_text("".join(f"u{i} {t}" + chr(10) for i, t in enumerate(texts)))
    print(line)
"""


def make_data(folder: Path, folds: tuple[str, ...] = ("fold1", "fold2")) -> Path:
    """A prepared folder as far as evaluate and the stand-in read it."""
    (folder / "er").mkdir(parents=True)
    (folder / "er" / "folds.json").write_text(json.dumps(folds))
    (folder / "split.txt").write_text("1 id10001/a/1.wav\n3 id10002/a/1.wav\n")
    for name in PAPER_TASKS:
        config = {"runner": {"total_steps": 2, "eval_step": 2}}
        config["downstream_expert"] = {"datarc": {"meta_data": str(folder / "split.txt")}}
        (folder / f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML
    return folder


def install_stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make evaluate call the stand-in, which lies in ``folder``."""
    script = folder / "run_downstream.py"
    script.write_text(STAND_IN)
    state = {"Featurizer": {"weights": torch.zeros(3)}, "Step": 2, "Args": argparse.Namespace(), "Config": {}}
    torch.save(state, folder / "saved.ckpt")
    monkeypatch.setattr(planning, "downstream_program", lambda: [sys.executable, str(script)])
    monkeypatch.setattr(ForkServer, "possible", lambda devices: False)  # it would fork the real runner


def set_dev(folder: Path, *rows: tuple[list[str | None], float]) -> None:
    """What the stand-in in ``folder`` prints as dev scores (see STAND_IN); a later row wins."""
    (folder / "dev.json").write_text(json.dumps([[names, score] for names, score in rows]))


def calls(folder: Path, name: str = "calls.txt") -> list[str]:
    """Folders of the runs that were trained below a model's folder, sorted; ``tests.txt``: tested."""
    return sorted((folder / "runs" / name).read_text().split())


def files(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder but a call's lock, by its content."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".evaluate.lock"}


def up(*models: str) -> list[str]:
    """``--upstream`` for each."""
    return [word for model in models for word in ("--upstream", model)]


def evaluate(data, tmp_path, *words, upstream=("--upstream", "fbank"), tasks="sid"):
    """The command as a user gives it, in this process; its exit status."""
    where = ["--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu", "--tasks", tasks]
    return main(["evaluate", *upstream, *where, *words])


def plan(data: Path, tmp_path: Path, tasks: Sequence[str] = PAPER_TASKS, **more: Any) -> list[Run]:
    """The runs of fbank on the prepared folder, below ``tmp_path/out``."""
    chosen = [TASKS[name] for name in tasks]
    model = Upstream("fbank", "fbank")
    return planning.make_plan(chosen, data, tmp_path / "out", model, more.pop("overrides", {}), **more)
