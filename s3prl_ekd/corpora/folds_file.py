"""``er/folds.json``: the folds of ER that ``prepare`` wrote, a JSON list of names (``["fold1", "fold2"]``).

Read here for everybody: the evaluation's plan and ``s3prl-ekd doctor``. ``layout_emotion.py`` writes it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from s3prl_ekd.errors import EkdError
from s3prl_ekd.spelling import repeated


def read_folds(file: Path) -> list[str]:
    """The names of the folds, in the file's order.

    Raises:
        EkdError: unreadable, or not a list of one or more different names. A name becomes part of a path and of a
            native command's ``-o``, where s3prl would run what follows a ``,,`` as code.
    """
    try:
        folds = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EkdError(f"{file}: cannot be read as a list of folds ({error})") from error
    if not isinstance(folds, list) or not folds or not all(isinstance(fold, str) for fold in folds):
        raise EkdError(f'{file}: expected a list of folds, as ["fold1", "fold2"]; s3prl-ekd prepare writes it')
    odd = next((fold for fold in folds if re.fullmatch(r"\w+", fold, re.ASCII) is None), None)
    if odd is not None:
        raise EkdError(f"{file}: {odd!r}: expected a fold's name of letters and digits, as fold1")
    doubled = repeated(folds)
    if doubled is not None:
        raise EkdError(f"{file}: {doubled} is listed twice")
    return folds
