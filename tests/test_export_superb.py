"""The hidden-set submission: equal to the training-time student, self-contained, and checked as the organisers do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from export_student import LARGE, write_student

from s3prl_ekd.cli import main
from s3prl_ekd.errors import EkdError
from s3prl_ekd.export.superb import export_superb, parse_task_states
from s3prl_ekd.export.validate import run_in_s3prl, run_isolated
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_transformers
from s3prl_ekd.upstream.ekd_student.expert import UpstreamExpert


def load(folder: Path, **arguments: object) -> torch.nn.Module:
    """The folder's own UpstreamExpert, from its file."""
    spec = importlib.util.spec_from_file_location("submitted_expert", folder / "expert.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.UpstreamExpert(str(folder / "model.pt"), **arguments)


@pytest.mark.parametrize(
    "samples", [(32_000, 28_800, 59_200), (16_000,), (8_000, 8_000), (800, 16_000), (100,), (400, 399)]
)
@pytest.mark.parametrize(("training", "norms"), [(False, {}), (True, {}), (False, LARGE)])
def test_equal_to_the_training_time_student(
    tmp_path: Path, samples: tuple[int, ...], training: bool, norms: dict[str, Any]
) -> None:
    checkpoint = write_student(tmp_path / "states-10.ckpt", student=norms)
    expert = load(export_superb(checkpoint, tmp_path / "out", keep_heads=True)).train(training)
    student = UpstreamExpert(str(checkpoint), heads=True).eval()  # the submission has no dropout in either mode
    wavs = [torch.randn(count) for count in samples]
    with torch.no_grad():
        ours, theirs = expert(wavs)["hidden_states"], student(wavs)
    expected = [*theirs["hidden_states"], *theirs["predictions"].values()]
    assert isinstance(ours, list) and len(ours) == len(expected) == 3 + 9
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("square", [False, True], ids=["conv narrower", "conv as wide"])
def test_equal_to_a_student_of_a_transformers_folder(normalize: bool, square: bool, tmp_path: Path) -> None:
    """Normalised waveforms, and a projection between equal widths: what a student of ours never has."""
    shape = TINY.with_(layers=2, normalize=normalize, **({"width": 64, "square_projection": True} if square else {}))
    teacher = write_transformers(random_encoder(shape, 0), tmp_path / "teacher")
    expert, student = load(export_superb(teacher, tmp_path / "out")), UpstreamExpert(str(teacher)).eval()
    wavs = [0.01 * torch.randn(count) + offset for count, offset in ((16_000, 0.5), (11_111, -0.2))]
    with torch.no_grad():
        ours, theirs = expert(wavs)["hidden_states"], student(wavs)["hidden_states"]
        other = student([wav * 3 + 1 for wav in wavs])["hidden_states"]
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-5)
    same = torch.allclose(theirs[-1], other[-1], atol=1e-2)
    assert same is normalize  # the scale and the offset show where nothing takes them away


@pytest.mark.slow
def test_equal_at_full_size(tmp_path: Path) -> None:
    """In double precision: a processor's own fp32 convolutions round by up to 1.3e-5 at this size."""
    checkpoint = write_student(tmp_path / "states-1.ckpt", 768, full_size=True)
    expert, student = load(export_superb(checkpoint, tmp_path / "out")), UpstreamExpert(str(checkpoint))
    assert sum(value.numel() for value in expert.parameters()) == 23_491_200
    wavs = [torch.randn(count).double() for count in (32_000, 28_800, 59_200)]
    expert, student = expert.double(), student.double()
    with torch.no_grad():
        for one, other in zip(expert(wavs)["hidden_states"], student(wavs)["hidden_states"], strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_tasks_get_the_states_chosen_for_them(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["export", "superb", "--ckpt", str(checkpoint), "--out", str(tmp_path / "out"),
                 "--task-layers", "PR=2", "SID=0,1"]) == 0  # fmt: skip
    wavs = [torch.randn(16_000)]
    result = load(tmp_path / "out")(wavs)
    states = result["hidden_states"]
    assert len(states) == 3 and set(result) == {"hidden_states", "PR", "SID"}
    assert [torch.equal(*pair) for pair in zip(result["SID"], states[:2], strict=True)] == [True, True]
    assert torch.equal(result["PR"][0], states[2]) and len(result["PR"]) == 1
    selected = load(tmp_path / "out", upstream_feature_selection="PR")(wavs)["hidden_states"]
    assert len(selected) == 1 and torch.equal(selected[0], states[2])
    assert "`PR` gets the states 2" in (tmp_path / "out" / "README.md").read_text()


def test_what_the_user_edited_stays(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = export_superb(checkpoint, tmp_path / "out")
    files = [folder / name for name in ("README.md", "requirements.txt", "LICENSE")]
    written = [file.read_text() for file in files]
    for file in files:
        file.write_text(file.read_text() + "mine\n")
    export_superb(checkpoint, folder)
    assert [file.read_text() for file in files] == [text + "mine\n" for text in written]
    before = (folder / "model.pt").read_bytes()
    with pytest.raises(EkdError, match=r"README.md: was edited, .* for another model; name another folder"):
        export_superb(checkpoint, folder, task_states={"PR": [1]})
    assert (folder / "model.pt").read_bytes() == before
    files[0].write_text(written[0])  # as an export wrote it
    (folder / "expert.py").write_text("mine")
    export_superb(checkpoint, folder, task_states={"PR": [1]})
    assert "`PR` gets the states 1" in files[0].read_text()
    assert [file.read_text() for file in files[1:]] == [text + "mine\n" for text in written[1:]]
    assert f"{folder / 'expert.py'}: replaced; it was edited" in caplog.text


def test_what_a_link_in_the_folder_leads_to_stays(checkpoint: Path, tmp_path: Path) -> None:
    """The folder may be somebody else's."""
    folder, home = export_superb(checkpoint, tmp_path / "out"), tmp_path / "home"
    home.mkdir()
    (home / ".profile").write_text("mine")
    for name, target in (("expert.py", ".profile"), ("requirements.txt", "new"), ("LICENSE", ".rhosts")):
        (folder / name).unlink()
        (folder / name).symlink_to(home / target)
    export_superb(checkpoint, folder)
    assert {file.name: file.read_text() for file in home.iterdir()} == {".profile": "mine"}
    assert not any(file.is_symlink() for file in folder.iterdir()) and "MIT" in (folder / "LICENSE").read_text()


def test_a_kill_leaves_no_card_beside_another_model(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    folder = export_superb(checkpoint, tmp_path / "out")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("s3prl_ekd.export.superb.write_torch_file", killed)
    with pytest.raises(KeyboardInterrupt):
        export_superb(checkpoint, folder, task_states={"PR": [1]})
    assert not (folder / "README.md").exists()


def test_what_cannot_be_exported(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EkdError, match="no task 'KS'"):
        export_superb(checkpoint, tmp_path / "out", task_states={"KS": [0]})
    with pytest.raises(EkdError, match=r"PR: no hidden state \[3\]; there are 0..2"):
        export_superb(checkpoint, tmp_path / "out", task_states={"PR": [0, 3]})
    with pytest.raises(EkdError, match="TASK=NUMBERS"):
        parse_task_states(["PR:2"])
    with pytest.raises(EkdError, match="named twice"):
        parse_task_states(["PR=2", "PR=1"])
    wide = write_student(tmp_path / "wide" / "states-1.ckpt", teacher_width=64)
    with pytest.raises(EkdError, match="predicts 64 channels"):
        export_superb(wide, tmp_path / "out", keep_heads=True)
    teacher = write_transformers(random_encoder(TINY.with_(attention="gated_relative"), 0), tmp_path / "wavlm", "wavlm")
    with pytest.raises(EkdError, match="attention is 'gated_relative'"):
        export_superb(teacher, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(EkdError, match="holds no earlier export"):
        export_superb(checkpoint, tmp_path / "mine")
    assert not (tmp_path / "out").exists()


def test_the_validators_assertions(checkpoint: Path, tmp_path: Path) -> None:
    folder = export_superb(checkpoint, tmp_path / "out", keep_heads=True, task_states={"PR": [2]})
    checks = run_isolated(folder)
    assert len(checks) == 6 and all(check.passed for check in checks), checks
    assert not (folder / "__pycache__").exists()


# what is done to a good expert.py -> what the check says
BROKEN = {
    "a tuple": (' = result.get(self.selection, states)', ' = tuple(states)', "tuple instead of a list"),
    "our package": ("from torch import nn", "from torch import nn\nimport s3prl_ekd", "s3prl_ekd is not available"),
    "s3prl": ("from torch import nn", "from torch import nn\nimport s3prl.hub", "s3prl is not available"),
    "the network": ("super().__init__()\n        saved", "super().__init__()\n        import socket\n"
                    "        socket.create_connection(('127.0.0.1', 9))\n        saved", "may not use the network"),
    "a rate of 10 ms": ("return hop", "return hop // 2", "expected 3 x 370, at a downsample rate of 160"),
    "a float rate": ("return hop", "return float(hop)", "gives a float"),
    "shapes": ("states += outputs[1:]", "states += [x[:, 1:] for x in outputs[1:]]", "one shape"),
    "no kwargs": (", **kwargs", "", "model_config"),
    "NaN": ("states += outputs[1:]", "states += [x * float('nan') for x in outputs[1:]]", "hold NaN or infinity"),
    "layer drop": ("in self.layers:", "in list(self.layers)[int(self.training):]:", "in train mode"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BROKEN))
def test_what_the_check_refuses(name: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = export_superb(checkpoint, tmp_path / "out")
    old, new, message = BROKEN[name]
    code = (folder / "expert.py").read_text()
    assert old in code
    (folder / "expert.py").write_text(code.replace(old, new, 1))
    last = run_isolated(folder)[-1]
    assert not last.passed and message in last.detail, last


def test_pickled_code_and_missing_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = export_superb(checkpoint, tmp_path / "out")
    torch.save({"weights": {}, "path": Path("x")}, folder / "model.pt")
    last = run_isolated(folder)[-1]
    assert not last.passed and "model.pt" in last.title
    (folder / "requirements.txt").unlink()
    assert run_isolated(folder)[-1].detail == "requirements.txt is missing"
    assert main(["validate", str(folder)]) == 1
    assert main(["validate", str(tmp_path / "nowhere")]) == 2


@pytest.mark.slow
def test_the_organisers_loading_code(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """s3prl's runner takes the folder as from the hub and trains ER; then a folder that it cannot take."""
    folder = export_superb(checkpoint, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    for name in ("expert.py", "s3prl.py"):  # of the current folder, neither
        Path(name).write_text("raise RuntimeError('another')")
    assert main(["validate", str(folder), "--python", sys.executable]) == 0
    assert "trains ER" in capsys.readouterr().out
    code = (folder / "expert.py").read_text()
    (folder / "expert.py").write_text(code.replace("def get_downsample_rates", "def other"))
    check = run_in_s3prl(folder)
    assert not check.passed and "get_downsample_rates" in check.detail
