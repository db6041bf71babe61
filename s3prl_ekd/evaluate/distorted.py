"""Tests on distorted audio of what ``evaluate`` has trained: which there are, and how one is done.

A condition is a name and a file with a section ``distortion``; a test is one tested run's best checkpoint under one
condition. The native runner distorts (``bridge/distorted_test.py``). A test has a folder of its own in its run's,
``RUN/distorted/NAME``, whose ``result.json`` says that it is done (``distorted_result.py``).
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from s3prl_ekd.config.loading import load_distortion
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import plan
from s3prl_ekd.evaluate.devices import gpu_environment
from s3prl_ekd.evaluate.distorted_result import CLEAN, FOLDER, RESULT, read_result
from s3prl_ekd.evaluate.inputs import changed_input, values_digest
from s3prl_ekd.evaluate.kept_scores import scored_runs
from s3prl_ekd.evaluate.marker import MARKER
from s3prl_ekd.evaluate.process import Children, run_logged
from s3prl_ekd.evaluate.progress import Board
from s3prl_ekd.evaluate.run import LOGS, scored
from s3prl_ekd.evaluate.tasks import Task
from s3prl_ekd.own_scripts import fits_option
from s3prl_ekd.spelling import repeated
from s3prl_ekd.whole_file import write_whole
from s3prl_ekd.writable import empty_folder

KEY = "config.runner.distortion"


@dataclass(frozen=True)
class Condition:
    """A distortion by its name."""

    name: str
    file: Path
    """Absolute."""
    settings: Mapping[str, Any]
    """What the file says, with all defaults."""
    digest: str
    """SHA-256 of the settings and of the names of the files that it draws from."""


@dataclass(frozen=True)
class Test:
    """One tested run, to be tested again under a condition."""

    key: str
    """Names it among all of a call."""
    task: Task
    fold: str | None
    checkpoint: Path
    condition: Condition
    trained: Mapping[str, Any]
    """The settings of the run (``Run.settings``)."""
    device: str = "cpu"

    @property
    def folder(self) -> Path:
        """Where its predictions and its result go."""
        return self.checkpoint.parent / FOLDER / self.condition.name

    @property
    def states(self) -> Path | None:
        """Of a run whose states were cached, and so its clips encoded alone: a folder, since that one may be gone."""
        return self.folder / "states" if self.trained.get("cache_states") else None

    def on(self, device: str) -> Test:
        """The same test on a device."""
        return replace(self, device=device)

    def command(self) -> list[str]:
        """The native command."""
        items = {KEY: str(self.condition.file)}
        if self.states is not None:
            items[plan.CACHE_KEY] = str(self.states)
        trained_with = self.trained["overrides"]
        return plan.test_command(self.task, self.checkpoint, self.device, trained_with, items, self.folder)


def parse_conditions(texts: Sequence[str]) -> list[Condition]:
    """Read each of ``--distortion``.

    Raises:
        EkdError: one that is wrong (:func:`parse_condition`), or a name that is there twice.
    """
    conditions = [parse_condition(text) for text in texts]
    double = repeated([one.name for one in conditions])
    if double is not None:
        raise EkdError(f"--distortion: {double} is given twice; give one of them another name (NAME=FILE)")
    return conditions


def parse_condition(text: str) -> Condition:
    """Read ``NAME=FILE``, or ``FILE`` whose name without its ending is the name.

    Raises:
        EkdError: a name that is no folder's, no such file, mistakes in it, sources that are not there.
    """
    name, equals, file = text.rpartition("=")
    path = Path(file).expanduser().absolute()
    name = name if equals else path.stem
    if not re.fullmatch(r"\w[\w.-]*", name) or name == CLEAN:
        raise EkdError(
            f"--distortion {text}: {name!r}: expected a name of letters, digits, '-', '.', '_', not {CLEAN!r}"
        )
    if not path.is_file():
        raise EkdError(f"--distortion {text}: {path}: no such file")
    if not fits_option(path):
        raise EkdError(f"--distortion {text}: s3prl's -o cannot carry a path with '=' or ',,': {path}")
    config = load_distortion(path)
    from s3prl_ekd.data.distort import Distorter  # here: it takes as long to import as all the checks before

    files = Distorter(config, str(path)).source_files()
    settings = config.model_dump(mode="json", exclude={"setup"})
    digest = values_digest({"distortion": settings, "files": [str(file) for file in files]})
    return Condition(name, path, settings, digest)


def plan_tests(
    models: Sequence[tuple[Path, Mapping[str, Any]]], conditions: Sequence[Condition], tasks: Sequence[Task]
) -> list[Test]:
    """Every test of some tasks of some models.

    Args:
        models: each one's folder and record (``scores_file.read_models``).

    Raises:
        EkdError: a run or its checkpoint is gone, or what it has read has changed since.
    """
    tests = []
    for home, record in models:
        prefix = f"{home.name}/" if len(models) > 1 else ""
        for task in (one for one in tasks if one.name in record["tasks"]):
            for _, fold, folder, marker in scored_runs(record["tasks"][task.name], home):
                if marker is None or marker.result is None:
                    raise EkdError(f"{folder / MARKER}: is gone, and so cannot be tested again")
                checkpoint = folder / Path(marker.result["checkpoint"]).name
                if not checkpoint.is_file():
                    raise EkdError(f"{checkpoint}: is gone, and so cannot be tested again")
                changed = changed_input(marker.inputs)
                if changed is not None:
                    raise EkdError(f"{folder / MARKER}: was tested before {changed} changed; evaluate it again")
                if marker.settings.get("cache_states") and not fits_option(folder):
                    raise EkdError(f"{folder}: s3prl's -o cannot carry a path with '=' or ',,'; move the scores")
                tests += [
                    Test(f"{prefix}{folder.name} {one.name}", task, fold, checkpoint, one, marker.settings)
                    for one in conditions
                ]
    return tests


def check_earlier(test: Test) -> bool:
    """Whether a test is done.

    Raises:
        EkdError: under the condition's name another distortion was tested.
    """
    earlier = read_result(test.folder)
    if earlier is None:
        return False
    if earlier["digest"] != test.condition.digest:
        raise EkdError(
            f"{test.folder}: {test.condition.name} was another distortion, or drew from other files; give this one "
            "another name, or --overwrite"
        )
    return True


def forget_other(test: Test) -> None:
    """Remove the result of another distortion under the condition's name, so that no table mixes the two."""
    earlier = read_result(test.folder)
    if earlier is not None and earlier["digest"] != test.condition.digest:
        (test.folder / RESULT).unlink()


def do_test(test: Test, board: Board, children: Children) -> dict[str, Any]:
    """Carry out a test; returns what ``result.json`` then holds.

    Raises:
        EkdError: it fails.
    """
    if test.folder.is_dir():
        empty_folder(test.folder)  # a try that was stopped, or another distortion
    command = test.command()
    with board.phase(test.key, "test") as watch:
        output, seconds = run_logged(
            command, test.folder / LOGS["test"], watch, gpu_environment(test.device), children,
            len(plan.downstream_program()),
        )  # fmt: skip
    if test.states is not None:
        shutil.rmtree(test.states, ignore_errors=True)  # no clip comes twice: it holds the runner's probe alone
    score, again = scored(test.key, test.task, output, test.folder, test.fold)
    result = {
        test.task.metric: score,
        "rescored": again,
        "seconds": round(seconds, 1),
        "digest": test.condition.digest,
        "distortion": str(test.condition.file),
        "settings": test.condition.settings,
        "command": shlex.join(command),
    }
    write_whole(test.folder / RESULT, json.dumps(result, indent=1))
    board.finished(test.key, result)  # type: ignore[arg-type]  # of a Result it reads the metric and cer
    return result
