"""The keys of a downstream config: those that s3prl's runner reads are there, and none of a task of ours is misspelt.

s3prl takes any key. A missing one is a bare KeyError, for ``eval_step`` and others not before training; a misspelt one
is read by nobody, and the run goes on with the recipe's 200,000 steps. What the values must be is in ``taskdata.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from s3prl_ekd.bridge.modules import ours
from s3prl_ekd.errors import EkdError

# What training reads of `runner` without a default (s3prl's downstream/runner.py)
RUNNER = (
    "total_steps",
    "gradient_clipping",
    "gradient_accumulate_steps",
    "log_step",
    "eval_step",
    "eval_dataloaders",
    "save_step",
    "max_keep",
)
# What is read beside the keys of our four configs: by the runner, and cache_states by us (cached_upstream.py)
FURTHER = {"runner": ("fp16", "train_dataloader", "evaluate_ratio", "cache_states"), "": ("scheduler", "specaug")}


def check_runner(config: dict[str, Any], source: str) -> None:
    """Raise EkdError where training would miss a key of ``runner``; ``source`` is the config's file, for messages."""
    for key in RUNNER:
        if config["runner"].get(key) is None:
            raise EkdError(f"{source}: runner.{key}: is missing; give it with -o config.runner.{key}=...")


def check_cache(config: dict[str, Any], trainable: bool, source: str) -> None:
    """Make ``runner.cache_states`` an absolute path, so that a checkpoint that holds it can be tested from anywhere.

    Args:
        trainable: ``-f``, the upstream trains too.

    Raises:
        EkdError: no path, or an upstream that does not stay as it is.
    """
    folder = config["runner"].get("cache_states")
    if folder is None:
        return
    key = f"{source}: runner.cache_states"
    if not isinstance(folder, str) or not folder:
        raise EkdError(f"{key}: {folder!r}: expected a folder for the hidden states of a frozen upstream, or null")
    if trainable:
        raise EkdError(f"{key}: an upstream that trains (-f) has other states at every step; use null")
    config["runner"]["cache_states"] = str(Path(folder).expanduser().resolve())


def check_spelling(config: dict[str, Any], shipped: str, source: str) -> None:
    """Compare ``config`` with our config of the same task, the file ``shipped`` of downstream_configs/.

    Keys of one's own are s3prl's custom and stay allowed; only one that looks like a known key is taken for a slip.

    Raises:
        EkdError: a key that is a known one misspelt.
    """
    known = yaml.safe_load((ours("downstream_configs") / shipped).read_text())
    for path, key, siblings in _unknown(config, known, ""):
        close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.8)
        if close:
            raise EkdError(f"{source}: {path}{key}: unknown key; did you mean {close[0]!r}?")


def _unknown(config: dict[str, Any], known: dict[str, Any], path: str) -> Iterator[tuple[str, str, list[str]]]:
    """Dotted path, unknown key, and the known keys of its section; sections that only ``config`` has are left out."""
    names = [*known, *FURTHER.get(path.rstrip("."), ())]
    for key, value in config.items():
        if key in names:
            if isinstance(value, dict) and isinstance(known.get(key), dict):
                yield from _unknown(value, known[key], f"{path}{key}.")
        elif not (isinstance(value, list) and str(key).startswith(("train", "dev", "test"))):  # a split: test-clean2
            yield path, str(key), names
