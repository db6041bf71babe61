"""The folder of an experiment: gone with what the start wrote where that was refused, nothing else touched; locked."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from bridge_corpora import overrides, voxceleb
from console import check_mistakes
from tensorboardX import SummaryWriter

from s3prl_ekd.bridge import script_command
from s3prl_ekd.bridge.experiment_folder import ExperimentFolder, lock_run
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.bridge.pretrain_launch import PretrainLaunch
from s3prl_ekd.errors import EkdError

WRITTEN = ("config_runner.yaml", "config_model.yaml", "args_2026-11-27-22-00-01.yaml", "mine_2026-11-27-22-00-01.yaml")


def start(folder: Path, value: float | None = None) -> ExperimentFolder:
    """What is there when a start has come as far as it can, with a value in tensorboard's file or none."""
    made = ExperimentFolder(folder)
    made.make()
    for name in WRITTEN:
        (folder / name).write_text("x: 1")
    (folder / ".files").mkdir()
    (folder / ".files/train.pkl").touch()
    log = SummaryWriter(str(folder))
    if value is not None:
        log.add_scalar("loss", value, 1)
    log.close()
    return made


def test_what_a_start_made_is_taken_back_and_its_parents(tmp_path: Path) -> None:
    start(tmp_path / "result/pretrain/x").take_back()
    assert not list(tmp_path.iterdir())
    ExperimentFolder(tmp_path / "never/made").take_back()
    assert not list(tmp_path.iterdir())


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    for name in ("result/pretrain/other", "result/pretrain/x"):
        (tmp_path / name).mkdir(parents=True)
    mine = tmp_path / "result/pretrain/x/args_2025-01-01-00-00-00.yaml"
    mine.write_text("mine")
    start(mine.parent).take_back()
    assert list(mine.parent.iterdir()) == [mine] and mine.read_text() == "mine"
    start(tmp_path / "result/downstream/y").take_back()
    assert [path.name for path in (tmp_path / "result").iterdir()] == ["pretrain"]


@pytest.mark.parametrize("left", ["states-4.ckpt", "metrics.jsonl", "log.log", "value"])
def test_training_that_began_keeps_everything(tmp_path: Path, left: str) -> None:
    made = start(tmp_path / "x", 0.0 if left == "value" else None)
    if left != "value":
        (tmp_path / "x" / left).touch()
    before = sorted(tmp_path.rglob("*"))
    made.take_back()
    assert sorted(tmp_path.rglob("*")) == before and len(before) > len(WRITTEN)


@pytest.mark.slow
def test_refused_pretraining_leaves_no_folder(lab: Path, tmp_path: Path) -> None:
    """In the arguments, in the configuration, and in the expert's constructor."""
    model = yaml.safe_load((lab / "model.yaml").read_text())
    model["ekd"]["teachers"][0]["source"] = "/nowhere/teacher.pt"
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(model))
    base = f"-u ekd -n x -c {lab}/runner.yaml"
    mistakes = {
        f"-u ekd -n x -c {tmp_path}/none.yaml": "no such config file",
        f"{base} -g {lab}/model.yaml -o config.runner.total_stpes=1": "runner.total_stpes: unknown key",
        f"{base} -g model.yaml": "ekd.teachers[0].source",
        f"{base} -g {lab}/model.yaml -o config.pretrain_expert.datarc.file_path='/nowhere'": "/nowhere",
        f"{base} -g {lab}/model.yaml -o config.scheduler.name='foo'": "scheduler.name: 'foo' is none of",
    }
    check_mistakes("pretrain", mistakes, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.yaml"]


@pytest.mark.slow
def test_refused_downstream_training_leaves_no_folder(tmp_path: Path) -> None:
    """In the configuration, with the upstream loaded, and when training is about to begin."""
    data = voxceleb(tmp_path / "vox")
    base, given = "-m train -n x -u fbank -d voxceleb1 --device cpu", overrides("voxceleb1", data)
    mistakes = {
        f"{base} -o {given},,config.runner.total_stpes=1": "runner.total_stpes: unknown key",
        f"{base} -u ekd_student -g embedded -l 99 -o {given}": "-l 99: the upstream's",
        f"{base} -o {given},,config.optimizer.name='Adamm'": "optimizer.name: 'Adamm' is none of",
    }
    check_mistakes("downstream", mistakes, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vox"]


def test_a_refused_run_leaves_what_the_other_one_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that start at the same moment: the other has made the folder, locked it and begun to write meanwhile."""

    def locked(folder: Path) -> None:
        for name in (".run.lock", "config_runner.yaml"):
            (folder / name).write_text("theirs")
        raise EkdError("another run is training in this folder")

    monkeypatch.setattr(script_command, "lock_run", locked)
    launch = PretrainLaunch(Run([]))
    launch.args = Namespace(expdir=str(tmp_path / "x"))
    monkeypatch.setattr(launch, "_parse", lambda: (launch.args, set()))
    monkeypatch.setattr(launch, "_take", lambda *found: launch._make_folder())
    with pytest.raises(EkdError, match="another run"):
        launch.main()
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [".run.lock", "config_runner.yaml"]


HOLD = """
import sys, time
from s3prl_ekd.bridge.experiment_folder import lock_run
lock = lock_run(sys.argv[1])
print("held", flush=True)
time.sleep(100)
"""


def test_of_two_runs_in_a_folder_the_second_is_refused(tmp_path: Path) -> None:
    """Each would delete the other's checkpoints and write its lines between the other's."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(EkdError, match=f"^{tmp_path}: another run is training in this folder"):
            lock_run(tmp_path)
        first.kill()
        first.wait()
    assert lock_run(tmp_path) is not None  # with its process the lock is gone
    assert lock_run(tmp_path / "none") is None  # a folder that cannot be written to
