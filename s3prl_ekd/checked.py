"""Configuration files of any kind: the base of their sections, their YAML, and errors that name file and key.

In a section unknown keys and wrong types are errors, and field docstrings are its manual.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from s3prl_ekd.errors import EkdError
from s3prl_ekd.spelling import did_you_mean


class Checked(BaseModel):
    """A strict pydantic model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


class _UniqueKeys(yaml.SafeLoader):
    """YAML without silent losses: a key that stands twice in a mapping is an error; YAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping, or an error that names the file and line."""
    try:
        values = yaml.load(path.read_text(), Loader=_UniqueKeys)  # a SafeLoader
    except FileNotFoundError as error:
        raise EkdError(f"{path}: no such configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise EkdError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise EkdError(f"{path}:{line} is not valid YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(values, dict):
        raise EkdError(f"{path}: expected a mapping of keys, found {type(values).__name__}")
    return values


def check_values(
    model: type[BaseModel],
    values: dict[str, Any],
    file: str,
    prefix: str = "",
    elsewhere: Mapping[str, str] | None = None,
) -> Any:
    """``values`` as a ``model``.

    Args:
        model: what is expected.
        values: what was read.
        file: where from, for messages.
        prefix: the key of ``values`` in that file.
        elsewhere: sections that are known, but belong into another file -> that file.

    Raises:
        EkdError: names the file, the first wrong key and what was expected.
    """
    elsewhere = elsewhere or {}
    for key in values:
        if key in elsewhere and key not in model.model_fields:
            raise EkdError(f"{file}: {key}: belongs into {elsewhere[key]}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise EkdError(f"{file}: {_explain(model, problems[0], prefix)}{more}") from error


def _explain(model: type[BaseModel], problem: Mapping[str, Any], prefix: str) -> str:
    location = problem["loc"]
    key = prefix
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{did_you_mean(str(location[-1]), _fields_at(model, location[:-1]))}"
    if problem["type"] == "missing":
        return f"{key}: required key is missing"
    if problem["type"] == "value_error":
        reason = str(problem["ctx"]["error"])
        return f"{key}: {reason}" if key else reason
    value = problem["input"]
    if problem["type"] == "too_short":
        return f"{key}: expected {problem['ctx']['min_length']} or more, found {value!r}"
    if as_number(value) is not None:
        return f"{key}: {value!r} is text to YAML; write {as_number(value)}"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{key}: {message}, found {value!r}"


def as_number(value: Any) -> str | None:
    """``2e-4``, which YAML reads as text, as it is to be written; None where it is something else."""
    if not isinstance(value, str) or re.fullmatch(r"[-+]?\d+(\.\d*)?e[-+]?\d+", value, re.IGNORECASE) is None:
        return None
    return f"{float(value):.1e}".replace("e-0", "e-").replace("e+0", "e+")


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names of the keys allowed where a location points."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        nested = [annotation, *getattr(annotation, "__args__", ())]
        current = next((item for item in nested if isinstance(item, type) and issubclass(item, BaseModel)), None)
        if current is None:
            return []
    return list(current.model_fields)
