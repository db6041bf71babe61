"""SUPERB's other tasks through s3prl's own runner (KS, IC, ASV, SD, QbE, SE, SS)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bridge_corpora import tone
from console import check_mistakes, code, command, environment
from superb_corpora import CORPORA

from s3prl_ekd.bridge.taskdata_mixtures import SOURCES
from s3prl_ekd.cli import main
from s3prl_ekd.torch_file import read_torch_file

SHORT = ["config.runner.total_steps=2", "config.runner.eval_step=2", "config.runner.save_step=2",
         "config.runner.log_step=1"]  # fmt: skip
UPSTREAM = "-u ekd_student -g embedded --device cpu"
ASTEROID = importlib.util.find_spec("asteroid") is not None
mixtures = pytest.mark.skipif(not ASTEROID, reason="SE and SS need asteroid, the extra superb_sg")

# A fork for each command: importing s3prl takes longer than all of them.
SCRIPT = """
import os, sys
import joblib
import s3prl_ekd
from s3prl_ekd.bridge import launch
joblib.parallel_config(backend="threading")  # ASV measures its clips in twelve processes, each with an import of torch
s3prl_ekd.register()
for line in sys.argv[1:]:
    print("COMMAND", line, flush=True)
    child = os.fork()
    if child == 0:
        sys.argv = ["run_downstream.py", *line.split()]
        sys.exit(launch.run_downstream())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder where every task was trained for two steps and tested, and what was printed."""
    folder = tmp_path_factory.mktemp("superb")
    lines = []
    for task, corpus in CORPORA.items():
        if task in SOURCES and not ASTEROID:
            continue
        items = corpus(folder / task)
        if task == "quesst14_dtw":
            lines.append(f"-m evaluate -t dev -n {task} -d {task} -l 2 {UPSTREAM} -o {',,'.join(items)}")
            continue
        lines.append(f"-m train -n {task} -d {task} {UPSTREAM} -o {',,'.join(SHORT + items)}")
        lines.append(f"-m evaluate -e result/downstream/{task}/states-2.ckpt --device cpu")
    done = code(SCRIPT, *lines, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "printed", "files"),
    [
        ("speech_commands", "test acc: ", ("test_predict.txt", "dev_truth.txt")),
        ("fluent_commands", "test acc: ", ("test_predict.csv",)),
        ("sv_voxceleb1", "sv-voxceleb1/test-EER: ", ("test_predict.txt",)),
        ("diarization", "mode test acc ", ("scoring/predictions/mix0.h5", "frame_shift")),
        pytest.param("enhancement_stft", "Average pesq of 2 utts is ", ("test_metrics.txt",), marks=mixtures),
        pytest.param("separation_stft", "Average si_sdr of 2 utts: ", ("test_metrics.txt",), marks=mixtures),
    ],
)
def test_a_task_trains_and_is_tested(
    trained: tuple[Path, str], task: str, printed: str, files: tuple[str, ...]
) -> None:
    folder, output = trained
    _, _, test = output.partition(f"COMMAND -m evaluate -e result/downstream/{task}/")
    assert printed in test.partition("COMMAND")[0]
    place = folder / "result" / "downstream" / task
    assert all((place / name).is_file() for name in files)
    state = read_torch_file(place / "states-2.ckpt")
    assert state["Step"] == 2 and state["Args"].downstream == task


@pytest.mark.slow
def test_queries_are_looked_for_in_the_utterances(trained: tuple[Path, str]) -> None:
    found = (trained[0] / "result" / "downstream" / "quesst14_dtw" / "benchmark.stdlist.xml").read_text()
    assert found.count("<detected_termlist") == 2 and found.count("<term ") == 2 * 4


@pytest.mark.slow
def test_asv_keeps_its_lengths_with_the_experiment(trained: tuple[Path, str]) -> None:
    """In the installed package, where s3prl keeps them, a second corpus would get the first one's."""
    lengths = trained[0] / "result" / "downstream" / "sv_voxceleb1" / ".wav_lengths" / "Voxceleb1_length.pt"
    assert len(torch.load(lengths, weights_only=True)[0]) == 6


@pytest.mark.slow
def test_a_configuration_that_would_run_code_is_refused(trained: tuple[Path, str]) -> None:
    """s3prl evaluates ``pooling``, of a checkpoint's configuration too."""
    folder = trained[0]
    state = read_torch_file(folder / "result" / "downstream" / "fluent_commands" / "states-2.ckpt")
    mark = folder / "ran"
    expression = f"__import__('pathlib').Path({str(mark)!r}).touch() or MeanPooling"
    state["Config"]["downstream_expert"]["modelrc"]["UtteranceLevel"]["pooling"] = expression
    torch.save(state, folder / "evil.ckpt")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "-m evaluate -e evil.ckpt --device cpu"],
        cwd=folder, env=environment(), text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert not mark.exists()
    assert "expected a name of s3prl.downstream.model; s3prl would run it as code" in done.stderr


@pytest.mark.slow
def test_one_process_runs_several_commands(trained: tuple[Path, str]) -> None:
    """A notebook's way; what one run puts into s3prl's modules must not be in the way of the next one."""
    folder = trained[0]
    items = ",,".join([*SHORT, f"config.downstream_expert.datarc.file_path={folder / 'fluent_commands'}",
                       "config.downstream_expert.datarc.num_workers=0"])  # fmt: skip
    script = """
import sys
from s3prl_ekd.bridge import launch
for line in sys.argv[1:]:
    sys.argv = ["run_downstream.py", *line.split()]
    assert launch.run_downstream() == 0
assert "torch._dynamo" not in sys.modules  # seconds at every start, for nothing (compat/optimizers_start.py)
"""
    lines = [f"-m train -n {name} -d fluent_commands {UPSTREAM} -o {items}" for name in ("first", "second")]
    done = code(script, *lines, "-m evaluate -e result/downstream/first/states-2.ckpt --device cpu", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (read_torch_file(folder / "result" / "downstream" / name / "states-2.ckpt")["Downstream"]
                     for name in ("first", "second"))  # fmt: skip
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_evaluate_scores_keywords_and_intents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpora, data, out = tmp_path / "corpora", tmp_path / "data", tmp_path / "scores"
    for task in ("speech_commands", "fluent_commands"):
        CORPORA[task](corpora / task)
    train, test = corpora / "speech_commands" / "train", corpora / "speech_commands" / "test"
    assert main(["prepare", "speech_commands", str(train), "--test-set", str(test), "--out", str(data)]) == 0
    assert main(["prepare", "fluent_commands", str(corpora / "fluent_commands"), "--out", str(data)]) == 0
    words = ["evaluate", "--upstream", "fbank", "--data", data, "--out", out, "--device", "cpu", "--tasks", "ks,ic"]
    words += ["--preset", "tiny", "--override", ",,".join(SHORT), "-o", "ic:config.optimizer.lr=1.0e-5"]
    done = command("s3prl-ekd", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    tasks = json.loads((out / "scores.json").read_text())["tasks"]
    assert list(tasks) == ["ks", "ic"]
    for name, utterances, chance in (("ks", 12, 100 / 12), ("ic", 3, 200 / 3)):
        assert tasks[name]["n_utterances"] == utterances and tasks[name]["steps"] == 2
        assert tasks[name]["rescored"]["agrees"] and tasks[name]["rescored"]["acc"] == pytest.approx(tasks[name]["acc"])
        assert tasks[name]["chance"] == pytest.approx(chance)
    table = (out / "scores.md").read_text()
    assert "| KS acc ↑ | IC acc ↑ |" in table
    assert "Chance: KS 8.33 (always the commonest word), IC 66.67 (always the commonest intent)." in table
    page = tmp_path / "report.html"
    assert main(["report", str(out), "--reference", "--out", str(page)]) == 0
    assert "KS acc ↑" in page.read_text() and "<td>96.30</td><td>98.34</td>" in page.read_text()
    assert main(["export", "public", "--runs", str(out), "--out", str(tmp_path / "predict.zip")]) == 0
    assert "ic acc: " in capsys.readouterr().out
    (tmp_path / "loud.yaml").write_text("distortion: {additive: {snr: [-10, -10], clean: false}}\n")
    clean = (out / "runs" / "ks" / "test_predict.txt").read_bytes()
    done = command("s3prl-ekd", "robustness", out, "--distortion", "loud.yaml", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    heard = json.loads((out / "runs" / "ic" / "distorted" / "loud" / "result.json").read_text())
    assert heard["rescored"]["n_utterances"] == 3 and heard["rescored"]["agrees"]
    assert (out / "runs" / "ks" / "test_predict.txt").read_bytes() == clean
    assert "| fbank | loud |" in (out / "robustness.md").read_text()
    run = out / "runs" / "ks"
    test_of_run = ["-m", "evaluate", "-e", run / "states-2.ckpt", "-o", "config.runner.distortion=loud.yaml"]
    done = command("run_downstream.py", *test_of_run, "-p", run, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 2 and "runner.distortion: give -p another DIR for the predictions" in done.stderr
    assert (run / "test_predict.txt").read_bytes() == clean
    tone(test / "yes" / "b.wav", 5, 1.0)
    done = command("s3prl-ekd", *words, cwd=tmp_path)
    assert done.returncode == 2 and f"was tested there before the clips below {test} changed" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(ASTEROID, reason="asteroid is installed")
def test_a_package_that_a_task_needs_is_named(tmp_path: Path) -> None:
    lines = {
        "-m train -n x -u fbank -d enhancement_stft": "code for it needs asteroid: pip install 's3prl-ekd[superb_sg]'",
        "-m train -n x -u fbank -d enhancement_stft2 -c ks.yaml": "needs asteroid: pip install",
    }
    check_mistakes("downstream", lines, cwd=tmp_path)


@pytest.mark.slow
def test_mistakes_are_one_line(tmp_path: Path) -> None:
    corpus = " -o " + ",,".join(CORPORA["speech_commands"](tmp_path / "ks"))
    new = "-m train -n x -u fbank -d"
    check_mistakes(
        "downstream",
        {
            f"{new} ks": "-d ks: s3prl calls this task -d speech_commands",
            f"{new} speech_commands": "ks.yaml: downstream_expert.datarc.speech_commands_root: /path/to/",
            f"{new} quesst14_dtw": "-m train -d quesst14_dtw: nothing is trained; use -m evaluate -t dev",
            "-m evaluate -t train -n x -u fbank -d quesst14_dtw": "-t train: quesst14_dtw knows the splits dev, test",
            "-m evaluate -n x -u fbank -d diarization": "no trained model; give its checkpoint with -e",
            f"{new} speech_commands{corpus},,config.runner.eval_dataloaders=['dve']": "no split 'dve'",
            f"{new} speech_commands{corpus},,config.optimizer.torch_optim_nam=3": "did you mean torch_optim_name",
        },
        cwd=tmp_path,
    )
