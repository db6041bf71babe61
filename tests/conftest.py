"""Shared fixtures: the real-speech folder, and a skip for tests that need a GPU."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def speech() -> Path:
    """The folder of real speech (../shared/speech or $S3PRL_EKD_SPEECH); skips where it is absent."""
    folder = Path(os.environ.get("S3PRL_EKD_SPEECH", REPO.parent / "shared" / "speech"))
    if not (folder / "asr" / "manifest.tsv").is_file():
        pytest.skip(f"no real speech at {folder}")
    return folder


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables wrap to the terminal; what tests look for must stand on one line whatever a folder is called."""
    monkeypatch.setenv("COLUMNS", "500")


def pytest_configure() -> None:
    """A script's background job ignores SIGINT, and so would every command that the tests interrupt."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
