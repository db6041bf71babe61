"""Which configuration files ``run_pretrain.py`` reads, and what must hold in them before anything is built.

s3prl meets most of these mistakes with a traceback or a bare assertion, some of them after the teachers were loaded.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from s3prl_ekd.checked import read_yaml
from s3prl_ekd.compat.modules import s3prl_folder
from s3prl_ekd.config import ModelConfig, check_runner_config, load_model_config
from s3prl_ekd.config_files import find_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.metrics_file import VALIDATION, lacks_step
from s3prl_ekd.shipped import shipped
from s3prl_ekd.source_names import RANDOM, is_pinned_form, split_source
from s3prl_ekd.user_paths import from_anywhere
from s3prl_ekd.variants import find_model_config

log = logging.getLogger(__name__)

BATCH_KEYS = ("train_batch_size", "batch_seconds", "max_timestep", "sets", "seed")
"""Keys of ``pretrain_expert.datarc`` that say which utterances make a batch."""
UNCOUNTED_KEYS = ("num_workers", "libri_root", "valid_sets", "valid_minutes")
"""Those that leave the number of batches of an epoch as it is."""
CACHE = "ekd.cache_targets"
_SOUNDS = (("additive", "noise"), ("non_additive", "reverb"))  # lists of paths in the section distortion


def find(flag: Literal["-c", "-g"], value: str | None, task: str = "ekd") -> Path:
    """The absolute path of what ``flag`` of ``run_pretrain.py -u TASK`` means; without a value, of the task's own file.

    Raises:
        EkdError: there is no such file.
    """
    mine, s3prl = shipped("pretrain"), s3prl_folder()
    if value is None:
        name = {"-c": "config_runner.yaml", "-g": "config_model.yaml"}[flag]
        for folder in (mine / task, s3prl / "pretrain" / task):
            if (folder / name).is_file():
                return folder / name
        raise EkdError(f"{flag} FILE is missing: the installed s3prl ships no pretrain/{task}/{name}")
    if flag == "-g" and (mine / task).is_dir():
        return find_model_config(value)
    return find_config(flag, value, (s3prl, s3prl / "pretrain" / task, mine.parent, mine, mine / task))


def write_as_run(config: Mapping[str, Any], file: Path) -> None:
    """Write a configuration with its ``base`` and ``-o`` merged in, so that the file alone makes the same run again."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=120)
    file.write_text(f"# as run: base and -o are merged in\n{text}", encoding="utf-8")


def write_model_as_run(source: Path, file: Path, changes: Mapping[str, Any]) -> None:
    """:func:`write_as_run` of a config_model.yaml: what it, its base and ``changes`` set, paths made absolute.

    Raises:
        EkdError: as :func:`s3prl_ekd.config.load_model_config`.
    """
    config = load_model_config(source, changes=changes)
    write_as_run(config.model_dump(mode="json", exclude_unset=True), file)


def check_ours(config: dict[str, Any], source: str, seed: int | None = None) -> None:
    """Check the runner configuration of one of this package's tasks; fill in defaults, make paths absolute in place.

    The runner reads the dictionary and has no defaults of its own. The data behind the paths are the expert's to check.

    Args:
        config: as s3prl has read it, ``-o`` merged in.
        source: its file, for messages.
        seed: what the command line gives as ``--seed``; the batches' where the configuration names none.

    Raises:
        EkdError: a key is unknown or missing, or its value is not possible.
    """
    checked = check_runner_config(config, source)
    if seed is not None:
        kept = config["pretrain_expert"]["datarc"].setdefault("seed", seed)
        if kept != seed:
            log.info("%s: --seed %d: batches and crops keep pretrain_expert.datarc.seed: %d", source, seed, kept)
    for section, values in (
        (config["runner"], checked.runner),
        (config["pretrain_expert"]["datarc"], checked.pretrain_expert.datarc),
    ):
        for key, value in values.model_dump().items():
            section.setdefault(key, value)
    data = config["pretrain_expert"]["datarc"]
    data |= {key: from_anywhere(data[key]) for key in ("libri_root", "file_path")}


def check_theirs(config: Any, source: str) -> None:
    """What the runner and the datasets of s3prl's own tasks take for granted.

    Raises:
        EkdError: it is not there.
    """
    for section in ("runner", "optimizer", "pretrain_expert"):
        if not isinstance(config, dict) or not isinstance(config.get(section), dict):
            raise EkdError(f"{source}: the section {section!r} is missing")
    rules = config["runner"]
    for key in ("n_epochs", "total_steps", "log_step", "save_step", "max_keep", "gradient_accumulate_steps"):
        if not isinstance(rules.get(key), int):
            raise EkdError(f"{source}: runner.{key}: expected a whole number, found {rules.get(key)!r}")
    for key in ("log_step", "save_step"):
        if rules["n_epochs"] <= 0 and rules["total_steps"] <= rules[key]:
            raise EkdError(f"{source}: runner.{key}: {rules[key]} must be below total_steps {rules['total_steps']}")
    # the files of s3prl's bucket datasets: file_path/SET.csv and the audio folder libri_root
    datarc = config["pretrain_expert"].get("datarc") or {}
    root = datarc.get("libri_root")
    if root is not None and not Path(root).is_dir():
        raise EkdError(f"{source}: pretrain_expert.datarc.libri_root: {root}: no such folder")
    for name in datarc.get("sets") or []:
        table = Path(datarc.get("file_path", ""), f"{name}.csv")
        if not table.is_file():
            raise EkdError(f"{source}: pretrain_expert.datarc: {table}: no such table of lengths")


def length(rules: Mapping[str, Any], batches: int) -> tuple[int, int]:
    """Steps and epochs of a run, as the runner counts them when it begins.

    Args:
        rules: the section ``runner``.
        batches: of an epoch.
    """
    epochs, together = rules["n_epochs"], rules["gradient_accumulate_steps"]
    if epochs > 0:
        return int(epochs * batches / together), epochs
    return rules["total_steps"], int(rules["total_steps"] * together / batches)


def check_epochs(config: Mapping[str, Any], batches: int, source: str) -> None:
    """Whether ``n_epochs`` are enough steps: the runner counts them when it begins, and asserts that they are.

    A schedule is made for ``total_steps`` all the same: an epoch of 500 steps would end in the warm-up for 200,000.

    Args:
        config: the runner's file.
        batches: of an epoch.
        source: the configuration's file, for the message.

    Raises:
        EkdError: they are not more than ``log_step`` and ``save_step``.
    """
    rules = config["runner"]
    if rules["n_epochs"] <= 0:
        return
    steps, _ = length(rules, batches)
    epochs = f"the {steps} steps of n_epochs: {rules['n_epochs']}"
    for key in ("log_step", "save_step"):
        if steps <= rules[key]:
            raise EkdError(f"{source}: runner.{key}: {rules[key]} must be below {epochs}")
    scheduled = config["optimizer"]["name"].endswith("_with_schedule") or config.get("scheduler")
    if scheduled and steps != rules["total_steps"]:
        log.warning(
            "%s: the learning-rate schedule is for runner.total_steps: %d, not for %s; to match them, add "
            "-o config.runner.total_steps=%d", source, rules["total_steps"], epochs, steps,
        )  # fmt: skip


def follow_files(kept: Mapping[str, Any], given: ModelConfig) -> dict[str, Any]:
    """The model configuration of a checkpoint, files and folders that have moved at the places that ``given`` names.

    Teachers go by their names, noise and rooms by their places in the list. Whether a teacher's weights and a cache's
    targets are the same, the expert sees.
    """
    places = {teacher.name: teacher.source for teacher in given.ekd.teachers}
    moved = copy.deepcopy(dict(kept))
    for teacher in moved["ekd"]["teachers"]:
        if not _is_gone(teacher["source"]):
            continue
        place = places.get(teacher["name"], "")
        (before, _), (now, path) = split_source(teacher["source"]), split_source(place)
        if before == now and path.startswith("/") and not _is_gone(place):  # the same upstream of s3prl's
            teacher["source"] = place
    cache = moved["ekd"].get("cache_targets")
    if cache is not None and given.ekd.cache_targets is not None and _is_gone(cache):
        moved["ekd"]["cache_targets"] = given.ekd.cache_targets
    others = given.model_dump(mode="json")
    for part, key in _SOUNDS:
        sounds, named = _of_distortion(moved, part), _of_distortion(others, part)
        if sounds.get(key) and len(sounds[key]) == len(named.get(key, [])):
            found = {old: new for old, new in zip(sounds[key], named[key], strict=True) if _is_gone(old)}
            sounds[key] = [found.get(old, old) for old in sounds[key]]
            if sounds.get("weights"):  # of a noise source, by its path
                sounds["weights"] = {found.get(name, name): weight for name, weight in sounds["weights"].items()}
    return moved


def keep_commits(given: ModelConfig, kept: Mapping[str, Any]) -> None:
    """Give the models of the Hugging Face Hub that ``given`` names without a revision the commits that a run keeps.

    A student's folder that the run began with gets the checkpoint that was its newest then.
    """
    names = [teacher["source"] for teacher in kept["ekd"]["teachers"]] + [kept["ekd"]["initialise_from"] or ""]

    def kept_form(source: str) -> str:
        return next((name for name in names if is_pinned_form(name, source)), source)

    for teacher in given.ekd.teachers:
        teacher.source = kept_form(teacher.source)
    start = given.ekd.initialise_from
    if start is not None:
        began = Path(names[-1])
        newest_then = began.match("states-*.ckpt") and began.parent == Path(start).resolve()
        given.ekd.initialise_from = names[-1] if newest_then else kept_form(start)


def seed_distortion(config: ModelConfig, seed: int | None) -> None:
    """Give the distortion the seed of ``--seed``, where the command has one and the file names none."""
    distortion = config.distortion
    if distortion is None or seed is None:
        return
    if "seed" not in distortion.model_fields_set:
        distortion.seed = seed
    elif distortion.seed != seed:
        log.info("[distortion] --seed %d: distortions keep distortion.seed: %d", seed, distortion.seed)


def keep_seed(given: ModelConfig, kept: Mapping[str, Any]) -> None:
    """Give the distortion of ``given`` the seed that a run keeps, where its file names none."""
    if given.distortion is not None and "seed" not in given.distortion.model_fields_set:
        given.distortion.seed = (kept.get("distortion") or {}).get("seed", given.distortion.seed)


def write_found(file: Path, config: ModelConfig) -> None:
    """Set, in the config_model.yaml of the experiment's folder, what only the run has found out.

    Where its teachers, noise and cache lie: a file may have moved, and a model of the Hugging Face Hub has got the
    commit that it is known by from now on. And the distortion's seed, which ``--seed`` may have given.
    """
    if not file.is_file():
        return
    kept = read_yaml(file)
    found = follow_files(kept, config)
    sources = {teacher.name: teacher.source for teacher in config.ekd.teachers}
    for teacher in found["ekd"]["teachers"]:
        teacher["source"] = sources[teacher["name"]]
    if "initialise_from" in found["ekd"]:
        found["ekd"]["initialise_from"] = config.ekd.initialise_from
    if config.distortion is not None:
        seed, default = config.distortion.seed, type(config.distortion)().seed
        if found["distortion"].get("seed", default) != seed:
            found["distortion"]["seed"] = seed
    if found != kept:
        write_as_run(found, file)


def gone_files(kept: Mapping[str, Any]) -> dict[str, str]:
    """Of the model configuration of a checkpoint, key and path of the files and folders that are not there."""
    files = {f"ekd.teachers[{index}].source": one["source"] for index, one in enumerate(kept["ekd"]["teachers"])}
    for part, key in _SOUNDS:
        paths = _of_distortion(kept, part).get(key, [])
        files |= {f"distortion.{part}.{key}[{index}]": path for index, path in enumerate(paths)}
    files[CACHE] = kept["ekd"].get("cache_targets") or ""
    return {key: path for key, path in files.items() if _is_gone(path)}


def _of_distortion(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    return (config.get("distortion") or {}).get(part) or {}


def _is_gone(source: str) -> bool:
    prefix, path = split_source(source)  # random weights are of the path, not of what lies there
    return prefix != RANDOM and path.startswith("/") and not Path(path).exists()  # nothing else begins with /


def same_epochs(before: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether two configurations have as many steps in as many epochs, the files of the data being the same."""
    (old, old_data), (new, new_data) = ((one["runner"], one["pretrain_expert"]["datarc"]) for one in (before, config))
    uncounted = {*UNCOUNTED_KEYS, "train_batch_size" if new_data.get("batch_seconds") else "seed"}
    counted = (old_data.keys() | new_data.keys()) - uncounted
    same_batches = all(old_data.get(key) == new_data.get(key) for key in counted)
    return same_batches and all(old[key] == new[key] for key in ("n_epochs", "gradient_accumulate_steps"))


def owes_validation(config: Mapping[str, Any], folder: Path, step: int) -> bool:
    """Whether the checkpoint of ``step`` in ``folder`` lacks its validation loss: a stop came while it was measured."""
    return bool(config["pretrain_expert"]["datarc"]["valid_sets"]) and lacks_step(folder / VALIDATION, step)


def warn_of_other_batches(before: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Say where what ``-o`` changes of the data of a run that goes on makes other batches.

    Args:
        before: the configuration of the checkpoint.
        config: that of the run.
    """
    old, new = (one["pretrain_expert"]["datarc"] for one in (before, config))
    for key in BATCH_KEYS:
        if key in old and old[key] != new[key]:
            log.warning(
                "datarc.%s: was %s, now %s: this changes the batches; in the current epoch some utterances come twice, "
                "others not at all", key, old[key], new[key],
            )  # fmt: skip
