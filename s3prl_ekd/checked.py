"""Configuration files of any kind: the base of their sections, their YAML, and errors that name file and key.

In a section unknown keys and wrong types are errors, and field docstrings are its manual.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from s3prl_ekd.errors import EkdError, naming
from s3prl_ekd.spelling import did_you_mean, listed

_T = TypeVar("_T")


class Checked(BaseModel):
    """A strict pydantic model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


class _UniqueKeys(yaml.SafeLoader):
    """YAML without silent losses: a key that stands twice in a mapping is an error; YAML takes the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping as it is written: later on, what ``<<`` merges stands beside what replaces it."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping, or an error that names the file and line."""
    values = load_yaml(path)
    if not isinstance(values, dict):
        raise EkdError(f"{path}: expected a mapping of keys, found {type(values).__name__}")
    return values


def load_yaml(path: Path) -> Any:
    """What a YAML file holds, or an error that names the file and line."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)  # a SafeLoader
    except FileNotFoundError as error:
        raise EkdError(f"{path}: no such configuration file") from error
    except (OSError, ValueError) as error:  # no UTF-8, or no date for all that it looks like one
        raise EkdError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise EkdError(f"{path}:{line} is not valid YAML ({getattr(error, 'problem', error)})") from error


def read_each(path: Path, read: Callable[[Any], _T], least: int, expected: str) -> list[_T]:
    """What ``read`` makes of each entry of a YAML file that is a list.

    Args:
        path: the file.
        read: its errors get the file and the entry's number in front.
        least: entries.
        expected: what the list should be, for the message.

    Raises:
        EkdError: no such list; or of ``read``.
    """
    entries = load_yaml(path)
    if not isinstance(entries, list) or len(entries) < least:
        raise EkdError(f"{path}: expected {expected}")
    found = []
    for number, entry in enumerate(entries):
        with naming(f"{path}: [{number}]"):
            found.append(read(entry))
    return found


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
        EkdError: names the file, the first wrong key and what was expected; the keys of further mistakes.
    """
    elsewhere = elsewhere or {}
    for key in values:
        if key in elsewhere and key not in model.model_fields:
            raise EkdError(f"{file}: {key}: belongs in {elsewhere[key]}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = _by_key(error, values, prefix)
        (key, first), *others = problems.items()
        raise EkdError(f"{file}: {_explain(model, first, key)}{_also(others)}") from error


def _by_key(error: ValidationError, values: Mapping[str, Any], prefix: str) -> dict[str, list[ErrorDetails]]:
    """The problems of each wrong key, in order. Several of one key are what it may be instead (a union).

    Where one lies below another's key, a list was given where a word or a list may stand: the one inside is meant.
    """
    found: dict[str, list[ErrorDetails]] = {}
    for problem in error.errors(include_url=False):
        found.setdefault(_key(problem["loc"], values, prefix), []).append(problem)
    return {
        key: problems
        for key, problems in found.items()
        if not any(other.startswith((f"{key}.", f"{key}[")) for other in found)
    }


def _key(location: tuple[int | str, ...], values: Any, prefix: str) -> str:
    """``ekd.teachers[0].source``; parts of a location that name an alternative of a union, and no key, are left out."""
    key = prefix
    for part in location:
        if isinstance(part, int):
            key += f"[{part}]"
            values = values[part] if isinstance(values, list) and part < len(values) else None
        elif isinstance(values, Mapping) and (part in values or "[" not in part):
            key += f".{part}" if key else part
            values = values.get(part)
    return key


def _also(others: Sequence[tuple[str, Sequence[ErrorDetails]]]) -> str:
    """Ends a message with the keys of further mistakes; a check of a whole section names its key itself."""
    names = []
    for key, (problem, *_) in others:
        inner = re.match(r"(\w+): ", str(problem["ctx"]["error"])) if problem["type"] == "value_error" else None
        names.append(f"{key}.{inner[1]}" if inner else key)
    return f" (also wrong: {listed(names, 4)})" if names else ""


def _explain(model: type[BaseModel], problems: Sequence[ErrorDetails], key: str) -> str:
    """What is wrong with a key, by its problems as :func:`_by_key` finds them."""
    problem = problems[0]
    location = problem["loc"]
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
    if as_text := reads_as_text(value):
        return f"{key}: {as_text}"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    others = "".join(f", or {other['msg'].removeprefix('Input should be ')}" for other in problems[1:])
    return f"{key}: {message}{others}, found {value!r}"


def reads_as_text(value: Any) -> str:
    """What is wrong with ``2e-4``, a number that YAML reads as text, and how it is written; empty for anything else."""
    if not isinstance(value, str) or re.fullmatch(r"[-+]?\d+(\.\d*)?e[-+]?\d+", value, re.IGNORECASE) is None:
        return ""
    number = f"{float(value):.1e}".replace("e-0", "e-").replace("e+0", "e+")
    return f"{value!r} is text to YAML; write {number}"


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
