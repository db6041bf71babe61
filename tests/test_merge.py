"""``s3prl-ekd merge``: interpolated students load as students; what cannot be merged is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from export_student import write_student

from s3prl_ekd.cli import main
from s3prl_ekd.errors import EkdError
from s3prl_ekd.export.merge import merge_checkpoints
from s3prl_ekd.student_checkpoint import load_student, read_checkpoint


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two students of one start, of which the second went another way; a third one of another start."""
    folder = tmp_path_factory.mktemp("students")
    files = [write_student(folder / name / "states-10.ckpt") for name in ("a", "b", "c")]
    for file, scale in zip(files[1:], (0.01, 10.0), strict=True):
        content = torch.load(file, weights_only=True)
        torch.manual_seed(7)
        for state in (content["EKD"]["encoder"], content["EKD"]["heads"]):
            for value in state.values():
                value += scale * torch.randn_like(value)
        torch.save(content, file)
    return files


@pytest.mark.parametrize("copies", [2, 3])
def test_a_student_merged_with_itself_is_itself(students: list[Path], tmp_path: Path, copies: int) -> None:
    out = tmp_path / "new" / "merged.ckpt"
    assert main(["merge", *[str(students[0])] * copies, "--out", str(out)]) == 0
    before, after = read_checkpoint(students[0]), read_checkpoint(out)
    for section in ("encoder", "heads"):
        assert before[section].keys() == after[section].keys()
        assert all(torch.equal(after[section][name], value) for name, value in before[section].items())


def test_weights_interpolate_and_the_result_is_a_student(students: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "merged.ckpt"
    folders = [str(students[0].parent), str(students[1])]  # an experiment folder stands for its newest checkpoint
    assert main(["merge", *folders, "--weights", "3", "1", "--out", str(out)]) == 0
    encoder, heads, part = load_student(out)
    a, b = (read_checkpoint(file)["encoder"] for file in students[:2])
    for name, value in encoder.state_dict().items():
        assert torch.allclose(value, torch.lerp(a[name], b[name], 0.25), atol=1e-6)
    assert list(heads) == ["hubert", "robust_hubert", "wavlm"]
    assert [item["weight"] for item in part["merged"]] == [0.75, 0.25]
    assert encoder(0.1 * torch.randn(1, 4_000)).states[2].isfinite().all()


def test_what_a_kill_left_of_a_merge_goes_with_the_next(students: list[Path], tmp_path: Path) -> None:
    """It is as large as a checkpoint. Another file's part may be that of a training on another host."""
    out = tmp_path / "merged.ckpt"
    for name in (out.name, "states-1.ckpt"):
        (tmp_path / f".{name}.tmp-4194305").touch()  # a number that no process has
    assert main(["merge", *map(str, students[:2]), "--out", str(out)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {out.name, ".states-1.ckpt.tmp-4194305"}


def test_students_of_other_teachers_keep_no_foreign_heads(students: list[Path], tmp_path: Path) -> None:
    content = torch.load(students[1], weights_only=True)
    part = content["EKD"]
    part["head_sets"] = part["head_sets"][:1]
    part["heads"] = {name: value for name, value in part["heads"].items() if name.startswith("hubert.")}
    part["config"]["ekd"]["teachers"] = [{"name": "hubert", "source": "another", "layers": [4]}]
    torch.save(content, tmp_path / "one.ckpt")
    out = tmp_path / "merged.ckpt"
    assert main(["merge", str(students[0]), str(tmp_path / "one.ckpt"), "--out", str(out)]) == 0
    _, heads, merged = load_student(out)
    assert list(heads) == ["hubert"]
    named = [(t["name"], t["source"]) for t in merged["config"]["ekd"]["teachers"]]
    assert len(named) == 4 and named[-1] == ("hubert_4", "another")


def test_what_cannot_be_merged_is_one_line(
    students: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    content = torch.load(students[1], weights_only=True)
    content["EKD"]["shape"]["heads"] = 2
    other = tmp_path / "other.ckpt"
    torch.save(content, other)
    torch.save({"EKD": 5}, tmp_path / "five.ckpt")
    torch.save({"EKD": {key: value for key, value in content["EKD"].items() if key != "heads"}}, tmp_path / "part.ckpt")
    good, out = str(students[0]), str(tmp_path / "merged.ckpt")
    for arguments, expected in (
        ([good, "--out", out], "expected two checkpoints"),
        ([good, str(other), "--out", out], f"error: {other}: heads is 2, in {good} 4"),
        ([good, good, "--weights", "1", "--out", out], "--weights: expected 2 numbers"),
        ([good, good, "--weights", "1", "-1", "--out", out], "--weights: expected 2 numbers"),
        ([good, good, "--weights", "nan", "1", "--out", out], "--weights: expected 2 numbers"),
        ([good, good, "--weights", "1e308", "1e308", "--out", out], "--weights: expected 2 numbers"),
        ([good, str(tmp_path / "none.ckpt"), "--out", out], "none.ckpt: no such checkpoint"),
        ([good, str(tmp_path / "five.ckpt"), "--out", out], "five.ckpt: EKD is a int, expected a dictionary"),
        (
            [good, str(tmp_path / "part.ckpt"), "--out", out],
            "part.ckpt: damaged student checkpoint: EKD.heads is missing",
        ),
        ([good, good, "--out", str(tmp_path)], "is a folder"),
    ):
        assert main(["merge", *arguments]) == 2
        message = capsys.readouterr().err
        assert expected in message and message.count("\n") == 1
    assert not Path(out).exists()
    assert main(["merge", good, str(students[2]), "--out", out]) == 0
    assert "do not look like students of one initialisation" in caplog.text


def test_how_waves_are_normalised_is_part_of_the_shape(students: list[Path], tmp_path: Path) -> None:
    """But where they are not normalised, the constant of it has no effect."""
    files = []
    for normalize, eps in ((True, 1e-5), (True, 1e-7), (False, 1e-7)):
        content = torch.load(students[0], weights_only=True)
        content["EKD"]["shape"] |= {"normalize": normalize, "normalize_eps": eps}
        files.append(tmp_path / f"{normalize}-{eps}.ckpt")
        torch.save(content, files[-1])
    with pytest.raises(EkdError, match="normalize_eps is 1e-07, in .* 1e-05"):
        merge_checkpoints(files[:2], tmp_path / "merged.ckpt")
    with pytest.raises(EkdError, match="normalize is False, in .* True"):
        merge_checkpoints(files[1:], tmp_path / "merged.ckpt")
    merge_checkpoints([files[2], students[0]], tmp_path / "merged.ckpt")


def test_an_exported_student_merges_with_the_one_it_was_made_of(students: list[Path], tmp_path: Path) -> None:
    hf, out = tmp_path / "hf", tmp_path / "merged.ckpt"
    assert main(["export", "hf", "--ckpt", str(students[0]), "--out", str(hf)]) == 0
    for one, other in ((students[0], hf), (hf, students[0])):
        assert main(["merge", str(one), str(other), "--out", str(out)]) == 0
        after = read_checkpoint(out)["encoder"]
        assert all(torch.allclose(after[k], v, atol=1e-6) for k, v in read_checkpoint(students[0])["encoder"].items())


def test_no_training_is_written_over(
    students: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (shutil.copytree(file.parent, tmp_path / name) / file.name for file, name in zip(students[:2], "ab"))  # noqa: B905
    before = a.read_bytes()
    hf = tmp_path / "hf"
    assert main(["export", "hf", "--ckpt", str(a), "--out", str(hf)]) == 0
    (tmp_path / "link.ckpt").symlink_to(a)
    for inputs, out, expected in (
        ((a, b), a, f"is the input {a}"),
        ((a.parent, b), a, f"is the input {a.parent}"),
        ((a, b), tmp_path / "b" / ".." / "a" / a.name, f"is the input {a}"),
        ((a, b), tmp_path / "link.ckpt", f"is the input {a}"),
        ((b, hf), hf / "model.safetensors", f"is the input {hf}, or lies in it"),
        ((b, b), a, "is the experiment folder of a training (states-10.ckpt)"),
        ((b, b), a.with_name("states-11.ckpt"), "is the experiment folder of a training (states-10.ckpt)"),
    ):
        capsys.readouterr()
        assert main(["merge", *map(str, inputs), "--out", str(out)]) == 2
        message = capsys.readouterr().err
        assert f"--out {out}: " in message and expected in message and message.count("\n") == 1
    assert a.read_bytes() == before and {file.name for file in a.parent.iterdir()} == {a.name}
    # an earlier merge, whatever its name, may be written over, and stays whole where writing fails
    out = tmp_path / "merged" / "states-1.ckpt"
    assert main(["merge", str(a), str(b), "--out", str(out)]) == 0
    first = out.read_bytes()
    assert main(["merge", str(a), str(b), "--weights", "3", "1", "--out", str(out)]) == 0
    second = out.read_bytes()
    assert first != second

    def full(content: object, file: object) -> None:
        (file.write if hasattr(file, "write") else Path(file).write_bytes)(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        merge_checkpoints([a, b], out)
    assert out.read_bytes() == second and [file.name for file in out.parent.iterdir()] == [out.name]
