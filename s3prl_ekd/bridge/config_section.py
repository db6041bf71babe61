"""A part of a downstream config that says by its own key what is wrong with a value, and finds its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.shipped import shipped
from s3prl_ekd.user_paths import from_anywhere

SHIPPED = ("phoneme.txt", "char.dict")  # files of s3prl_ekd/resources that a config names by their bare name


def wrong_value(source: str, key: str, what: str) -> EkdError:
    """The error for a key of a downstream config that comes from ``source``, with how to give it another value."""
    return EkdError(f"{source}: {key}: {what}; give it with -o config.{key}=...")


class Section:
    """A part of the config that knows its own key path and says what is wrong with a value.

    :meth:`folder`, :meth:`file` and :meth:`files` put absolute paths into the config in place of what the key names,
    for s3prl to read next. All methods but :meth:`wrong` raise EkdError where there is no such thing.
    """

    def __init__(self, source: str, values: dict[str, Any], path: str, s3prl: Path) -> None:
        self.source, self.values, self.path, self.s3prl = source, values, path, s3prl

    def section(self, key: str) -> Section:
        """The section below this one."""
        values = self.values.get(key)
        if not isinstance(values, dict):
            raise EkdError(f"{self.source}: {self.path}.{key}: the section is missing")
        return Section(self.source, values, f"{self.path}.{key}", self.s3prl)

    def wrong(self, key: str, what: str) -> EkdError:
        """The error for a key of this section."""
        return wrong_value(self.source, f"{self.path}.{key}", what)

    def get(self, key: str) -> Any:
        """A value that is neither missing nor null."""
        if self.values.get(key) is None:
            raise self.wrong(key, "is missing")
        return self.values[key]

    def folder(self, key: str) -> Path:
        """The folder that the key names; the config has its absolute path from here on."""
        self.values[key] = self._there(key, self.get(key), Path.is_dir, "folder")
        return Path(self.values[key])

    def file(self, key: str) -> Path:
        """The file that the key names; the config has its absolute path from here on."""
        self.values[key] = self._there(key, self.get(key), Path.is_file, "file")
        return Path(self.values[key])

    def files(self, key: str) -> None:
        """Put the absolute paths of a list of files into the config."""
        values = self.get(key)
        if not isinstance(values, list):
            raise self.wrong(key, f"{values!r}: expected a list of files")
        self.values[key] = [self._there(key, value, Path.is_file, "file") for value in values]

    def split_names(self, key: str) -> list[str]:
        """A list of splits."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, f"{value!r}: expected a list of split names")
        return value

    def _there(self, key: str, value: Any, is_one: Callable[[Path], bool], kind: str) -> str:
        """Absolute: the path as it is, as s3prl's own folder has it, or the file that we ship under this name."""
        name = str(value)
        path = from_anywhere(name)
        places = [path, from_anywhere(str(self.s3prl / name))]
        if name != path and Path(name).name in SHIPPED:
            places.append(str(shipped(f"resources/{Path(name).name}")))
        found = next((place for place in places if is_one(Path(place))), None)
        if found is None:
            raise self.wrong(key, f"{path}: no such {kind}")
        return found
