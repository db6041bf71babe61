"""Where s3prl lies, and stand-ins for modules inside one module's namespace; nothing here imports torch or s3prl.

s3prl's scripts read ``os``, ``torch`` and ``argparse`` as globals of their own module. Putting a :class:`ModuleProxy`
there changes a call for that script alone, and leaves the module itself as everyone else sees it.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from s3prl_ekd.errors import EkdError


class ModuleProxy(ModuleType):
    """A module that answers some names itself and passes all others on.

    Usage: ``runner.os = ModuleProxy(os, remove=remove_later)``.
    """

    def __init__(self, target: ModuleType, **replaced: Any) -> None:
        super().__init__(target.__name__, target.__doc__)
        self.__dict__.update(replaced, _target=target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_target"], name)


def s3prl_folder() -> Path:
    """The folder of the package s3prl that would be imported: a wheel's, or a git checkout's on PYTHONPATH.

    Raises:
        EkdError: s3prl is not installed.
    """
    spec = importlib.util.find_spec("s3prl")
    if spec is None or not spec.submodule_search_locations:
        raise EkdError("s3prl is not installed: pip install s3prl, or put a git checkout on PYTHONPATH")
    return Path(list(spec.submodule_search_locations)[0])


def stand_in(name: str, doc: str, package: bool = False) -> ModuleType:
    """An empty module that imports and ``find_spec`` find under ``name``."""
    module = ModuleType(name, doc)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=package)
    if package:
        module.__path__ = []
    sys.modules[name] = module
    return module


def lacks(module: str, attribute: str) -> Callable[[], bool]:
    """A test for :class:`shims.Shim`: the module, imported then, has no such attribute (``NAME``, ``CLASS.METHOD``)."""

    def needed() -> bool:
        try:
            attrgetter(attribute)(importlib.import_module(module))
        except AttributeError:
            return True
        return False

    return needed
