"""The demo's folder rules; and, slow, `evaluate` with s3prl's real runner on the demo's speech."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

from s3prl_ekd import demo
from s3prl_ekd.cli import main
from s3prl_ekd.errors import EkdError

COMMAND = Path(sys.executable).parent / "s3prl-ekd"


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(EkdError, match="holds other files"):
            demo.Demo(tmp_path, small=True, device="cpu", fresh=fresh)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_folder_that_evaluate_would_refuse_later_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path / "a=b")
    with pytest.raises(EkdError, match="--out demo_out: expected a folder without '=' and ',,' in its path"):
        demo.Demo(Path("demo_out"), small=True, device="cpu")
    assert not Path("demo_out").exists()


def test_a_fresh_start_that_was_cut_goes_on_under_fresh_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its record the folder was somebody else's; with the old one, what is gone would be done before."""
    demo.Demo(tmp_path, small=True, device="cpu").stage("speech", "", lambda: None)
    for name in "abcdef":
        (tmp_path / name).mkdir()

    def cut(folder: Path) -> None:
        if len(list(tmp_path.iterdir())) < 3:
            raise KeyboardInterrupt
        folder.rmdir()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", cut)
        demo.Demo(tmp_path, small=True, device="cpu", fresh=True)
    with pytest.raises(EkdError, match="add --fresh, which empties the folder first$"):
        demo.Demo(tmp_path, small=True, device="cpu")
    demo.Demo(tmp_path, small=True, device="cpu", fresh=True)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("how", ["a link", "the current folder"])
def test_fresh_empties_the_folder_and_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    demo.Demo(tmp_path / "out", small=True, device="cpu")
    (tmp_path / "out" / "data").mkdir()
    (tmp_path / "out" / "data" / "speech").symlink_to(tmp_path)
    (tmp_path / "out" / "dangling").symlink_to("nowhere")
    out = tmp_path / "link"
    out.symlink_to("out")
    if how == "the current folder":
        monkeypatch.chdir(tmp_path / "out")
        out = Path()
    demo.Demo(out, small=True, device="cpu", fresh=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [demo.MARKER]


def test_a_device_that_is_none_is_told_before_any_stage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["demo", "--out", str(out), "--device", "gpu0"]) == 2
    assert "--device gpu0: is no device" in capfd.readouterr().err and not out.exists()


def test_a_done_stage_is_not_done_again(tmp_path: Path) -> None:
    calls = []
    for _ in range(2):
        one = demo.Demo(tmp_path / "out", small=True, device="cpu")
        one.stage("speech", "speak", lambda: calls.append("speech"))
        one.stage("report", "write", lambda: calls.append("report"), again=True)
    assert calls == ["speech", "report", "report"]


@pytest.mark.parametrize(("small", "was"), [(True, "with"), (False, "without")])
def test_a_demo_of_the_other_size_is_not_continued(tmp_path: Path, small: bool, was: str) -> None:
    demo.Demo(tmp_path / "out", small=small, device="cpu")
    with pytest.raises(EkdError, match=f"/out: its demo was made {was} --small; add --fresh$"):
        demo.Demo(tmp_path / "out", small=not small, device="cpu")
    demo.Demo(tmp_path / "out", small=not small, device="cpu", fresh=True)


@pytest.mark.parametrize("text", ["", '{"small": true, "sta', "[1]", '{"small": true, "stages": []}', '{"stages": {}}'])
def test_a_cut_record_is_named_and_fresh_mends_it(tmp_path: Path, text: str) -> None:
    demo.Demo(tmp_path, small=True, device="cpu")
    marker = tmp_path / demo.MARKER
    marker.write_text(text)
    with pytest.raises(EkdError, match=r"demo\.json: .*; add --fresh, which empties the folder first$") as caught:
        demo.Demo(tmp_path, small=True, device="cpu")
    assert str(marker) in str(caught.value)
    demo.Demo(tmp_path, small=True, device="cpu", fresh=True)
    assert json.loads(marker.read_text()) == {"small": True, "stages": {}}


def test_a_full_disk_leaves_the_earlier_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = demo.Demo(tmp_path, small=True, device="cpu")
    before = (tmp_path / demo.MARKER).read_bytes()

    def cut(path: Path, text: str, **kwargs: str) -> None:
        path.write_bytes(text[:5].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(OSError, match="No space left"):
        one.stage("speech", "speak", lambda: None)
    assert (tmp_path / demo.MARKER).read_bytes() == before


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("name", ["python3.11", "python3.12", "python3.13", "python3"])
def test_make_finds_whichever_python_there_is(tmp_path: Path, name: str) -> None:
    program = tmp_path / "bin" / name
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    words = [shutil.which("make"), "-n", "setup", f"VENV={tmp_path / 'venv'}"]
    shown = subprocess.run(
        words, cwd=REPO, env={"PATH": str(program.parent)}, capture_output=True, text=True, check=True
    )
    assert f'test -n "{program}"' in shown.stdout


def test_a_failed_command_names_itself(tmp_path: Path) -> None:
    one = demo.Demo(tmp_path / "out", small=True, device="cpu")
    with pytest.raises(EkdError, match="the demo stopped in: s3prl-ekd report /nowhere.*exit 2"):
        one.call("s3prl-ekd", "report", "/nowhere", "--out", str(tmp_path / "r.html"))


@pytest.mark.parametrize(
    "end", ["sys.exit(130)", "sys.exit(143)", "os.kill(os.getpid(), 15)", "os.kill(os.getpid(), 9)"]
)
def test_a_command_that_was_stopped_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    one = demo.Demo(tmp_path / "out", small=True, device="cpu")
    monkeypatch.setattr(demo, "own_command", lambda words: [sys.executable, "-c", f"import os, sys; {end}"])
    killed = end.endswith("9)")  # as a machine without memory does: nobody asked for it
    with pytest.raises(EkdError if killed else KeyboardInterrupt, match="exit -9" if killed else None):
        one.call("s3prl-ekd", "report")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_evaluate_with_the_real_runner(tmp_path: Path) -> None:
    """Train, test and score all four tasks on fbank features; a second call runs nothing."""
    pytest.importorskip("espeakng_loader")
    from s3prl_ekd.corpora.demo import SMALL, make_demo_corpus

    manifests = make_demo_corpus(tmp_path / "speech", SMALL)
    data, out = tmp_path / "data", tmp_path / "out"
    files = [str(manifests[name]) for name in ("asr", "sid", "er")]
    subprocess.run([COMMAND, "prepare", "--manifest", *files, "--out", data], check=True)
    steps = "config.runner.total_steps=4,,config.runner.eval_step=2,,config.runner.save_step=2"
    command = [COMMAND, "evaluate", "--upstream", "fbank", "--data", data, "--out", out, "--preset", "tiny"]
    command += ["--folds", "fold1,fold2", "--jobs", "2", "--device", "cpu", "--override", steps]
    subprocess.run(command, check=True)
    record = json.loads((out / "scores.json").read_text())
    assert set(record["tasks"]) == {"pr", "sid", "er", "asr"}
    for task in record["tasks"].values():
        assert task["rescored"]["agrees"]
        assert 0 <= task["rescored"].get("cer", 0)
        assert task["n_utterances"] > 0
    assert record["tasks"]["sid"]["chance"] == pytest.approx(12.5)
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert again.stdout.count("done before, kept") == 5
    assert json.loads((out / "scores.json").read_text())["tasks"] == record["tasks"]
