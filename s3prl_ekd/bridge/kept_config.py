"""What a run that goes on keeps of its configuration where the command's ``-c`` or ``-g`` say otherwise.

s3prl goes on with the configuration in the checkpoint and reads neither file. The same command with ``-a`` names them
all the same, so this is said only where they differ from what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.bridge.arguments import override_keys
from s3prl_ekd.errors import EkdError
from s3prl_ekd.spelling import listed
from s3prl_ekd.user_paths import expanded


def difference(
    option: str, read: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]], override: str | None = None
) -> list[str]:
    """``["-c FILE (differs in KEYS)"]`` where a file that is not read says otherwise than the checkpoint; else ``[]``.

    Args:
        option: ``-c FILE`` or ``-g FILE``.
        read: what it names, and the same part of the checkpoint; where it raises EkdError, the result is ``[option]``.
        override: ``-o``, which acts on what is kept: its keys are not named.
    """
    try:
        given, kept = read()
    except EkdError:
        return [option]
    said = {key.removeprefix("config.") for key in override_keys(override)}
    keys = [key for key in differing(given, kept) if not any(f"{key}.".startswith(f"{one}.") for one in said)]
    return [f"{option} (differs in {listed(keys)})"] if keys else []


def differing(given: Any, kept: Any, key: str = "") -> Iterator[str]:
    """The keys of ``given`` that ``kept`` has otherwise; what is in ``kept`` alone was filled in for it."""
    if isinstance(given, Mapping) and isinstance(kept, Mapping):
        for name, value in given.items():
            yield from differing(value, kept.get(name), f"{key}.{name}".lstrip("."))
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from differing(one, other, f"{key}[{index}]")
    elif given != kept and not _same_path(given, kept):
        yield key


def _same_path(given: Any, kept: Any) -> bool:
    """Whether a checkpoint's absolute path may be the file's relative one, completed."""
    if not (isinstance(given, str) and isinstance(kept, str) and given):
        return False
    return kept.endswith(f"/{given}") or expanded(given).resolve() == Path(kept)
