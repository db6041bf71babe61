"""link and unlink on a git checkout made of the installed s3prl; its stock scripts run when linked."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from bridge_corpora import iemocap, librispeech, overrides
from console import environment
from export_student import SMALL, write_student

from s3prl_ekd.bridge import link
from s3prl_ekd.cli import main
from s3prl_ekd.compat.modules import s3prl_folder
from s3prl_ekd.errors import EkdError
from s3prl_ekd.shipped import shipped
from s3prl_ekd.teachers.stand_ins import write_stand_ins

FILES = ("hub.py", "run_pretrain.py", "run_downstream.py", "upstream/__init__.py", "pretrain/__init__.py")


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(["git", *identity, *words], cwd=folder, text=True, capture_output=True, check=True)
    return done.stdout


def make_checkout(root: Path, whole: bool = False) -> Path:
    """A committed repository that holds s3prl's package: all of it, or the few files that link looks at."""
    package = root / "s3prl"
    if whole:
        shutil.copytree(s3prl_folder(), package, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        for name in FILES:
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(s3prl_folder() / name, package / name)
    if link.is_linked(package):
        pytest.skip("the s3prl of this environment is a linked checkout")
    (root / ".gitignore").write_text("__pycache__/\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "s3prl")
    return root


def content(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file() and ".git" not in p.parts}


def test_twice_is_once_and_unlink_restores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a checkout").mkdir()
    root = make_checkout(tmp_path / "a checkout")
    before = content(root)
    assert main(["link", str(root)]) == 0
    shown = capsys.readouterr().out
    assert f"cd '{root}/s3prl'\n" in shown and f"export PYTHONPATH='{root}' " in shown
    linked = content(root)
    assert (root / "s3prl/hub.py").read_text().startswith(link.BEGIN)
    task = shipped("pretrain/ekd")
    for file in task.rglob("*.yaml"):  # s3prl's script takes the first two for -c and -g
        assert (root / "s3prl/pretrain/ekd" / file.relative_to(task)).read_bytes() == file.read_bytes()
    assert link.link(root) == [] and content(root) == linked
    assert main(["unlink", str(root)]) == 0
    assert content(root) == before and git(root, "status", "--porcelain") == ""
    assert not (root / "s3prl/pretrain/ekd").exists() and not (root / "s3prl/upstream/ekd_student").exists()
    assert link.unlink(root) == ([], [])


def test_the_users_edits_stay(tmp_path: Path) -> None:
    root = make_checkout(tmp_path)
    link.link(root)
    hub, config = root / "s3prl/hub.py", root / "s3prl/pretrain/ekd/config_runner.yaml"
    hub.write_bytes(b"# mine\r\n" + hub.read_bytes() + b"mine = 1")
    config.write_text("mine: 1\n")
    assert link.link(root) == ["s3prl/hub.py"]  # the block goes back to the top, where it must stand
    assert config.read_text() == "mine: 1\n"
    _, kept = link.unlink(root)
    assert kept == ["s3prl/pretrain/ekd/config_runner.yaml"] and config.read_text() == "mine: 1\n"
    assert hub.read_bytes() == b"# mine\r\n" + git(root, "show", "HEAD:s3prl/hub.py").encode() + b"mine = 1"


def test_what_is_refused_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["link", str(tmp_path / "none")]) == 2
    assert "no git checkout of s3prl" in capsys.readouterr().err
    (tmp_path / "other/.git").mkdir(parents=True)
    assert main(["link", str(tmp_path / "other")]) == 2
    assert "no git checkout of s3prl (there is no s3prl/run_pretrain.py)" in capsys.readouterr().err
    root = make_checkout(tmp_path / "a")
    own = root / "s3prl/upstream/ekd_student"
    own.mkdir()
    before = content(root)
    with pytest.raises(EkdError, match="was not made by"):
        link.link(root)
    assert content(root) == before
    own.rmdir()
    hub = root / "s3prl/hub.py"
    text = hub.read_text()
    for alone in (link.BEGIN, link.END):
        hub.write_text(f"{text}{alone}\n")
        for act in (link.link, link.unlink):
            with pytest.raises(EkdError, match="without its partner"):
                act(root)
    hub.write_text(f"from __future__ import annotations\n{text}")
    before = content(root)
    with pytest.raises(EkdError, match=r"hub.py: not valid Python with our lines on top \(from __future__"):
        link.link(root)
    assert content(root) == before
    shutil.rmtree(root / ".git")
    with pytest.raises(EkdError, match=r"no \.git"):
        link.link(root)


@pytest.mark.parametrize("record", ["{", "[]", '{"/etc/hosts": "1"}', '{"../../hub.py": "1"}'])
def test_a_damaged_record_removes_nothing(tmp_path: Path, record: str) -> None:
    """A path in it that leads out of the folder, too: unlink takes away what it names."""
    root = make_checkout(tmp_path)
    link.link(root)
    (root / "s3prl/pretrain/ekd" / link.RECORD).write_text(record)
    before = content(root)
    for act in (link.link, link.unlink):
        with pytest.raises(EkdError, match=f"{link.RECORD}: is damaged; remove .*ekd by hand"):
            act(root)
        assert content(root) == before


def test_an_older_versions_files_are_renewed(tmp_path: Path) -> None:
    root = make_checkout(tmp_path)
    link.link(root)
    file = root / "s3prl/pretrain/ekd/pretrain_expert.py"
    record = file.parent / link.RECORD
    ours, known = file.read_bytes(), json.loads(record.read_text())
    file.write_text("older\n")
    record.write_text(json.dumps(known | {file.name: hashlib.sha256(b"older\n").hexdigest()}))
    assert link.link(root) == ["s3prl/pretrain/ekd/pretrain_expert.py"] and file.read_bytes() == ours
    cache = file.parent / "__pycache__"
    cache.mkdir()
    (cache / "a.pyc").touch()
    assert link.unlink(root)[1] == [] and not file.parent.exists()


@pytest.mark.slow
def test_the_stock_commands_run(tmp_path: Path) -> None:
    root = make_checkout(tmp_path / "checkout", whole=True)
    link.link(root)
    libri, iem = librispeech(tmp_path / "libri"), iemocap(tmp_path / "iem")
    teachers = write_stand_ins(tmp_path / "teachers")
    listed = [{"name": name, "source": str(path), "layers": [2, 4]} for name, path in teachers.items()]
    ekd = {"teachers": listed, "initialise_from": "hubert"}
    model = {"base": "config_model.yaml", "ekd": ekd, "student": SMALL}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(model))

    def stock(script: str, *words: object) -> str:
        command = [sys.executable, script, *map(str, words), "--device", "cpu"]
        # s3prl's downstream runner enters torch.cuda.device("cpu") where it sees a GPU, and fails
        env = environment(PYTHONPATH=str(root), CUDA_VISIBLE_DEVICES="")
        done = subprocess.run(command, cwd=root / "s3prl", env=env, text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    data = {"libri_root": libri["root"], "file_path": libri["tables"], "sets": ["train-clean-100"], "num_workers": 0}
    settings = {f"pretrain_expert.datarc.{key}": value for key, value in data.items()}
    settings |= {"pretrain_expert.datarc.train_batch_size": 2, "runner.total_steps": 2}
    settings |= {"runner.log_step": 1, "runner.save_step": 1}
    text = ",,".join(f"config.{key}={value}" for key, value in settings.items())
    pre, last = tmp_path / "pre", tmp_path / "pre/states-2.ckpt"
    stock("run_pretrain.py", "-u", "ekd", "-n", "x", "-p", pre, "-g", tmp_path / "model.yaml", "-o", text)
    with pytest.raises(AssertionError, match="error: -o upstream_config.: s3prl's own script drops such keys; use the"):
        stock("run_pretrain.py", "-u", "ekd", "-n", "y", "-p", tmp_path / "y", "-g", tmp_path / "model.yaml",
              "-o", f"{text},,upstream_config.student.layers=3")  # fmt: skip
    last.unlink()
    stock("run_pretrain.py", "-e", pre)  # from states-1; s3prl's script lets every argument of the checkpoint win
    assert last.is_file()

    config = shipped("downstream_configs") / "er.yaml"
    random = write_student(tmp_path / "states-10.ckpt")
    for name, checkpoint in (("a", random), ("b", last)):
        task = ("-m", "train", "-n", "x", "-p", tmp_path / name, "-d", "emotion", "-c", config)
        stock("run_downstream.py", *task, "-u", "ekd_student", "-k", checkpoint, "-o", overrides("emotion", iem))
        assert (tmp_path / name / "states-2.ckpt").is_file()
    link.unlink(root)
    assert git(root, "status", "--porcelain") == ""
