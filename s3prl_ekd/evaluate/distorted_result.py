"""What a test on distorted audio leaves: ``RUN/distorted/NAME/result.json``, of which the tables are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError

FOLDER, RESULT = "distorted", "result.json"
CLEAN = "clean"
"""The name of no distortion, in tables."""


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result in a test's folder; None where it is not done.

    Raises:
        EkdError: the file is damaged.
    """
    file = folder / RESULT
    if not file.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(file.read_text())
        _ = result["digest"], result["rescored"]  # what its readers rely on
        return result
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EkdError(f"{file}: not readable ({error!r}); delete {folder} to test again") from error
