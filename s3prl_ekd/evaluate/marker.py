"""``run.json`` in each run's folder: its settings, what it read, how far it came and, at the end, its result.

What the settings are is in ``plan.py``, when a marker is written and whether an earlier one still counts in ``run.py``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from s3prl_ekd.errors import EkdError
from s3prl_ekd.whole_file import write_whole

MARKER = "run.json"


class Trained(TypedDict):
    """The result of a training, which a learning rate is picked by."""

    dev: float | None
    """Best dev score in percent; None where the runner printed none."""
    seconds: float
    """Wall-clock time of all tries, for a tested run that of its test too."""
    steps: int
    lr: float | None
    """None where the configuration names no learning rate."""


class Result(Trained):
    """The result of a run that was tested; it holds the task's metric, one of ``per``, ``wer`` and ``acc``."""

    per: NotRequired[float]
    wer: NotRequired[float]
    acc: NotRequired[float]
    rescored: dict[str, float]
    """The metric from the prediction files, ``n_utterances``, ``agrees``; of WER ``cer``, of accuracy ``majority``."""
    checkpoint_step: int | None
    """The training step at which the tested checkpoint was saved."""
    layer_weights: NotRequired[list[float]]
    """Of each hidden state, from state 0, in the sum that the task reads; empty of a single one. Older versions did
    not note them."""
    n_utterances: int
    checkpoint: str
    commands: list[str]
    versions: dict[str, str]
    """Of the software that tested it: a finished run is kept when that is another later (``provenance.py``)."""


Results = dict[str, Trained]
"""Run key -> the result so far: a :class:`Result` where the run was tested."""


@dataclass
class Marker:
    """A run's ``run.json``; the file's keys are the fields."""

    settings: dict[str, Any]
    """``Run.settings()``: runs with equal ones are the same run."""
    inputs: dict[str, str]
    """Name -> SHA-256 of what the run read (``inputs.py``)."""
    state: Literal["started", "trained", "finished"] = "started"
    seconds: float = 0.0
    result: Result | None = None
    """Not in the file before the run is finished."""


def read_marker(expdir: Path) -> Marker | None:
    """The marker of a run's folder, or None where nothing ran yet.

    Raises:
        EkdError: the file is damaged.
    """
    path = expdir / MARKER
    if not path.is_file():
        return None
    try:
        marker = Marker(**json.loads(path.read_text()))
        if not isinstance(marker.settings, dict) or not isinstance(marker.inputs, dict):
            raise TypeError("expected settings and inputs as mappings")
        return marker
    except (OSError, ValueError, TypeError) as error:
        raise EkdError(f"{path}: not readable ({error}); delete {expdir} to run it again") from error


def write_marker(expdir: Path, marker: Marker) -> None:
    """Write ``run.json`` whole or not at all: a kill between two states must not leave half a file."""
    content = {name: value for name, value in vars(marker).items() if name != "result" or value is not None}
    write_whole(expdir / MARKER, json.dumps(content, indent=1))
