"""PyTorch files of other people: whatever is wrong with one, it is one line; large ones stay on the disk."""

from __future__ import annotations

import argparse
import io
import random
from pathlib import Path

import pytest
import torch

from s3prl_ekd.errors import EkdError
from s3prl_ekd.torch_file import read_torch_file


def content(zipped: bool, size: int = 12) -> bytes:
    """A small checkpoint in today's format, or in that of PyTorch before 1.6, as many published ones are."""
    stream = io.BytesIO()
    state = {"Args": argparse.Namespace(x=1), "Step": 3, "EKD": {"encoder": torch.ones(size), "labels": ["a", 1]}}
    torch.save(state, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_cut_short_anywhere_is_one_line(tmp_path: Path, zipped: bool) -> None:
    """As of a download that broke off."""
    whole, file = content(zipped), tmp_path / "a.pt"
    for length in range(0, len(whole), 1 if not zipped else 7):
        file.write_bytes(whole[:length])
        with pytest.raises(EkdError, match=f"^{file}: ") as caught:
            read_torch_file(file)
        assert "it holds .)" not in str(caught.value)  # a class without a name is none that was refused


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_with_other_bytes_is_one_line_or_is_read(tmp_path: Path, zipped: bool) -> None:
    whole, file, draw = content(zipped), tmp_path / "a.pt", random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        file.write_bytes(damaged)
        try:
            read_torch_file(file, mmap=draw.random() < 0.5)
        except EkdError as error:
            assert str(error).startswith(f"{file}: ")
            refused += 1
    assert refused > 50


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not say what lies in memory")
@pytest.mark.parametrize("mmap", [False, True])
def test_tensors_stay_on_the_disk_where_only_numbers_are_looked_at(tmp_path: Path, mmap: bool) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(content(True, 100_000))
    found = read_torch_file(file, mmap=mmap)
    assert (str(file) in Path("/proc/self/maps").read_text()) == mmap
    assert found["Step"] == 3 and found["EKD"]["encoder"].sum() == 100_000
    file.write_bytes(content(False))  # the older format has no such way
    assert read_torch_file(file, mmap=True)["Step"] == 3
