"""The keys of a downstream config: those that s3prl must find are there, and none of a task of ours is misspelt.

s3prl takes any key. A missing one is a bare KeyError, for ``eval_step`` and others not before training; a misspelt one
is read by nobody, and the run goes on with the recipe's 200,000 steps. A value of another kind than s3prl expects
fails anywhere, at the first evaluation too. What files and folders must be there is in ``taskdata.py``.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from s3prl_ekd.bridge.config_section import wrong_value
from s3prl_ekd.checked import check_values, read_yaml, reads_as_text
from s3prl_ekd.errors import EkdError, one_line
from s3prl_ekd.shipped import shipped
from s3prl_ekd.spelling import did_you_mean
from s3prl_ekd.task_names import CONFIGS
from s3prl_ekd.writable import absolute_folder

log = logging.getLogger(__name__)


class Runner(BaseModel):
    """What training reads of ``runner``, without a default but for the last three (s3prl's downstream/runner.py)."""

    model_config = ConfigDict(strict=True)

    total_steps: int = Field(ge=1)
    gradient_clipping: float = Field(gt=0)
    gradient_accumulate_steps: int = Field(ge=1)
    log_step: int = Field(ge=1)
    eval_step: int = Field(ge=1)
    eval_dataloaders: list[str]
    save_step: int = Field(ge=1)
    max_keep: int = Field(ge=1)
    evaluate_ratio: float = Field(default=1.0, gt=0, le=1)
    fp16: bool = False
    train_dataloader: str = "train"


RUNNER = tuple(name for name, field in Runner.model_fields.items() if field.is_required())
# What is read beside the keys of our configs: by the runner, and by us (cached_upstream.py, distorted_test.py)
FURTHER = {
    "runner": ("fp16", "train_dataloader", "evaluate_ratio", "cache_states", "distortion"),
    "": ("scheduler", "specaug"),
}
_MIXTURES = ("datarc.num_speakers", "datarc.rate", "datarc.src", "datarc.tgt", "datarc.n_fft", "datarc.win_length",
             "datarc.window", "datarc.center", "loaderrc.train_batchsize", "loaderrc.eval_batchsize",
             "loaderrc.num_workers", "modelrc.model", "modelrc.rnn", "modelrc.rnn_layers", "modelrc.hidden_size",
             "modelrc.dropout", "modelrc.non_linear", "modelrc.bidirectional", "modelrc.loss_type",
             "modelrc.mask_type")  # fmt: skip
# What s3prl's experts read of ``downstream_expert`` without a default, beside the data (taskdata.py)
EXPERT = {
    "ctc": ("corpus.bucketing", "corpus.batch_size", "text.mode", "model.project_dim", "model.zero_infinity",
            "model.select", "metric", "metric_higher_better"),
    "voxceleb1": ("datarc.train_batch_size", "datarc.eval_batch_size", "datarc.max_timestep", "datarc.num_workers",
                  "modelrc.projector_dim", "modelrc.select"),
    "emotion": ("datarc.pre_load", "datarc.train_batch_size", "datarc.eval_batch_size", "datarc.num_workers",
                "datarc.valid_ratio", "modelrc.projector_dim", "modelrc.select"),
    "asr": ("datarc.batch_size", "datarc.eval_batch_size", "datarc.num_workers", "datarc.zero_infinity",
            "datarc.decoder_args", "modelrc.project_dim", "modelrc.select"),
    "speech_commands": ("datarc.batch_size", "datarc.num_workers", "modelrc.projector_dim", "modelrc.select"),
    "fluent_commands": ("datarc.train_batch_size", "datarc.eval_batch_size", "datarc.num_workers",
                        "modelrc.projector_dim", "modelrc.select"),
    "sv_voxceleb1": ("datarc.vad_config", "datarc.train_batch_size", "datarc.eval_batch_size", "datarc.num_workers",
                     "modelrc.input_dim", "modelrc.module", "modelrc.module_config", "modelrc.agg_module",
                     "modelrc.utter_module", "modelrc.ObjectiveLoss", "modelrc.LossConfig"),
    "diarization": ("datarc.chunk_size", "datarc.num_speakers", "loaderrc.train_batchsize", "loaderrc.eval_batchsize",
                    "loaderrc.num_workers", "scorerc.save_predictions", "modelrc.rnn_layers", "modelrc.hidden_size"),
    "quesst14_dtw": ("feature_normalization", "datarc.batch_size", "datarc.num_workers", "dtwrc.dist_method",
                     "dtwrc.minmax_norm", "dtwrc.step_pattern"),
    "enhancement_stft": _MIXTURES,
    "separation_stft": _MIXTURES,
}  # fmt: skip

NULLABLE = ("datarc.max_timestep",)
"""Of them, those that may be null: whole clips."""
POSITIVE = ("batch_size", "batchsize", "_dim", "max_timestep", "hidden_size", "rnn_layers", "n_fft", "win_length")
"""Ends of the keys whose numbers are 1 or more."""

# Type of a plain value in our configs -> what it may be replaced by, and how that is called
KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "text"),
}


def check_ours(config: dict[str, Any], task: str, source: str) -> None:
    """Check the config of a task of ours beside the one that ships: spelling, kinds, and that nothing is missing.

    Args:
        task: s3prl's name of it.
        source: the config's file, for messages.

    Raises:
        EkdError: the first key that is wrong, and why.
    """
    known = read_yaml(shipped(CONFIGS[task]))
    check_spelling(config, known, source)
    check_kinds(config, known, task, source)
    check_expert(config, task, source)


def check_runner(config: dict[str, Any], source: str, splits: Sequence[str] | None = None, begin: int = 0) -> None:
    """Check what training reads of ``runner``, and tell of steps that no checkpoint will hold.

    Args:
        source: the config's file, for messages.
        splits: those that the task can evaluate on; None: not known.
        begin: the step of what ``-i`` names, after which s3prl counts on.

    Raises:
        EkdError: a key is missing, its value is none that can be trained with, or no checkpoint would be written:
            s3prl writes none at the end.
    """
    for key in RUNNER:
        if config["runner"].get(key) is None:
            raise wrong_value(source, f"runner.{key}", "is missing")
    rules = check_values(Runner, config["runner"], source, prefix="runner")
    if all(rules.total_steps // every <= begin // every for every in (rules.save_step, rules.eval_step)):
        every = f"save_step ({rules.save_step}) and eval_step ({rules.eval_step}), so that no checkpoint would be left"
        if begin:
            raise EkdError(
                f"{source}: runner.total_steps: {rules.total_steps}: -i counts on from its step {begin}, and the run "
                f"ends before the next {every}; give more steps"
            )
        raise EkdError(f"{source}: runner.total_steps: {rules.total_steps} are fewer than {every}; give smaller ones")
    if all(rules.total_steps % every for every in (rules.save_step, rules.eval_step)):
        kept = max(rules.total_steps // every * every for every in (rules.save_step, rules.eval_step))
        log.info(
            "%s: runner.total_steps: %d is no multiple of save_step (%d) or eval_step (%d), and s3prl saves nothing at "
            "the end: no checkpoint will hold the steps after %d",
            source, rules.total_steps, rules.save_step, rules.eval_step, kept,
        )  # fmt: skip
    if splits is None:
        return
    best = config["downstream_expert"].get("save_best_on", [])  # of PR; s3prl takes a name or several
    best = [best] if isinstance(best, str) else best
    if not isinstance(best, (list, tuple)) or not all(isinstance(split, str) for split in best):
        raise EkdError(f"{source}: downstream_expert.save_best_on: {best!r}: expected a list of splits")
    named = {
        "runner.train_dataloader": [rules.train_dataloader],
        "runner.eval_dataloaders": rules.eval_dataloaders,
        "downstream_expert.save_best_on": best,
    }
    for key, values in named.items():
        for split in values:
            if split not in splits:
                raise EkdError(f"{source}: {key}: no split {split!r}; there are {', '.join(splits)}")


def check_specaug(config: dict[str, Any], source: str) -> None:
    """Make masks of ``specaug`` once, as the runner does when model and data are loaded, and put them on a clip.

    Raises:
        EkdError: s3prl can make none of these keys.
    """
    values = config.get("specaug")
    if not values:
        return
    make_masks: Any = importlib.import_module("s3prl.downstream.specaug").SpecAug
    try:
        make_masks(**values)([torch.zeros(200, 32)])
    except (TypeError, ValueError, AssertionError, LookupError, RuntimeError) as error:
        raise EkdError(f"{source}: specaug: no masks can be made of these keys ({one_line(error)})") from error


def check_expert(config: dict[str, Any], task: str, source: str) -> None:
    """What s3prl's expert of the task takes for granted is there: of the batch sizes, some not before an evaluation.

    Args:
        config: whose sections are sections (:func:`check_kinds`).
        task: s3prl's name of one of ours.

    Raises:
        EkdError: a key is missing.
    """
    expert = config["downstream_expert"]
    needed = EXPERT[task]
    if task == "asr" and expert["modelrc"].get("select"):
        needed += (f"modelrc.{expert['modelrc']['select']}",)  # the section of the model that was chosen
    for path in needed:
        section, _, key = path.rpartition(".")
        values = expert[section] if section else expert
        if key not in values or values[key] is None and path not in NULLABLE:
            raise wrong_value(source, f"downstream_expert.{path}", "is missing")


def check_kinds(config: dict[str, Any], known: dict[str, Any], task: str, source: str) -> None:
    """Every value is of the kind that ``known``, our config of the task, has there; ``select`` is a model of s3prl's.

    s3prl evaluates ``select`` as an expression, whatever it says, from a checkpoint too, and PR's ``metric`` at the
    first log step.

    Raises:
        EkdError: the key, what was expected and what was found.
    """
    for key, value, usual in _pairs(config, known, ""):
        kind = _unlike(value, usual)
        if kind is not None:
            wrong = reads_as_text(value) or f"expected {kind}, found {value!r}"
            raise EkdError(f"{source}: {key}: {wrong}")
        if key == "downstream_expert.metric":
            odd = [name for name in value if not inspect.isroutine(_of_expert(task, name))]
            if odd or not value:
                raise EkdError(
                    f"{source}: {key}: {(odd or [value])[0]!r}: expected names of s3prl's metrics, such as per"
                )
        if key.endswith("model.select") or key.endswith("modelrc.select"):
            found = _of_expert(task, value)
            if not (isinstance(found, type) and issubclass(found, nn.Module)):
                raise EkdError(f"{source}: {key}: {value!r} is no model of s3prl's for this task")
        if key.endswith("valid_ratio") and not 0 < value < 1:
            raise EkdError(f"{source}: {key}: expected more than 0 and less than 1, found {value!r}")
        least = 0 if key.endswith("num_workers") else 1 if key.endswith(POSITIVE) else None
        if least is not None and value < least:
            raise EkdError(f"{source}: {key}: expected {least} or more, found {value!r}")


def _of_expert(task: str, name: str) -> Any:
    """What the module of s3prl's expert calls so, in which it evaluates its configuration; None where nothing is."""
    return getattr(importlib.import_module(f"s3prl.downstream.{task}.expert"), name, None)


def _pairs(config: dict[str, Any], known: dict[str, Any], path: str) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, value and our config's value, where both have one, and where a section of the task's is missing.

    The decoder's weights are of any kind; of the runner's keys, :func:`check_runner` knows more.
    """
    for key, usual in known.items():
        value = config.get(key)
        if isinstance(usual, dict) and isinstance(value, dict):
            if key != "decoder_args":
                yield from _pairs(value, usual, f"{path}{key}.")
        elif path != "runner." and (value is not None or isinstance(usual, dict) and path == "downstream_expert."):
            yield f"{path}{key}", value, usual


def _unlike(value: Any, usual: Any) -> str | None:
    """The kind of ``usual`` in words where ``value`` is of another one; null stands for any."""
    if usual is None:
        return None
    if isinstance(usual, dict):
        return "a section"
    if isinstance(usual, list):
        return None if isinstance(value, list) and all(_unlike(one, usual[0]) is None for one in value) else "a list"
    accepted, kind = KINDS[type(usual)]
    return None if type(value) in accepted else kind


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
    config["runner"]["cache_states"] = absolute_folder(folder, key)


def check_spelling(config: dict[str, Any], known: dict[str, Any], source: str) -> None:
    """Compare ``config`` with our config of the same task, ``known``.

    Keys of one's own are s3prl's custom and stay allowed; only one that looks like a known key is taken for a slip.

    Raises:
        EkdError: a key that is a known one misspelt.
    """
    for path, key, siblings in _unknown(config, known, ""):
        hint = did_you_mean(key, siblings, cutoff=0.8)
        if hint:
            raise EkdError(f"{source}: {path}{key}: unknown key{hint}")


def _unknown(config: dict[str, Any], known: dict[str, Any], path: str) -> Iterator[tuple[str, str, list[str]]]:
    """Dotted path, unknown key, and the known keys of its section; sections that only ``config`` has are left out."""
    names = [*known, *FURTHER.get(path.rstrip("."), ())]
    for key, value in config.items():
        if key in names:
            if isinstance(value, dict) and isinstance(known.get(key), dict):
                yield from _unknown(value, known[key], f"{path}{key}.")
        elif not (isinstance(value, list) and str(key).startswith(("train", "dev", "test"))):  # a split: test-clean2
            yield path, str(key), names
