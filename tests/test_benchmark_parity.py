"""The comparison with s3prl itself sees what differs: a point of a curve, a weight, a prediction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboardX import SummaryWriter

from benchmarks import parity


def experiment(folder: Path, loss: float = 0.5, weight: float = 0.1, answer: str = "a") -> Path:
    """What a run leaves that is compared."""
    folder.mkdir(parents=True)
    with SummaryWriter(str(folder)) as log:
        for step in (1, 2):
            log.add_scalar("x/train-loss", loss * step, global_step=step)
    for step, value in ((1, 9.0), (2, weight)):
        head = {"Downstream": {"w": torch.tensor([1.0, value])}, "Featurizer": {"w": torch.ones(3)}}
        torch.save(head, folder / f"states-{step}.ckpt")
    (folder / "test_predict.txt").write_text(answer)
    (folder / "config_1.yaml").write_text(str(folder))
    return folder


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        ({}, (2, 2, 1)),
        ({"loss": 0.50001}, (0, 2, 1)),
        ({"weight": 0.1 + 1e-8}, (2, 1, 1)),
        ({"answer": "b"}, (2, 2, 0)),
    ],
)
def test_what_differs_is_counted(tmp_path: Path, other: dict, equal: tuple[int, int, int]) -> None:
    folders = {"s3prl": experiment(tmp_path / "s3prl"), "ours": experiment(tmp_path / "ours", **other)}
    found = parity.compare(folders, {"s3prl": 1.0, "ours": 1.0})
    counts = ("curve_points", "head_weights", "prediction_files")
    assert tuple(found[name] for name in counts) == (2, 2, 1)
    assert tuple(found[f"{name}_equal"] for name in counts) == equal
    assert found["largest_relative_difference"] == pytest.approx(2e-5 if "loss" in other else 0, rel=1e-2)


def test_a_checkout_is_copied_and_must_be_stock(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no git checkout of s3prl"):
        parity.stock_side(tmp_path, Path("python"), tmp_path)
    package = tmp_path / "checkout" / "s3prl"
    (package / "downstream" / ".cache").mkdir(parents=True)
    for name in ("run_downstream.py", "hub.py", "downstream/.cache/train.pkl"):
        (package / name).touch()
    side = parity.stock_side(tmp_path / "checkout", Path("python"), tmp_path / "out")
    assert (side.folder / "run_downstream.py").is_file() and not (side.folder / "downstream" / ".cache").exists()
    (package / "hub.py").write_text("import s3prl_ekd\n")
    with pytest.raises(SystemExit, match="is linked"):
        parity.stock_side(tmp_path / "checkout", Path("python"), tmp_path / "out")
