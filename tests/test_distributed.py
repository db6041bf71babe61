"""Several ranks give one process's run: the same loss curve, log values, statistics and weights, to float tolerance."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from console import BIN, command, environment
from pretrain_lab import hold_out
from ranks_lab import RANKS, STILL, Case, rank_main, train, write_lab, write_model

from s3prl_ekd.bridge import downstream_launch
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.bridge.ranks import World
from s3prl_ekd.data.plan import BatchPlan
from s3prl_ekd.data.shards import ShardedPlan
from s3prl_ekd.distributed import Ranks
from s3prl_ekd.errors import EkdError
from s3prl_ekd.torch_file import read_torch_file

BEYOND = {
    "targets": {"normalise": "standardise"},
    "balance": {"decay": 0.9},
    "weights": {"wavlm": 2.0},
    "residual_heads": [["hubert", "wavlm"]],
}
# 12 clips, two of them unreadable. In batches of 5, 5, 2 the shares of two ranks differ; in batches of 2 a rank whose
# one file is unreadable has no clip at all.
CASES = {
    "paper": Case(),
    "thin": Case(BEYOND, batch=2),
    "lost": Case(BEYOND, batch=3, steps=4, lost=1),
    "average": Case({"mode": "layerwise_average"}, accumulate=2, steps=3),
    "beyond": Case(BEYOND),
    "phi_s": Case({"targets": {"normalise": "phi_s"}}),  # still fitting: eigenvectors would amplify the rounding
    "unlike": Case({"targets": {"normalise": "phi_s", "fit_batches": 2}}, unlike=True),
    "layers": Case({"student_layers": [0, 1]}, student=STILL | {"feature_grad_mult": 0}),
    "dropout": Case(student={}),
    "resumed": Case(BEYOND, student={}, resume_at=4),
    "unstopped": Case(BEYOND, student={}),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hold_out(write_lab(tmp_path_factory.mktemp("lab")))


@pytest.fixture(scope="module")
def ranks(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Case -> what each of two gloo processes came to."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, case in CASES.items():
        write_model(lab, folder / f"{name}.yaml", case)
    torch.multiprocessing.spawn(rank_main, (lab, folder, CASES), nprocs=RANKS)
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(RANKS)] for name in CASES
    }


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=name)
        else:
            assert found[name] == value, name


@pytest.mark.parametrize("name", ["paper", "thin", "lost", "average", "beyond", "phi_s", "layers"])
def test_two_ranks_follow_one_process(lab: Path, ranks: dict, tmp_path: Path, name: str) -> None:
    alone = train(lab, write_model(lab, tmp_path / "model.yaml", CASES[name]), CASES[name])
    assert abs(alone["losses"][-1] - alone["losses"][0]) > 1e-2
    for found in ranks[name]:
        assert found["losses"] == pytest.approx(alone["losses"], rel=2e-6)
        close(found["weights"], alone["weights"], 2e-5)
        close(found["statistics"], alone["statistics"], 2e-5)
        for ours, theirs in zip(found["logs"], alone["logs"], strict=True):
            if theirs is None:  # a step of which nothing could be read
                assert ours is None and name == "lost"
                continue
            for head, parts in theirs["heads"].items():
                assert ours["heads"][head] == pytest.approx(parts, rel=1e-4), head
            assert ours["skipped_files"] == theirs["skipped_files"]
    assert alone["logs"][-1]["skipped_files"] >= 2
    if name == "thin":
        assert sum(found["stand_ins"] for found in ranks[name]) == 2
    assert alone["losses"].count(0.0) == (name == "lost")
    assert all(torch.equal(a, b) for a, b in zip(*(r["weights"].values() for r in ranks[name]), strict=True))


def test_ranks_on_unlike_machines_rotate_alike(ranks: dict) -> None:
    one, other = (rank["statistics"] for rank in ranks["unlike"])
    rotations = [name for name in one if name.endswith("rotation")]
    assert rotations and all(not torch.equal(one[name], torch.eye(len(one[name]))) for name in rotations)
    assert all(torch.equal(one[name], other[name]) for name in rotations)


def test_dropout_differs_from_rank_to_rank(ranks: dict) -> None:
    first, second = ranks["dropout"]
    assert first["losses"] == second["losses"]  # both are the global mean
    assert first["losses"] != ranks["paper"][0]["losses"]
    assert first["seed"] == 0 != second["seed"]  # rank 0 draws what one process would


def test_a_resumed_run_ends_bit_for_bit_where_an_unstopped_one_does(ranks: dict) -> None:
    for resumed, unstopped in zip(ranks["resumed"], ranks["unstopped"], strict=True):
        assert resumed["losses"] == unstopped["losses"]
        assert torch.equal(resumed["random"], unstopped["random"])
        for part in ("weights", "statistics"):
            assert all(torch.equal(resumed[part][name], value) for name, value in unstopped[part].items())


@pytest.mark.parametrize("size", [2, 3, 8])
def test_every_clip_of_a_batch_is_dealt_once(size: int) -> None:
    def plan() -> BatchPlan:
        return BatchPlan(range(4_000, 4_023), batch_size=7, seed=3)

    shares = [list(ShardedPlan(plan(), Ranks(rank, size))) for rank in range(size)]
    whole = list(plan())
    assert all(len(share) == len(whole) for share in shares)  # no rank waits for a batch that others don't have
    for spec, dealt in zip(whole, zip(*shares, strict=True), strict=True):
        pairs = sorted(pair for share in dealt for pair in zip(share.items, share.starts, strict=True))
        assert pairs == sorted(zip(spec.items, spec.starts, strict=True))
        assert {share.samples for share in dealt} == {spec.samples}
        assert max(len(s.items) for s in dealt) - min(len(s.items) for s in dealt) <= 1


def test_several_processes_that_nothing_joined_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """s3prl's own script in a linked checkout under torchrun: two ranks would write into one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EkdError, match="not joined"):
        Ranks.current()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Ranks.current() == Ranks(0, 1)


@pytest.mark.parametrize(
    "environ,device,words",
    [
        ({"WORLD_SIZE": "2", "RANK": "x"}, "cpu", "RANK=x: expected a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "cpu", "torchrun did not start this process.*MASTER_ADDR"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "99"}, "cuda", "--nproc_per_node: this machine has"),
        ({"WORLD_SIZE": "2"}, "cuda:1", "--device cuda:1: each rank takes a GPU of its own"),
    ],
)
def test_launches_that_cannot_work(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], device: str, words: str
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("sys.stdout", None)  # what connect() replaces comes back
    world = World()
    with pytest.raises(EkdError, match=words), warnings.catch_warnings():
        if device == "cpu":
            world.connect()
        world.start(device)
    assert world.may_report("x") == (environ.get("RANK") != "1")


def test_downstream_says_what_it_does_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EkdError, match="torchrun --nproc_per_node=N --no-python run_downstream.py"):
        downstream_launch.run(["-m", "train", "--multi_gpu"], Run([]))
    monkeypatch.setenv("WORLD_SIZE", "2")
    launch = downstream_launch.DownstreamLaunch(Run([]))
    launch.args = Namespace(mode="evaluate")
    with pytest.raises(EkdError, match="-m evaluate: runs in one process"):
        launch._check_first(launch.args)


# ------------------------------------------------------------------------------------------------ the real commands


def settings(lab: Path, folder: Path) -> list[str]:
    """Arguments of a run of 24 steps with a checkpoint every 4; dropout off."""
    folder.mkdir(exist_ok=True)
    runner = {
        "runner": {"n_epochs": -1, "total_steps": 24, "gradient_clipping": 5.0, "gradient_accumulate_steps": 1,
                   "log_step": 1, "save_step": 4, "max_keep": 9, "fp16": False},
        "optimizer": {"name": "AdamW_with_schedule", "lr": 1.0e-3, "warmup_proportion": 0.07},
        "pretrain_expert": {"datarc": {"num_workers": 1, "train_batch_size": 5, "libri_root": str(lab),
                                       "file_path": str(lab), "sets": ["train"], "valid_sets": ["valid"]}},
    }  # fmt: skip
    (folder / "runner.yaml").write_text(yaml.safe_dump(runner))
    write_model(lab, folder / "model.yaml", Case(BEYOND))
    return ["-u", "ekd", "-c", "runner.yaml", "-g", "model.yaml", "--device", "cpu"]


def torchrun(*arguments: object) -> list[str]:
    """The documented command; a free port, so that test processes do not meet."""
    launcher = ["--nproc_per_node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--no-python"]
    return [*launcher, "run_pretrain.py", *map(str, arguments)]


PATH = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def curve(folder: Path, name: str = "metrics.jsonl") -> dict[int, float]:
    return {line["step"]: line["loss"] for line in map(json.loads, (folder / name).read_text().splitlines())}


def names(folder: Path) -> list[str]:
    """Files of an experiment, without the time and host in a tensorboard file's name."""
    return sorted(path.name.split(".tfevents")[0] for path in folder.iterdir())


@pytest.mark.slow
def test_torchrun_trains_as_one_process_does_and_goes_on_after_a_rank_dies(lab: Path, tmp_path: Path) -> None:
    start = settings(lab, tmp_path)
    done = command("run_pretrain.py", *start, "-p", "one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    again = "config.runner.log_step=1"  # what the file says too, to see it said once
    done = command("torchrun", *torchrun(*start, "-p", "two", "-o", again), cwd=tmp_path, **PATH)
    assert done.returncode == 0, done.stderr[-2000:]
    assert names(tmp_path / "two") == names(tmp_path / "one")
    assert done.stdout.count("Save the checkpoint to") == 6  # one voice
    assert done.stderr.count("[ekd] student starts from") == 1 and done.stderr.count("[ekd] validation: ") == 1
    assert done.stderr.count("[Override] - config.runner.log_step") == 1
    expected = curve(tmp_path / "one")
    assert len(expected) == 24 and curve(tmp_path / "two") == pytest.approx(expected, rel=2e-5)
    one, two = last_weights(tmp_path / "one"), last_weights(tmp_path / "two")
    close(two, one, 1e-4)
    held_out = curve(tmp_path / "one", "validation.jsonl")
    assert list(held_out) == [4, 8, 12, 16, 20, 24]
    assert curve(tmp_path / "two", "validation.jsonl") == pytest.approx(held_out, rel=2e-5)

    words = [str(BIN / "torchrun"), *torchrun(*start, "-p", "killed")]
    with open(tmp_path / "err", "w") as err:
        run = subprocess.Popen(words, cwd=tmp_path, env=environment(**PATH), stdout=subprocess.DEVNULL, stderr=err)
        deadline = time.monotonic() + 200
        while not (tmp_path / "killed/states-4.ckpt").is_file():
            assert run.poll() is None and time.monotonic() < deadline, (tmp_path / "err").read_text()[-2000:]
            time.sleep(0.02)
        os.kill(rank_process(run.pid, 1), signal.SIGKILL)
        assert run.wait(120) != 0
    text = (tmp_path / "err").read_text()
    assert "exitcode  : -9" in text  # torchrun names the rank that died
    assert text.count("continue with: torchrun ... run_pretrain.py") == 1
    assert not (tmp_path / "killed/states-20.ckpt").exists()
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "killed/states-4.ckpt", tmp_path / "alone")

    done = command("torchrun", *torchrun(*start, "-p", "killed", "-a"), cwd=tmp_path, **PATH)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(torch.equal(value, two[name]) for name, value in last_weights(tmp_path / "killed").items())
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert curve(tmp_path / "killed", name) == curve(tmp_path / "two", name)
    done = command("run_pretrain.py", *start, "-p", "alone", "-a", cwd=tmp_path)  # and on one process
    assert done.returncode == 0, done.stderr[-2000:]
    close(last_weights(tmp_path / "alone"), one, 1e-4)


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Encoder and heads after the last step."""
    part = read_torch_file(next(folder.glob("states-epoch-*.ckpt")))["EKD"]
    return {f"{room}.{name}": value for room in ("encoder", "heads") for name, value in part[room].items()}


def rank_process(launcher: int, rank: int) -> int:
    """Process id of a rank of a torchrun on this machine."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environ = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == launcher and b"RANK=%d" % rank in environ:
            return int(folder.name)
    raise AssertionError("no such rank")


@pytest.mark.slow
def test_mistakes_are_one_line_of_one_rank(lab: Path, tmp_path: Path) -> None:
    start = [*settings(lab, tmp_path), "-p", "x"]
    for change, expected in (
        (["-o", "config.runner.total_steps=4"], "runner: save_step: 4 must be below total_steps: 4"),
        (["-o", "config.pretrain_expert.datarc.train_batch_size=1"], "train_batch_size: 1 clips in all, too few for 2"),
        (["--multi_gpu"], "use torchrun --nproc_per_node=N --no-python run_pretrain.py"),
    ):
        done = command("torchrun", *torchrun(*start, *change), cwd=tmp_path, **PATH)
        assert done.returncode != 0
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and expected in lines[0], done.stderr
        assert "exitcode  : 2" in done.stderr and "Traceback" not in done.stderr.partition("error: ")[0]
        assert not (tmp_path / "x").exists()
