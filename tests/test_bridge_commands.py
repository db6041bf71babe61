"""The two console commands as a user runs them: from an empty folder, on tiny made audio, on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bridge_corpora import iemocap, librispeech, overrides, tera, voxceleb
from console import BIN, check_mistakes, command, environment, forked

from s3prl_ekd.bridge import checkpoints
from s3prl_ekd.compat.modules import s3prl_folder
from s3prl_ekd.shipped import shipped

pytestmark = pytest.mark.slow
CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    root = tmp_path_factory.mktemp("corpora")
    libri = librispeech(root / "libri")
    return {"ctc": libri, "asr": libri, "voxceleb1": voxceleb(root / "vox"), "emotion": iemocap(root / "iem")}


def package_files() -> set[Path]:
    return {path for path in s3prl_folder().rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("task", ["ctc", "voxceleb1", "emotion", "asr"])
def test_train_then_evaluate(corpora: dict, tmp_path: Path, task: str) -> None:
    before, run = package_files(), command if task == "ctc" else forked
    train = ("-m", "train", "-n", "x [1]", "-u", "fbank", "-d", task, *CPU, "-o", overrides(task, corpora[task]))
    done = run("run_downstream.py", *train, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "result" / "downstream" / "x [1]"
    assert [path.name for path in folder.glob("states-*")] == ["states-2.ckpt"]  # max_keep: 1

    split = "test-clean" if task == "asr" else "test"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    best = folder / "states-2.ckpt"
    done = run("run_downstream.py", "-m", "evaluate", "-e", best, "-t", split, *CPU, cwd=elsewhere)
    assert done.returncode == 0, done.stderr[-2000:]
    hypotheses = {
        "ctc": "test-hyp.ark",
        "voxceleb1": "test_predict.txt",
        "emotion": "test_fold1_predict.txt",
        "asr": "test-clean-noLM-hyp.ark",
    }
    assert (folder / hypotheses[task]).is_file()
    assert not list(elsewhere.iterdir())
    assert package_files() == before


def test_cached_states_repeat_a_run_bit_for_bit(corpora: dict, tmp_path: Path) -> None:
    """Filling a cache and reading it train the same weights; testing a checkpoint reads it too, from any folder."""
    options = overrides("emotion", corpora["emotion"], steps=6) + ",,config.runner.cache_states=states"
    weights = []
    for name in ("filling", "full"):
        train = ("-m", "train", "-n", name, "-u", "fbank", "-d", "emotion", *CPU, "-o", options)
        done = forked("run_downstream.py", *train, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "[ekd] hidden states are stored in" in done.stderr and "clips are encoded one by one" in done.stderr
        folder = tmp_path / "result" / "downstream" / name
        state = checkpoints.read(folder / "states-6.ckpt")
        weights.append({**state["Downstream"], **state["Featurizer"]})
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "states").rglob("*.npy")}
        if name == "filling":
            assert len(kept) > 1
            before = kept
    assert weights[0].keys() == weights[1].keys()
    assert all(value.equal(weights[1][key]) for key, value in weights[0].items())
    assert before.items() <= kept.items()  # nothing was written a second time
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = forked("run_downstream.py", "-m", "evaluate", "-e", folder / "states-6.ckpt", "-t", "test", *CPU,
                   cwd=elsewhere)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(elsewhere.iterdir())


def test_a_downstream_run_goes_on_at_another_rate_and_in_its_own_folder(corpora: dict, tmp_path: Path) -> None:
    train = ("-m", "train", "-n", "x", "-u", "fbank", "-d", "emotion", *CPU)
    options = overrides("emotion", corpora["emotion"])
    done = forked("run_downstream.py", *train, "-o", options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    again = f"{options},,config.runner.total_steps=4,,config.optimizer.lr=0.5"
    base = " ".join(train)
    other_optimizer = f"{again},,config.optimizer.torch_optim_name='SGD'"
    mistakes = {
        f"{base} -a -o {other_optimizer}": "torch_optim_name: a resumed run keeps",
        f"{base} -e result/downstream/x -p elsewhere -o {again}": "-p: elsewhere is not the folder of result/",
        f"{base} -o {again}": "x: holds states-2.ckpt of an earlier run; resume that run (-a)",
    }
    check_mistakes("downstream", mistakes, tmp_path)
    assert not (tmp_path / "elsewhere").exists()
    done = forked("run_downstream.py", *train, "-a", "-o", again, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    state = checkpoints.read(tmp_path / "result/downstream/x/states-4.ckpt")
    assert [group["lr"] for group in state["Optimizer"]["param_groups"]] == [0.5]
    files = set((tmp_path / "result/downstream/x").iterdir())
    done = forked("run_downstream.py", *train, "-a", "--device", "cuda:99", cwd=tmp_path)
    assert done.returncode == 0 and "Load" not in done.stdout, done.stderr[-2000:]
    said = "result/downstream/x/states-4.ckpt: finished at step 4; nothing to do (more steps: -o config.runner.total"
    assert said in done.stderr and set((tmp_path / "result/downstream/x").iterdir()) == files


def test_pretrain_tera_resumes_past_a_broken_checkpoint(corpora: dict, tmp_path: Path) -> None:
    runner, model = tera(tmp_path, corpora["ctc"])
    work = tmp_path / "work"
    work.mkdir()
    start = ("-u", "tera", "-n", "t", "-c", "../runner.yaml", "-g", "../model.yaml", *CPU)
    done = command("run_pretrain.py", *start, cwd=work)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = work / "result" / "pretrain" / "t"
    assert {path.name for path in folder.iterdir() if path.suffix != ".vm" and "tfevents" not in path.name} == {
        ".run.lock",
        "config_runner.yaml",
        "config_model.yaml",
        "states-epoch-1.ckpt",
    }
    whole = (folder / "states-epoch-1.ckpt").read_bytes()
    (folder / "states-9.ckpt").write_bytes(whole[:-2000])
    more = ("-a", "-o", "config.runner.total_steps=5,,config.runner.max_keep=9")
    done = command("run_pretrain.py", *start, *more, cwd=work)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "skipped: result/pretrain/t/states-9.ckpt: cannot be read" in done.stderr
    assert "states-epoch-1.ckpt" in done.stdout  # resumed from
    last = checkpoints.read(folder / "states-epoch-1.ckpt")
    assert last["Step"] == 4 and last["Optimizer"]["param_groups"][0]["schedule"].t_total == 5
    done = command("run_pretrain.py", *start, "-a", "-o", "config.runner.total_steps=5", cwd=work)
    assert done.returncode == 0 and "finished at step 5; nothing to do" in done.stderr, done.stderr[-2000:]


def test_help_is_s3prls_own(tmp_path: Path) -> None:
    done = command("run_pretrain.py", "-h", cwd=tmp_path)
    assert done.returncode == 0 and "--auto_resume" in done.stdout and "ekd" in done.stdout
    done = command("run_downstream.py", "-h", cwd=tmp_path)
    assert done.returncode == 0 and "ekd_student" in done.stdout and "--upstream_layer_selection" in done.stdout
    assert not list(tmp_path.iterdir())


MISTAKES = {
    "downstream": {
        "-m train -u fbnk -d ctc -n x": "-u fbnk: s3prl's hub has no such upstream; did you mean fbank",
        "-m train -u fbank -d pr -n x": "-d pr: s3prl calls this task -d ctc",
        "-m train -u fbank -d emotoin -n x": "-d emotoin: s3prl has no such downstream task; did you mean emotion",
        "-m train -u fbank -d ctc": "-n NAME is missing",
        "-m train -d ctc -n x": "-u UPSTREAM is missing",
        "-m train -u fbank -n x": "-d TASK is missing",
        "-m train -u ekd_student -k none.ckpt -d ctc -n x": "-k none.ckpt: no such checkpoint",
        "-m train -u fbank -d ctc -n x -c none.yaml": "-c none.yaml: no such config file",
        "-m train -u fbank -d ctc -n x -o runner=1": "-o 'runner=1': the key must start with config.",
        "-m train -u fbank -d ctc -n x -o config.runner.total_stpes=1": "runner.total_stpes: unknown key; did you mean",
        "-m evaluate -e none.ckpt": "-e none.ckpt: no such checkpoint or experiment folder",
        "-m evaluate -e text.ckpt": "text.ckpt: cannot be read",
        "-m evaluate -d ctc -u fbank -n x": "-m evaluate -d ctc: no trained model",
        "-m inference -d ctc -u fbank -n x": "-m inference: s3prl's ctc has no such mode, of these tasks only asr",
        "-m train -u fbank -d ctc -n used": "used: holds states-7.ckpt of an earlier run; resume that run (-a)",
        "-m train -u fbank -d ctc -n x -o config.runner.total_steps.x=1": "total_steps.x=1': the configuration has no",
        "-m train -u fbank -d ctc -n x --seed -1": "--seed -1: expected a whole number from 0 to 4294967295",
        "-m train -u fbank -d ctc -n x": "corpus.lexicon: /path/to/",
    },
    "pretrain": {
        "-u ekd": "-n NAME is missing",
        "-n x": "-u TASK is missing",
        "-u ekd -n x --seed 4294967296": "--seed 4294967296: expected a whole number from 0 to 4294967295",
        "-u ekd -n x -o args.seed=None": "--seed None: expected a whole number",
        "-u ekd -n x -o args.device='cdua'": "--device cdua: is no device",
        "-u ekd -n x -o args.device=None": "--device None: is no device",
        "-u ekd -n x -o args.upstream_config=5": "-g 5: no such config file (variants by name: ",
        "-u tera -n x": "-c FILE is missing",
        "-u tera -n x -c none.yaml": "-c none.yaml: no such config file",
        "-u tera -e none.ckpt": "-e none.ckpt: no such checkpoint or experiment folder",
        "-u tera -e text.ckpt": "text.ckpt: cannot be read",
    },
}


@pytest.mark.parametrize("name", ["downstream", "pretrain"])
def test_the_module_runs_where_the_scripts_folder_is_unknown(tmp_path: Path, name: str) -> None:
    words = [sys.executable, "-m", "s3prl_ekd.bridge.launch", f"run_{name}", "-h"]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--upstream" in done.stdout


@pytest.mark.parametrize("name", ["downstream", "pretrain"])
def test_mistakes_are_one_line_each(tmp_path: Path, name: str) -> None:
    if name == "pretrain" and (s3prl_folder() / "pretrain/tera/config_runner.yaml").is_file():
        pytest.skip("a git checkout of s3prl: it has the config that the wheel lacks")
    (tmp_path / "text.ckpt").write_text("hello")
    used = tmp_path / "result/downstream/used"
    used.mkdir(parents=True)
    (used / "states-7.ckpt").touch()
    check_mistakes(name, MISTAKES[name], tmp_path)


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ("run_pretrain.py -u ekd", "pretrain/ekd/config_runner.yaml"),
        ("run_downstream.py -m train -u fbank -d ctc", "downstream_configs/pr.yaml"),
    ],
)
def test_a_config_is_read_in_utf_8_whatever_the_locale(tmp_path: Path, words: str, start: str) -> None:
    """s3prl reads it in the terminal's encoding: ISO-8859-1 on clusters with LANG=en_US, which makes other paths."""
    text = shipped(start).read_text(encoding="utf-8")
    (tmp_path / "c.yaml").write_text(f"{text}\nrunnér: 1\n", encoding="utf-8")
    name, *arguments = words.split()
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = command(name, *arguments, "-n", "x", "-c", "c.yaml", *CPU, cwd=tmp_path, **ascii_only)
    assert done.returncode == 2 and r"c.yaml: runn\xe9r: unknown key" in done.stderr, done.stderr[-2000:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_in_one_line(corpora: dict, tmp_path: Path, number: signal.Signals) -> None:
    text = overrides("emotion", corpora["emotion"], steps=100_000) + ",,config.runner.save_step=5"
    args = ["-m", "train", "-n", "x", "-u", "fbank", "-d", "emotion", *CPU, "-o", text]
    with open(tmp_path / "err", "w") as err:
        run = subprocess.Popen(
            [sys.executable, str(BIN / "run_downstream.py"), *args],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=err,
        )
        folder = tmp_path / "result" / "downstream" / "x"
        deadline = time.time() + 120
        while not list(folder.glob("states-*.ckpt")) and run.poll() is None and time.time() < deadline:
            time.sleep(0.2)
        run.send_signal(number)
        assert run.wait(60) == 128 + number
    text = (tmp_path / "err").read_text()
    assert "Traceback" not in text
    last = text.strip().splitlines()[-1]
    assert last.startswith(f"stopped by {number.name}; continue with: run_downstream.py -m train -n x")
    assert last.endswith(" -a")
    (saved,) = folder.glob("states-*.ckpt")
    assert checkpoints.read(saved)["Step"] % 5 == 0


def test_torchrun_on_two_processes(corpora: dict, tmp_path: Path) -> None:
    args = ("-m", "train", "-n", "x", "-u", "fbank", "-d", "emotion", *CPU, "--backend", "gloo")
    text = overrides("emotion", corpora["emotion"])
    launcher = ("--nproc_per_node", 2, "--master_port", 29_500 + os.getpid() % 1000, BIN / "run_downstream.py")
    done = command("torchrun", *launcher, *args, "-o", text, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    saved = checkpoints.read(tmp_path / "result/downstream/x/states-2.ckpt")
    assert saved["WorldSize"] == 2


def test_a_git_checkout_of_s3prl(corpora: dict, tmp_path: Path) -> None:
    checkout = os.environ.get("S3PRL_CHECKOUT")
    if not checkout:
        pytest.skip("S3PRL_CHECKOUT names no git checkout of s3prl")
    data = corpora["ctc"]
    train = ("-m", "train", "-n", "x", "-u", "fbank", "-d", "ctc", "-c", "downstream/ctc/libriphone.yaml", *CPU)
    done = command("run_downstream.py", *train, "-o", overrides("ctc", data), cwd=tmp_path, PYTHONPATH=checkout)
    assert done.returncode == 0, done.stderr[-2000:]
    settings = {
        "pretrain_expert.datarc.libri_root": data["root"],
        "pretrain_expert.datarc.file_path": data["tables"],
        "pretrain_expert.datarc.sets": ["train-clean-100"],
        "pretrain_expert.datarc.max_timestep": 0,
        "pretrain_expert.datarc.num_workers": 0,
        "pretrain_expert.datarc.train_batch_size": 2,
        "runner.total_steps": 2,
        "runner.log_step": 1,
        "runner.save_step": 1,
        "runner.gradient_accumulate_steps": 1,
    }
    text = ",,".join(f"config.{key}={value}" for key, value in settings.items())
    done = command("run_pretrain.py", "-u", "tera", "-n", "t", *CPU, "-o", text, cwd=tmp_path, PYTHONPATH=checkout)
    assert done.returncode == 0, done.stderr[-2000:]
