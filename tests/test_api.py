"""``import s3prl_ekd`` as a library: what it offers, and that it costs nothing until it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_student import write_student

import s3prl_ekd


def test_every_name_is_there_and_known_to_editors() -> None:
    for name in s3prl_ekd.__all__:
        assert getattr(s3prl_ekd, name) is not None and name in dir(s3prl_ekd)
    with pytest.raises(AttributeError, match="no attribute 'load_studnet'"):
        _ = s3prl_ekd.load_studnet
    tree = ast.parse(Path(s3prl_ekd.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {alias.name: node.module for node in block.body for alias in node.names}
    assert told == {name: f"s3prl_ekd.{module}" for name, module in s3prl_ekd._MODULES.items()}


def test_importing_it_imports_no_torch() -> None:
    code = "import s3prl_ekd, sys; print([name for name in ('torch', 's3prl', 'numpy') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_a_student_and_a_teacher_without_s3prl(tmp_path: Path) -> None:
    student = s3prl_ekd.load_student(write_student(tmp_path / "states-10.ckpt")).encoder
    torch.manual_seed(0)
    long, short = 0.1 * torch.randn(8000), 0.1 * torch.randn(5000)
    out = s3prl_ekd.encode_clips(student, [long, short])
    frames = student.shape.frames(8000)
    assert out.states[student.shape.layers].shape == (2, frames, student.shape.width)
    assert out.mask.sum(1).tolist() == [frames, student.shape.frames(5000)]
    teacher = s3prl_ekd.load_teacher("embedded:tiny_hubert")
    assert not teacher.training and not any(value.requires_grad for value in teacher.parameters())
    states = s3prl_ekd.encode_clips(teacher, [long]).states
    assert sorted(states) == list(range(teacher.shape.layers + 1)) and states[1].isfinite().all()
    with pytest.raises(s3prl_ekd.EkdError, match="teacher s3prl:fbank: is an upstream of s3prl's own"):
        s3prl_ekd.load_teacher("s3prl:fbank")
