"""How much of its audio an epoch of pretraining hears: of a clip longer than ``task.sequence_length``, one crop.

In words, for ``run_pretrain.py`` and ``prepare``. Where a crop begins is ``data/plan.py``'s; a target cache cuts whole
clips into windows instead (``data/windows.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from s3prl_ekd.audio import SAMPLE_RATE

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

LITTLE = 0.5
"""A set of which an epoch hears less than this share is worth a warning."""


def heard_in_words(samples: ArrayLike, longest: int, by: str = "an epoch") -> str:
    """``", of which an epoch hears 0.1 h: ..."``, to follow a number of hours; empty where no clip is cropped.

    Args:
        samples: length of each clip at 16 kHz.
        longest: crop in samples; 0 does not crop.
        by: what hears them.
    """
    total, heard = _total_and_heard(samples, longest)
    if heard == total:
        return ""
    return f", of which {by} hears {_hours(heard)} h: one crop of {longest / SAMPLE_RATE:.1f} s of each longer clip"


def little_heard(name: str, samples: ArrayLike, longest: int) -> str | None:
    """What to say of a set whose clips are so long that an epoch hears less than half of it; None of any other.

    Args:
        name: the set's.
        samples, longest: as of :func:`heard_in_words`.
    """
    total, heard = _total_and_heard(samples, longest)
    if heard >= LITTLE * total:
        return None
    seconds = longest / SAMPLE_RATE
    return (
        f"{name}: an epoch hears {100 * heard / total:.2g} % of it, one crop of {seconds:.1f} s "
        f"(task.sequence_length) of each clip; cut its files into clips of about {seconds:.3g} s"
    )


def _total_and_heard(samples: ArrayLike, longest: int) -> tuple[int, int]:
    lengths = np.asarray(samples, np.int64)
    heard = np.minimum(lengths, longest) if longest > 0 else lengths
    return int(lengths.sum()), int(heard.sum())


def _hours(samples: int) -> str:
    """Hours with one decimal, short ones with two digits that say something."""
    hours = samples / SAMPLE_RATE / 3600
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"
