"""Reading a model configuration: a file that may start from another one, with its paths made absolute.

A file may start from another one (``base: config_model.yaml``) and change a few keys: mappings merge, lists and values
replace.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.checked import check_values, read_yaml
from s3prl_ekd.config.distortion import DistortionConfig
from s3prl_ekd.config.model_file import ModelConfig
from s3prl_ekd.config.runner_file import RunnerConfig
from s3prl_ekd.errors import EkdError
from s3prl_ekd.source_names import RANDOM, split_source
from s3prl_ekd.user_paths import expanded
from s3prl_ekd.variants import find_model_config, packaged, variant_file
from s3prl_ekd.writable import absolute_folder

_ELSEWHERE = dict.fromkeys(RunnerConfig.model_fields, "config_runner.yaml (-c)")


def load_model_config(
    source: str | Path | Mapping[str, Any], file: str = "config_model.yaml", changes: Mapping[str, Any] | None = None
) -> ModelConfig:
    """Read and check a model configuration.

    Args:
        source: a string means what it means to ``-g``, a YAML file or a variant's name (``"embedded"``); a Path is a
            file; a dictionary is what a checkpoint holds (then ``file`` names it in messages).
        changes: keys that replace those of the source, as a file on top of it would.

    Raises:
        EkdError: file and key, and what was expected.
    """
    if isinstance(source, Mapping):
        values = dict(source)
    else:
        path = find_model_config(source, "load_model_config:") if isinstance(source, str) else source
        values, file = _read_with_base(path), str(path)
    if changes:
        _check_start(file, Path(file).name, values, changes)
    config = check_values(ModelConfig, _merge(values, changes or {}), file, elsewhere=_ELSEWHERE)
    if isinstance(source, Mapping) and not changes:
        return config  # its paths were made absolute when the run began
    for teacher in config.ekd.teachers:
        teacher.source = _absolute_model(teacher.source)
    if config.ekd.initialise_from not in (None, *(teacher.name for teacher in config.ekd.teachers)):
        config.ekd.initialise_from = _absolute_model(config.ekd.initialise_from)
    if config.distortion is not None:
        _check_distorts(config.distortion, file)
        _make_sources_absolute(config.distortion)
    if config.ekd.cache_targets is not None:  # it need not exist yet
        config.ekd.cache_targets = absolute_folder(config.ekd.cache_targets, f"{file}: ekd.cache_targets")
    return config


def load_distortion(path: Path) -> DistortionConfig:
    """Read the section ``distortion`` of a YAML file: of a model configuration, or of a file that has nothing else.

    Raises:
        EkdError: file and key, and what was expected.
    """
    values = _read_with_base(path)
    if not isinstance(values.get("distortion"), dict):
        raise EkdError(f"{path}: distortion: the section is missing")
    if len(values) > 1:
        config = load_model_config(path).distortion
        assert config is not None
    else:
        config = check_values(DistortionConfig, values["distortion"], str(path), prefix="distortion")
        _check_distorts(config, str(path))
        _make_sources_absolute(config)
    return config


def _check_distorts(distortion: DistortionConfig, file: str) -> None:
    if distortion.additive is None and distortion.non_additive is None:
        raise EkdError(f"{file}: distortion: changes nothing; it has neither additive nor non_additive")


def _absolute(source: str) -> str:
    """A path from the current folder made absolute, so that a run resumes from any folder; names stay names."""
    prefix, name = split_source(source)
    path = expanded(name)
    return f"{prefix}{path.resolve()}" if name and path.exists() else source


def _absolute_model(source: str) -> str:
    """:func:`_absolute`, but the name of a folder here without a config.json stays a name: of the hub, it may be."""
    path = Path(source.removeprefix(RANDOM))
    bare = len(path.parts) == 1 and path.is_dir() and not (path / "config.json").is_file()
    return source if bare else _absolute(source)


def _make_sources_absolute(distortion: DistortionConfig) -> None:
    """Of noise and room responses; a noise source's weight has its name."""
    additive, other = distortion.additive, distortion.non_additive
    if additive is not None:
        additive.weights = {_absolute(s) if s in additive.noise else s: w for s, w in additive.weights.items()}
        additive.noise = [_absolute(source) for source in additive.noise]
    if other is not None:
        other.reverb = [_absolute(source) for source in other.reverb]


def _read_with_base(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise EkdError(f"{path}: base: expected the name of a YAML file, found {base!r}")
    # s3prl copies the file into the experiment folder, where a relative base is gone or is the copy itself:
    # the packaged file of that name is the fallback
    seen = (*seen, path.resolve())
    candidates = [path.parent / base, packaged(Path(base).name), variant_file(Path(base).stem)]
    found = next((file for file in candidates if file.is_file() and file.resolve() not in seen), None)
    if found is None:
        if any(file.is_file() for file in candidates):
            raise EkdError(f"{path}: base: {base!r} is this file, or one that starts from it")
        raise EkdError(f"{path}: base: no file {base!r} beside it or among the packaged configurations")
    before = _read_with_base(found, seen)
    _check_start(str(path), found.name, before, values)
    return _merge(before, values)


def _check_start(file: str, base: str, before: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse other teachers whose student would still start from one of ``base``'s: it would be downloaded for that."""
    old, new = before.get("ekd"), values.get("ekd")
    if not isinstance(old, dict) or not isinstance(new, dict) or "teachers" not in new or "initialise_from" in new:
        return
    start, names = old.get("initialise_from"), _names(new["teachers"])
    if start in _names(old.get("teachers")) and start not in names:
        raise EkdError(
            f"{file}: ekd.initialise_from: {start!r}, as set in {base}, is not among the teachers here "
            f"({', '.join(names)}); name one of them, or null (in -o: None) for random weights"
        )


def _names(teachers: Any) -> list[str]:
    found = teachers if isinstance(teachers, list) else []
    return [str(teacher.get("name")) for teacher in found if isinstance(teacher, dict)]


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
