"""SUPERB's other tasks through s3prl's own runner (KS, IC, ASV, SD, QbE), and what their data must hold."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from bridge_corpora import tone
from console import check_mistakes, code, command, environment
from dotted import changed
from superb_corpora import CORPORA

from s3prl_ekd.bridge import downstream_arguments, taskdata_superb
from s3prl_ekd.bridge.config_section import Section
from s3prl_ekd.cli import main
from s3prl_ekd.compat.shims import apply_shims
from s3prl_ekd.corpora.keyword_folders import NOISE, split_of
from s3prl_ekd.errors import EkdError
from s3prl_ekd.shipped import shipped
from s3prl_ekd.task_names import PAPER_TASKS, WITH_CONFIG
from s3prl_ekd.torch_file import read_torch_file

SHORT = ["config.runner.total_steps=2", "config.runner.eval_step=2", "config.runner.save_step=2",
         "config.runner.log_step=1"]  # fmt: skip
UPSTREAM = "-u ekd_student -g embedded --device cpu"

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
            f"{new} enhancement_stft2 -c ks.yaml": "s3prl's code for it needs asteroid: pip install asteroid",
        },
        cwd=tmp_path,
    )


@pytest.fixture(scope="module", autouse=True)
def shims() -> None:
    apply_shims()


def _check(task: str, items: list[str], used: tuple[str, ...], tmp_path: Path, local_rank: int | None = None) -> None:
    """The check of a task's data, on its config with ``items`` filled in."""
    name = next(short for short, downstream in WITH_CONFIG.items() if downstream == task)
    pairs = [item.removeprefix("config.downstream_expert.").partition("=") for item in items]
    given = {key: yaml.safe_load(value) for key, _, value in pairs}
    config = yaml.safe_load(shipped(f"downstream_configs/{name}.yaml").read_text())
    values = changed(config["downstream_expert"], given)
    args = Namespace(downstream=task, device="cuda", expdir=str(tmp_path), local_rank=local_rank)
    taskdata_superb.complete(args, Section("x.yaml", values, "downstream_expert", tmp_path), used)


DAMAGE = [
    ("speech_commands", "test/bed/a.wav", "x", "test/bed: expected folders of the test set's classes, yes, no"),
    ("speech_commands", "test/yes/b c.wav", "x", "test/yes/b c.wav: a blank in a clip's name ends it in s3prl's pred"),
    ("fluent_commands", "data/valid_data.csv", "path,action\nx.wav,fly\n", "line 2: no object and location"),
    (
        "fluent_commands",
        "data/test_data.csv",
        "path,action,object,location\nwavs/speakers/a/test0.wav,fly,heat,none\n",
        "line 2: action 'fly' is none of train_data.csv's",
    ),
    ("fluent_commands", "data/test_data.csv", "path,action,object,location\ngone.wav,a,b,c\n", "gone.wav: no such"),
    ("fluent_commands", "data/train_data.csv", "path,action,object,location\nx.wav,a,b,c,\n", "line 2: more cells"),
    ("fluent_commands", "data/train_data.csv", "path,action,object,location\n", "lists no utterance"),
    ("sv_voxceleb1", "pairs.txt", "\n", "line 1: expected `1|0 CLIP CLIP`, found ''"),
    ("sv_voxceleb1", "pairs.txt", "2 a b\n", "line 1: expected `1|0 CLIP CLIP`"),
    ("sv_voxceleb1", "pairs.txt", "1 a.wav b.wav\n", "line 1: a.wav: no such file below"),
    ("sv_voxceleb1", "dev/wav", "", "holds no clips (links to folders are not followed)"),
    ("diarization", "dev/wav.scp", "mix0 a.wav\nmix1 cat x.wav | \n", "line 2: a command, which s3prl would run"),
    ("quesst14_dtw", "scoring/language_key_dev.lst", "one two three\n", "line 1: expected `CLIP LANGUAGE`"),
    ("quesst14_dtw", "scoring/language_key_dev.lst", "q/gone.wav nnenglish\n", "gone.wav: no such file below"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "file", "text", "message"), DAMAGE)
def test_what_a_corpus_lacks_is_named(tmp_path: Path, task: str, file: str, text: str, message: str) -> None:
    items = CORPORA[task](tmp_path / task)
    _check(task, items, ("dev",), tmp_path)
    path = tmp_path / task / file
    if text:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    else:  # the folder is one of links
        path.rename(tmp_path / "elsewhere")
        path.mkdir()
        for speaker in (tmp_path / "elsewhere").iterdir():
            (path / speaker.name).symlink_to(speaker)
    with pytest.raises(EkdError, match=re.escape(message)):
        _check(task, items, ("dev",), tmp_path)


def test_a_keyword_training_that_could_not_begin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3prl leaves out a batch that is not full, and would look for one without end."""
    items, root = CORPORA["speech_commands"](tmp_path / "ks"), tmp_path / "ks" / "train"
    noise = root / NOISE / "noise.wav"
    there = [file for file in root.glob("*/*.wav") if split_of(file.name) == "train" and file != noise]
    count = len(there) + 1
    size = "config.downstream_expert.datarc.batch_size"
    _check("speech_commands", [*items, f"{size}={count}"], ("train",), tmp_path)
    too_large = [*items, f"{size}={count + 1}"]
    with pytest.raises(EkdError, match=rf"datarc.batch_size: {count + 1}: .* {count} clips to train on"):
        _check("speech_commands", too_large, ("train",), tmp_path)
    _check("speech_commands", too_large, ("test",), tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    _check("speech_commands", [*items, f"{size}={count}"], ("train",), tmp_path)  # the run is none of torchrun's
    share = (count + 1) // 2
    _check("speech_commands", [*items, f"{size}={share}"], ("train",), tmp_path, local_rank=0)
    with pytest.raises(EkdError, match=rf"{share + 1}: .* {share} clips to train on, for each of 2 processes"):
        _check("speech_commands", [*items, f"{size}={share + 1}"], ("train",), tmp_path, local_rank=0)
    noise.unlink()
    for file in there:
        file.unlink()
    with pytest.raises(EkdError, match="speech_commands_root: .*no clip of train by the hash of its name"):
        _check("speech_commands", items, ("train", "dev"), tmp_path)
    tone(noise, 1, 0.9)
    with pytest.raises(EkdError, match="speech_commands_root: .*noise.wav: 14400 samples long"):
        _check("speech_commands", items, ("dev",), tmp_path)


def test_keywords_come_in_the_order_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3prl takes a folder's order from the disk, and draws its clips from that."""
    items = CORPORA["speech_commands"](tmp_path / "ks")
    train, test = tmp_path / "ks" / "train", tmp_path / "ks" / "test"
    tone(train / NOISE / "another.wav", 21, 2.0)
    expert = importlib.import_module("s3prl.downstream.speech_commands.expert")
    dataset = importlib.import_module("s3prl.downstream.speech_commands.dataset")
    listdir, scandir = os.listdir, os.scandir

    @contextmanager
    def backwards(path: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        yield iter(sorted(scandir(path), key=lambda entry: entry.name, reverse=True))

    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    monkeypatch.setattr(os, "scandir", backwards)
    _check("speech_commands", items, ("train",), tmp_path)
    (tmp_path / "ks" / "test" / ".empty").mkdir()  # holds nothing that s3prl would read
    _check("speech_commands", items, ("train",), tmp_path)
    parts = expert.split_dataset(str(train))
    roots = {"speech_commands_root": str(train), "speech_commands_test_root": str(test)}
    lists = [dataset.SpeechCommandsDataset(part, **roots).data for part in parts]
    lists.append(dataset.SpeechCommandsTestingDataset(**roots).data)
    for found in lists:
        files = [str(file) for _, file in found]
        noises = [file for file in files if NOISE in file]
        assert noises == sorted(noises) and len(files) > 8
        assert [file for file in files if file not in noises] == sorted(set(files) - set(noises))


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("fluent_commands", "data/train_data.csv"),
        ("sv_voxceleb1", "pairs.txt"),
        ("quesst14_dtw", "scoring/language_key_dev.lst"),
    ],
)
def test_a_table_that_is_no_text_is_named(tmp_path: Path, task: str, file: str) -> None:
    items = CORPORA[task](tmp_path / task)
    (tmp_path / task / file).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EkdError, match=f"{file}: cannot be read as text"):
        _check(task, items, ("dev",), tmp_path)


@pytest.mark.parametrize(
    ("task", "file", "message"),
    [
        ("fluent_commands", "data/test_data.csv", "test_data.csv: no such table .*file_path"),
        ("diarization", "dev/reco2dur", "loaderrc.dev_dir: .*: a Kaldi folder without reco2dur"),
        ("quesst14_dtw", "scoring/language_key_eval.lst", "language_key_eval.lst: no such list"),
    ],
)
def test_a_file_that_is_not_there_is_named(tmp_path: Path, task: str, file: str, message: str) -> None:
    items = CORPORA[task](tmp_path / task)
    (tmp_path / task / file).unlink()
    with pytest.raises(EkdError, match=message):
        _check(task, items, ("dev", "test"), tmp_path)
    if task != "fluent_commands":  # of which s3prl reads all tables at once
        _check(task, items, ("test",) if "dev" in file else ("dev",), tmp_path)


def test_every_task_has_a_config_and_its_splits() -> None:
    paper = {WITH_CONFIG[name] for name in PAPER_TASKS}
    assert set(WITH_CONFIG.values()) - paper == set(taskdata_superb.SPLITS) == set(CORPORA)
    for short, task in WITH_CONFIG.items():
        assert downstream_arguments.find_task_config(None, task, Path("/")).endswith(f"downstream_configs/{short}.yaml")
