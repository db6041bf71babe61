"""s3prl's hub: our upstreams added to it, any upstream by its name, and its cache of downloads.

s3prl takes ``-u NAME`` as an attribute of the module ``s3prl.hub``, so setting attributes there is the whole
registration, for the registry's wheel and for a git checkout alike. The first use imports torch and s3prl, which takes
seconds; importing this file does not.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from s3prl_ekd.compat.modules import stand_in
from s3prl_ekd.compat.shims import apply_shims
from s3prl_ekd.errors import EkdError
from s3prl_ekd.spelling import did_you_mean

UPSTREAMS = {
    "ekd_student": ("ekd_student", "ekd_student_local", "ekd_student_url", "ekd_student_with_heads"),
    "ekd_teacher": ("ekd_teacher",),
    "ekd_ensemble": ("ekd_ensemble",),
}
"""Folder of ``upstream/`` -> the hub names that its ``hubconf.py`` defines."""
_DEFERRED = ("hf_hubert", "hf_wav2vec2")
"""s3prl's upstreams that import transformers' models: nine tenths of the time that the hub takes to be imported."""


def register() -> ModuleType:
    """Patch s3prl for the installed stack, guard its ``eval``, add :data:`UPSTREAMS` to its hub (repeatable)."""
    apply_shims()
    with warnings.catch_warnings(), _deferred_experts():
        warnings.simplefilter("ignore")  # of its experts' files: escapes that Python, and calls that torch deprecates
        from s3prl import hub
    from s3prl_ekd.compat.guarded_eval import guard_s3prl  # imports torch

    guard_s3prl()

    for folder, names in UPSTREAMS.items():
        hubconf = importlib.import_module(f"s3prl_ekd.upstream.{folder}.hubconf")
        for name in names:
            setattr(hub, name, getattr(hubconf, name))
    return hub


@contextmanager
def _deferred_experts() -> Iterator[None]:
    """Within the block, the hub's entries of :data:`_DEFERRED` get an expert that is imported when they are called."""
    names = [name for folder in _DEFERRED if (name := f"s3prl.upstream.{folder}.expert") not in sys.modules]
    for name in names:
        stand_in(name, "Stands in for the module until it is needed.").UpstreamExpert = _importing(name)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _importing(name: str) -> Callable[..., Any]:
    """What builds the ``UpstreamExpert`` of the module ``name``."""

    def build(*args: Any, **kwargs: Any) -> Any:
        from s3prl_ekd.compat.guarded_eval import guard_s3prl

        expert = importlib.import_module(name)
        guard_s3prl()
        return expert.UpstreamExpert(*args, **kwargs)

    return build


def find_upstream(name: str) -> Callable[..., Any] | None:
    """The hub's entry of this name, which builds the upstream's expert; None where there is none."""
    hub = register()
    return getattr(hub, name) if name in hub.options() else None


def check_upstream_name(name: str, flag: str) -> None:
    """See that the hub has an upstream of this name; it is imported only where its files leave that open.

    Raises:
        EkdError: it has not; with the names that are near.
    """
    files = _hubconf_texts()
    known = upstream_names(files)
    if name in known:
        return
    if not files or any(re.search(rf"\b{re.escape(name)}\b|\bglobals\(", text) for text in files):
        known = set(register().options())
    if name not in known:
        raise EkdError(f"{flag} {name}: s3prl's hub has no such upstream{did_you_mean(name, known, count=3)}")


def upstream_names(files: Sequence[str] | None = None) -> set[str]:
    """The hub's upstreams as far as its files define them by ``def``, and ours; nothing is imported.

    Where the hub was imported already, also what it has got since: a script may have put upstreams of its own there.

    Args:
        files: the text of the hub's files, where it was read already.
    """
    texts = _hubconf_texts() if files is None else files
    found = {name for text in texts for name in re.findall(r"^def ([a-zA-Z]\w*)\(", text, re.MULTILINE)}
    hub = sys.modules.get("s3prl.hub")
    return found.union(() if hub is None else hub.options(), *UPSTREAMS.values())


def _hubconf_texts() -> list[str]:
    """The files that s3prl's hub takes all names from."""
    found = importlib.util.find_spec("s3prl")
    texts = []
    for root in map(Path, found.submodule_search_locations or () if found else ()):
        listing = root / "hub.py"
        text = listing.read_text() if listing.is_file() else ""
        for folder in re.findall(r"^from s3prl\.upstream\.(\w+)\.hubconf import \*", text, re.MULTILINE):
            hubconf = root / "upstream" / folder / "hubconf.py"
            if hubconf.is_file():
                texts.append(hubconf.read_text())
    return texts


def downloaded(url: str) -> Path | None:
    """Where s3prl keeps what it downloaded from ``url`` (~/.cache/s3prl/download); None where it is not there yet."""
    from s3prl.util.download import _urls_to_filepaths

    path = Path(_urls_to_filepaths(url, download=False))
    return path if path.is_file() else None


def download(url: str, refresh: bool = False) -> Path:
    """The file that ``url`` names, from s3prl's cache, or downloaded into it; raises what the downloader raises.

    Args:
        refresh: download again although it is in the cache.
    """
    from s3prl.util.download import _urls_to_filepaths

    return Path(_urls_to_filepaths(url, refresh=refresh))
