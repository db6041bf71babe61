"""``metrics.jsonl`` of a pretraining folder, one JSON object a log step, and ``validation.jsonl``, one a validation.

Each line has its ``step``; the expert writes them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.whole_file import write_whole

METRICS, VALIDATION = "metrics.jsonl", "validation.jsonl"
logger = logging.getLogger(__name__)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines, by ascending step.

    Where a step is not after the one before it, a killed run went on from its checkpoint: what it did beyond that is
    left out. A last line that a kill cut short is none.

    Raises:
        EkdError: a line is no JSON object with a step, or the file is no text.
    """
    lines: list[dict[str, Any]] = []
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise EkdError(f"{path}: is no text ({error})") from error
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            step = line["step"]
            if not isinstance(step, int):
                raise TypeError(f"{step!r} is no whole number")
        except (ValueError, KeyError, TypeError) as error:
            if number == len(texts):
                break
            raise EkdError(f"{path}:{number}: expected a JSON object with a step: {error}") from error
        while lines and lines[-1]["step"] >= step:
            lines.pop()
        lines.append(line)
    return lines


def lacks_step(path: Path, step: int) -> bool:
    """Whether no line of the file, which need not be there, is of that step; False where it cannot be read."""
    try:
        return all(line["step"] != step for line in read_metrics(path))
    except FileNotFoundError:
        return True
    except EkdError:
        return False


class MetricsWriter:
    """Appends lines to one of the files; of one that is there, what is of steps that this run makes goes first.

    Args:
        name: of the file.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.resumed_at = 0
        """Step of the checkpoint that the run goes on from: a killed run may have logged more, at other steps too."""
        self._begun = False

    def write(self, folder: str | Path, step: int, values: Mapping[str, Any]) -> None:
        """Add the line of a step to the file in ``folder``."""
        path = Path(folder) / self.name
        if not self._begun and path.is_file():
            forget_from(path, self.resumed_at + 1)
        self._begun = True
        with open(path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def forget_from(path: Path, step: int) -> None:
    """Drop what a killed run logged at ``step`` and after it: these steps are done again.

    A file that cannot be read is left as it is: no training ends for it.
    """
    try:
        kept = [line for line in read_metrics(path) if line["step"] < step]
    except EkdError as error:
        logger.warning("%s; new lines go behind it", error)
        with open(path, "a") as file:
            file.write("\n")  # not behind half a line
        return
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
