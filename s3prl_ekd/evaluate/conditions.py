"""What scores must have in common to stand in one row or in one table, and how two records differ in it.

A row is one model (:data:`MODEL`) under one set of settings (:data:`SETTINGS`, and each task's overrides). Seeds and
learning rates are no conditions: they add up. Who refuses what differs is ``refusals.py``, who drops it under
``--overwrite`` ``kept_scores.py``, and who says it below a table ``differences.py``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from s3prl_ekd.evaluate.plan import CACHE_KEY, FOLD_KEY
from s3prl_ekd.evaluate.rates import LR_KEY

DIGEST = "checkpoint_sha256"
MODEL = ("upstream", "checkpoint", DIGEST, "model_config", "feature", "layer")
SETTINGS = ("preset", "data", "normalize", "cache_states")
_WITHOUT_EFFECT = ("num_workers", "log_step")  # last parts of override keys that no number depends on
NOT_SET = "not set"  # a key that no override names: the task's YAML decides
_NAMED_APART = (LR_KEY, FOLD_KEY, CACHE_KEY)  # in a record


def normalised(record: Mapping[str, Any]) -> bool:
    """Whether features were layer-normalised: s3prl does so in the weighted sum alone, not to one layer."""
    return bool(record.get("normalize")) and record.get("layer") is None


def other(record: Mapping[str, Any], than: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """The first of ``keys`` in which two records differ; None where they are alike.

    A digest that one of them lacks is no difference: a teacher's weights are not known where they are not downloaded.
    """
    unlike = (key for key in keys if record.get(key) != than.get(key))
    unknown = record.get("checkpoint") is not None and None in (record.get(DIGEST), than.get(DIGEST))
    return next((key for key in unlike if not (key == DIGEST and unknown)), None)


def overrides_of(part: Mapping[str, Any]) -> dict[str, str] | None:
    """The overrides :func:`with_effect` of one seed's part of a task.

    Older versions did not name them: then those of its command, and None where it has none either.
    """
    if "overrides" in part or not part.get("commands"):
        return part.get("overrides")
    words = shlex.split(part["commands"][0])
    items = words[words.index("-o") + 1].split(",,") if "-o" in words else []
    return with_effect(dict(item.split("=", 1) for item in items))


def with_effect(items: Mapping[str, str]) -> dict[str, str]:
    """The overrides that a run's numbers depend on, without the rate and the fold, which a record names apart."""
    return {
        key: value
        for key, value in items.items()
        if key not in _NAMED_APART and key.rsplit(".", 1)[-1] not in _WITHOUT_EFFECT
    }


def other_override(part: Mapping[str, Any], than: Mapping[str, str]) -> str | None:
    """How a part of a record was made under other overrides, as ``KEY BEFORE, now NOW``; None where it was not."""
    before = overrides_of(part)
    if before is None or before == than:
        return None
    key = next(key for key in {**than, **before} if before.get(key) != than.get(key))
    return f"{key} {before.get(key, NOT_SET)}, now {than.get(key, NOT_SET)}"
