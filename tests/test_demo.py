"""The demo's folder rules; and, slow, `evaluate` with s3prl's real runner on the demo's speech."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from s3prl_ekd import demo
from s3prl_ekd.errors import EkdError

COMMAND = Path(sys.executable).parent / "s3prl-ekd"


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(EkdError, match="holds other files"):
            demo.Demo(tmp_path, small=True, device="cpu", fresh=fresh)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_done_stage_is_not_done_again(tmp_path):
    calls = []
    for _ in range(2):
        one = demo.Demo(tmp_path / "out", small=True, device="cpu")
        one.stage("speech", "speak", lambda: calls.append("speech"))
        one.stage("report", "write", lambda: calls.append("report"), again=True)
    assert calls == ["speech", "report", "report"]
    with pytest.raises(EkdError, match="without --small|with --small|add --fresh"):
        demo.Demo(tmp_path / "out", small=False, device="cpu")
    demo.Demo(tmp_path / "out", small=False, device="cpu", fresh=True)


def test_a_failed_command_names_itself(tmp_path):
    one = demo.Demo(tmp_path / "out", small=True, device="cpu")
    with pytest.raises(EkdError, match="the demo stopped in: s3prl-ekd report /nowhere.*exit 2"):
        one.call("s3prl-ekd", "report", "/nowhere", "--out", str(tmp_path / "r.html"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_evaluate_with_the_real_runner(tmp_path):
    """Train, test and score all four tasks on fbank features; a second call runs nothing."""
    pytest.importorskip("espeakng_loader")
    from s3prl_ekd.corpora.demo import make_demo_corpus

    manifests = make_demo_corpus(tmp_path / "speech", small=True)
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
