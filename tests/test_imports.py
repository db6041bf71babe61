"""Every module of benchmarks/ and recipes/ imports: most of them run only when a person calls them."""

from __future__ import annotations

import importlib

import pytest
from conftest import REPO

MODULES = sorted(
    ".".join(file.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")
    for folder in ("benchmarks", "recipes")
    for file in (REPO / folder).rglob("*.py")
)


@pytest.mark.parametrize("module", MODULES)
def test_it_imports(module: str) -> None:
    importlib.import_module(module)
