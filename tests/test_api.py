"""``import s3prl_ekd`` as a library: what it offers, and that it costs nothing until it is used."""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from export_student import write_student

import s3prl_ekd
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder


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
    assert s3prl_ekd.encode_clips(student, [short, short]).mask is None
    teacher = s3prl_ekd.load_teacher("embedded:tiny_hubert")
    assert not teacher.training and not any(value.requires_grad for value in teacher.parameters())
    states = s3prl_ekd.encode_clips(teacher, [long]).states
    assert sorted(states) == list(range(teacher.shape.layers + 1)) and states[1].isfinite().all()
    with pytest.raises(s3prl_ekd.EkdError, match="teacher s3prl:fbank: is an upstream of s3prl's own"):
        s3prl_ekd.load_teacher("s3prl:fbank")


def test_a_teacher_by_a_path_object() -> None:
    from s3prl_ekd.teachers import embedded

    folder = embedded.folder("embedded:tiny_hubert", "test")
    assert s3prl_ekd.load_teacher(Path(folder)).shape == s3prl_ekd.load_teacher("embedded:tiny_hubert").shape


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([torch.zeros(8000).numpy()], r"clip 0: expected a tensor, found a ndarray; torch.from_numpy makes one"),
        (["a.flac"], "clip 0: expected a tensor, found a str"),
        ([torch.zeros(8000), torch.zeros(2, 8000)], r"clip 1: expected \(samples,\), found the shape \(2, 8000\)"),
        ([torch.zeros(8000, dtype=torch.int16)], "clip 0: expected floats within -1 and 1, found torch.int16"),
        (torch.zeros(8000), r"expected a list of clips, found one clip: \[wave\]"),
        ([], "the list of clips is empty"),
    ],
)
def test_mistaken_clips_are_named(clips: Any, message: str) -> None:
    encoder = s3prl_ekd.load_teacher("embedded:tiny_hubert")
    with pytest.raises(s3prl_ekd.EkdError, match=f"^encode_clips: {message}"):
        s3prl_ekd.encode_clips(encoder, clips)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_clip_without_samples_is_heard_as_silence(normalize: bool) -> None:
    encoder = random_encoder(TINY.with_(normalize=normalize), 1)
    with torch.no_grad():
        empty = s3prl_ekd.encode_clips(encoder, [torch.zeros(0), torch.full((800,), 0.1)]).states
        silent = s3prl_ekd.encode_clips(encoder, [torch.zeros(1), torch.full((800,), 0.1)]).states
    assert all(torch.equal(empty[layer], silent[layer]) for layer in empty)


def test_a_loaded_student_in_place_of_its_encoder_is_named(tmp_path: Path) -> None:
    student = s3prl_ekd.load_student(write_student(tmp_path / "states-10.ckpt"))
    with pytest.raises(s3prl_ekd.EkdError, match="is a LoadedStudent, no Encoder; its .encoder is one"):
        s3prl_ekd.encode_clips(student, [torch.zeros(8000)])  # type: ignore[arg-type]


def test_what_is_there_but_something_else_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(s3prl_ekd.EkdError, match=f"^{tmp_path}: is a folder, expected a file$"):
        s3prl_ekd.read_torch_file(tmp_path)
    for name in ("hubert_base", "embedded:tiny_hubert"):
        with pytest.raises(
            s3prl_ekd.EkdError, match=f"^{name}: no such checkpoint, but a teacher's name: s3prl_ekd.load"
        ):
            s3prl_ekd.load_student(name)


@pytest.mark.parametrize(
    ("function", "name"), [(os.system, f"{os.system.__module__}.system"), (time.ctime, "time.ctime")]
)
def test_a_file_that_could_run_code_is_refused_by_the_name_of_what_it_would_call(
    function: Any, name: str, tmp_path: Path
) -> None:
    """Torch has two messages: one for modules that it blocks, os among them, one for whatever else it does not know."""
    torch.save({"Args": function}, tmp_path / "x.ckpt")
    with pytest.raises(
        s3prl_ekd.EkdError, match=rf"x.ckpt: refused, since reading it could run code from the file \(it holds {name}\)"
    ):
        s3prl_ekd.load_student(tmp_path / "x.ckpt")


def test_features_are_state_0_of_the_upstream(tmp_path: Path) -> None:
    """As the README has it; state 0 of ``states`` is another."""
    from s3prl_ekd.upstream.ekd_student.expert import UpstreamExpert

    file = write_student(tmp_path / "states-10.ckpt")
    clips = [0.1 * torch.randn(8000), 0.1 * torch.randn(5000)]
    with torch.no_grad():
        out = s3prl_ekd.encode_clips(s3prl_ekd.load_student(file).encoder, clips)
        hidden_states = UpstreamExpert(str(file)).eval()(clips)["hidden_states"]
    assert torch.equal(out.features, hidden_states[0])
    assert all(torch.equal(out.states[layer], state) for layer, state in enumerate(hidden_states) if layer)


def test_threads_may_read_checkpoints_side_by_side(tmp_path: Path) -> None:
    """Torch's list of the classes that a file may hold is one for the process."""
    file = tmp_path / "states.ckpt"
    torch.save({"Args": argparse.Namespace(x=1)}, file)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(s3prl_ekd.read_torch_file, [file] * 2000))
    assert all(one["Args"].x == 1 for one in found)


def test_a_checkpoint_saved_again_can_be_read_again(tmp_path: Path) -> None:
    """Also one of an optimizer with a schedule, which is read as an empty shell."""
    pytest.importorskip("s3prl")
    from s3prl.optimizers import WarmupLinearSchedule

    torch.save({"Optimizer": {"schedule": WarmupLinearSchedule(warmup=0.1, t_total=7)}}, tmp_path / "states.ckpt")
    torch.save(s3prl_ekd.read_torch_file(tmp_path / "states.ckpt") | {"Step": 2}, tmp_path / "edited.ckpt")
    assert s3prl_ekd.read_torch_file(tmp_path / "edited.ckpt")["Step"] == 2
