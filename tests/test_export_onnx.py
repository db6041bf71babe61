"""The ONNX file gives our hidden states in onnxruntime, for batches and lengths other than those it was traced with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export_student import LARGE, write_student
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.cli import main
from s3prl_ekd.export import onnx_file
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.upstream.ekd_student.expert import UpstreamExpert

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


@pytest.mark.slow
@pytest.mark.parametrize("norms", [{}, LARGE], ids=["as Base", "as Large"])
def test_dynamic_batch_and_length(tmp_path: Path, capfd: pytest.CaptureFixture[str], norms: dict[str, Any]) -> None:
    checkpoint, file = write_student(tmp_path / "states-1.ckpt", student=norms), tmp_path / "student.onnx"
    assert main(["export", "onnx", "--ckpt", str(checkpoint), "--out", str(file)]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 2
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [one.shape[:2] for one in session.get_inputs()] == [["batch", "samples"], ["batch"]]
    assert [one.name for one in session.get_outputs()] == ["hidden_state_0", "hidden_state_1", "hidden_state_2"]
    student = UpstreamExpert(str(checkpoint)).eval()
    for samples in ((32_000, 28_800, 59_200), (12_345,), (640,) * 5, (160,)):
        wavs = [torch.randn(count) for count in samples]
        with torch.no_grad():
            expected = student(wavs)["hidden_states"]
        wave = pad_sequence([*wavs, torch.zeros(400)], batch_first=True)[:-1].numpy()  # 25 ms at least, as documented
        found = session.run(None, {"waveform": wave, "lengths": torch.tensor(samples).numpy()})
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_trained_students_first_state_goes_into_the_thousands(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding grows with it, and is no fault of the file. One that is wrong is not left behind."""
    checkpoint, file = write_student(tmp_path / "states-1.ckpt"), tmp_path / "student.onnx"
    state = torch.load(checkpoint, weights_only=True)
    for name in ("projection.weight", "projection.bias"):
        state["EKD"]["encoder"][name] *= 3_000
    torch.save(state, checkpoint)
    with torch.no_grad():
        assert UpstreamExpert(str(checkpoint)).eval()([torch.randn(16_000)])["hidden_states"][0].abs().max() > 1_000
    assert main(["export", "onnx", "--ckpt", str(checkpoint), "--out", str(file)]) == 0
    written = file.read_bytes()
    monkeypatch.setattr(onnx_file, "compare", lambda encoder, path: 0.1)
    assert main(["export", "onnx", "--ckpt", str(checkpoint), "--out", str(file)]) == 2
    assert "student.onnx: not written: onnxruntime differs from PyTorch by 0.1 of a state" in capfd.readouterr().err
    assert file.read_bytes() == written and sorted(path.name for path in tmp_path.iterdir()) == [
        "states-1.ckpt", "student.onnx"
    ]  # fmt: skip


def test_mistakes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_student(tmp_path / "states-1.ckpt")
    assert main(["export", "onnx", "--ckpt", str(checkpoint), "--out", str(tmp_path / "student")]) == 2
    assert ".onnx" in capfd.readouterr().err
    state = torch.load(checkpoint, weights_only=True)
    foreign = random_encoder(TINY.with_(attention="gated_relative"), 0)
    torch.save({"EKD": state["EKD"] | {"shape": foreign.shape.to_dict(), "encoder": foreign.state_dict()}}, checkpoint)
    assert main(["export", "onnx", "--ckpt", str(checkpoint), "--out", str(tmp_path / "student.onnx")]) == 2
    assert "states-1.ckpt: attention is 'gated_relative'; export onnx needs 'plain'" in capfd.readouterr().err
