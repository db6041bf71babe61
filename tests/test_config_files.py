"""Which file -c and -g mean: one order of places, for pretraining, its variants and the four tasks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from s3prl_ekd.bridge import downstream_arguments, pretrain_configs
from s3prl_ekd.config_files import find_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.variants import find_model_config, packaged


@pytest.fixture
def s3prl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as s3prl's checkouts have it; the current folder is another one, and empty."""
    for name in ("pretrain/tera/config_runner.yaml", "pretrain/tera/mine.yaml", "downstream/asr/config.yaml"):
        file = tmp_path / "s3prl" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(pretrain_configs, "s3prl_folder", lambda: tmp_path / "s3prl")
    return tmp_path / "s3prl"


def test_here_then_the_folders_in_turn_then_with_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / name for name in ("here", "first", "second")]
    for folder in folders:
        folder.mkdir()
    monkeypatch.chdir(folders[0])
    monkeypatch.setenv("HOME", str(tmp_path))
    candidates = [folder / name for name in ("x", "x.yaml") for folder in folders]
    for later in reversed(candidates):  # each goes before all that were there
        later.touch()
        assert find_config("-c", "x", folders[1:]) == later
    for later in candidates:
        assert find_config("-c", "x", folders[1:]) == later
        later.unlink()
    (tmp_path / "at_home.yaml").touch()
    assert find_config("-c", "~/at_home.yaml", []) == tmp_path / "at_home.yaml"
    (tmp_path / "first/x.yaml.yaml").touch()
    for wrong in ("x", "./x", "x.yaml"):  # no folder is a file, and only a bare name gets an ending
        with pytest.raises(EkdError, match=f"^-c {re.escape(wrong)}: no such config file, said the hint$"):
            find_config("-c", wrong, folders, ", said the hint")


def test_pretraining(s3prl: Path) -> None:
    find, tera = pretrain_configs.find, s3prl / "pretrain/tera"
    for name in (
        None,
        "config_runner.yaml",
        "config_runner",
        "pretrain/ekd/config_runner.yaml",
        "ekd/config_runner.yaml",
    ):
        assert find("-c", name) == packaged("config_runner.yaml"), name
    for name in ("average", "variants/average.yaml", "./pretrain/ekd/variants/average.yaml"):
        assert find("-g", name) == find_model_config(name) == packaged("variants/average.yaml")
    for name in (None, "config_runner.yaml", "pretrain/tera/config_runner.yaml"):
        assert find("-c", name, "tera") == tera / "config_runner.yaml"
    assert find("-g", "mine", "tera") == tera / "mine.yaml"
    with pytest.raises(
        EkdError, match="-g FILE is missing: the installed s3prl ships no pretrain/tera/config_model.yaml"
    ):
        find("-g", None, "tera")
    Path("config_runner.yaml").touch()
    assert find("-c", "config_runner.yaml") == Path("config_runner.yaml").resolve()
    assert find("-c", None) == packaged("config_runner.yaml")  # only what is named is looked for here


def test_the_four_tasks(s3prl: Path) -> None:
    def find(value: str | None, task: str = "ctc") -> Path:
        return Path(downstream_arguments.find_task_config(value, task, s3prl))

    (shipped,) = {
        find(None).parent,
        find("pr.yaml").parent,
        find("pr").parent,
        find("downstream_configs/pr.yaml").parent,
    }
    assert shipped.name == "downstream_configs"
    assert find("downstream/ctc/libriphone.yaml") == shipped / "pr.yaml"  # what the wheel of s3prl lacks
    assert find("downstream/asr/config.yaml", "asr") == s3prl / "downstream/asr/config.yaml"
    assert find(None, "asr") == shipped / "asr.yaml"
    Path("pr.yaml").touch()
    assert find("pr.yaml") == find("pr") == Path("pr.yaml").resolve()
    assert find(None) == shipped / "pr.yaml"
    here = Path("downstream/ctc/config.yaml")
    here.parent.mkdir(parents=True)
    here.touch()
    assert find(None) == here.resolve()  # as in s3prl's own folder
    with pytest.raises(EkdError, match="^-c downstream/quesst14/config.yaml: no such config file$"):
        find(None, "quesst14")
