"""Shared fixtures, and a skip for tests that need a GPU. What tests call by name is in helpers/."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hugging_hub import Hub

    from recipes.mini_superb.settings import Experiment
    from s3prl_ekd.evaluate.progress import Board

pytest.register_assert_rewrite("console", "trouble_checks")  # their asserts say as much as a test's

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def speech() -> Path:
    """The folder of real speech (../shared/speech or $S3PRL_EKD_SPEECH); skips where it is absent."""
    folder = Path(os.environ.get("S3PRL_EKD_SPEECH", REPO.parent / "shared" / "speech"))
    if not (folder / "asr" / "manifest.tsv").is_file():
        pytest.skip(f"no real speech at {folder}")
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with made audio, its length CSV, three teachers, and both configuration files (pretrain_lab.py)."""
    from pretrain_lab import write_lab

    return write_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as `run_pretrain.py -u ekd` writes it, of a student never trained (export_student.py)."""
    from export_student import write_student

    return write_student(tmp_path_factory.mktemp("run") / "states-10.ckpt")


@pytest.fixture(scope="module")
def hub() -> ModuleType:
    """s3prl's hub, our upstreams in it."""
    import s3prl_ekd

    s3prl_ekd.register()
    from s3prl import hub

    return hub


@pytest.fixture
def hugging_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process, and the commands that it starts, find in place of huggingface.co; its cache is empty."""
    from hugging_hub import Hub
    from huggingface_hub import constants

    served = Hub()
    cache = tmp_path / "hf" / "hub"
    monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    yield served
    served.stop()


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that takes a batch's memory as a data worker does."""
    from s3prl_ekd.data import rows

    monkeypatch.setattr(rows, "get_worker_info", lambda: True)


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """For a test that lets the package listen to signals in this process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD)
    handlers, hook = {number: signal.getsignal(number) for number in numbers}, sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def seeds_of_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the generators of all GPUs are seeded with; torch asks for it where there is none, too."""
    import torch

    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    return seeds


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Clips of each call of the ensemble (target_cache_lab.py)."""
    from target_cache_lab import count_calls

    return count_calls(monkeypatch)


@pytest.fixture
def manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with audio and one manifest per task, and a dictionary of its words alone (manifest_lab.py)."""
    from manifest_lab import use_small_cmudict, write_manifests

    use_small_cmudict(monkeypatch)
    return write_manifests(tmp_path / "corpus")


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    """What recipes/mini_superb compares."""
    from recipes.mini_superb import settings

    return settings.read_experiment(Path(settings.__file__).with_name("experiment.yaml"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """What `s3prl-ekd prepare` makes, as far as evaluate's stand-in for the native runner looks at it."""
    from evaluate_stand_in import make_data

    return make_data(tmp_path / "DATA")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Native runs are played by a stand-in (evaluate_stand_in.py)."""
    from evaluate_stand_in import install_stand_in

    install_stand_in(tmp_path, monkeypatch)


@pytest.fixture
def board() -> Iterator[Board]:
    """evaluate's progress display, showing nothing."""
    from rich.console import Console

    from s3prl_ekd.evaluate.progress import Board

    with Board(Console(quiet=True)) as board:
        yield board


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables wrap to the terminal; what tests look for must stand on one line whatever a folder is called."""
    monkeypatch.setenv("COLUMNS", "500")


@pytest.fixture(autouse=True)
def gpus_of_every_test() -> Iterator[None]:
    """A launcher with ``--device cpu`` hides the GPUs from its process, which is that of the tests that come after."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    yield
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if before is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = before


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


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    """A miniature of LibriSpeech (corpora_lab.py), as the three below are of what their names say."""
    from corpora_lab import write_librispeech

    return write_librispeech(tmp_path / "LibriSpeech")


@pytest.fixture
def lexicon(tmp_path: Path) -> Path:
    from corpora_lab import write_lexicon

    return write_lexicon(tmp_path / "lexicon.txt")


@pytest.fixture
def voxceleb1(tmp_path: Path) -> tuple[Path, Path]:
    """The corpus, and its iden_split.txt."""
    from corpora_lab import write_voxceleb1

    return write_voxceleb1(tmp_path / "VoxCeleb1", tmp_path / "iden_split.txt")


@pytest.fixture
def iemocap(tmp_path: Path) -> Path:
    from corpora_lab import write_iemocap

    return write_iemocap(tmp_path / "IEMOCAP")
