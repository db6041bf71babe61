"""The benchmark of cached states: which runs it times, with a stand-in for each."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from evaluate_stand_in import make_data
from export_student import write_student

from benchmarks import states


def test_a_short_run_goes_before_those_that_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def spent(command: list[str], log: Path) -> tuple[float, float]:
        calls.append(f"{log.stem} {command[-1]}")
        return float(len(calls)), float(len(calls))

    monkeypatch.setattr(states, "spent", spent)
    student = write_student(tmp_path / "states-1.ckpt")
    options = SimpleNamespace(task="sid", data=make_data(tmp_path / "data"), ckpt=student, steps=300, device="cpu")
    result = states.measure(options, tmp_path)
    assert [call.split()[0] for call in calls] == ["warm-up", "without", "filling", "full"]
    assert ["total_steps=10," in call for call in calls] == [True, False, False, False]
    assert ["cache_states=" in call for call in calls] == [False, False, True, True]
    assert {name: part.get("wall_s") for name, part in result.items()} == {
        "without": 2.0, "filling": 3.0, "full": 4.0, "states": None
    }  # fmt: skip
