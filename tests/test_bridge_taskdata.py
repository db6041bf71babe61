"""The tasks' data and what is shipped with them: speaker lists, symbols, recipes, and paths still to be filled in."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import bridge_corpora
import pytest
import yaml

from s3prl_ekd.bridge import pretrain_configs, taskdata
from s3prl_ekd.errors import EkdError
from s3prl_ekd.shipped import shipped


def test_speaker_lists(tmp_path: Path) -> None:
    data = bridge_corpora.voxceleb(tmp_path)
    lists = taskdata.speaker_lists(data["root"], data["table"], "datarc")
    assert {split: len(files) for split, files in lists.items()} == {"train": 4, "dev": 2, "test": 2}
    assert all(Path(file).is_file() for files in lists.values() for file in files)
    for line, words in (
        ("1 id10001/none/00001.wav", "no such file in a"),
        ("4 id10001/video0/00001.wav", "expected '1|2|3"),
        ("1 id99999/video0/00001.wav", "id10001 to id11251"),
    ):
        table = tmp_path / "bad.txt"
        table.write_text(line + "\n")
        with pytest.raises(EkdError, match="bad.txt:?1?: .*" + words.replace("|", r"\|")):
            taskdata.speaker_lists(data["root"], table, "datarc")


def test_shipped_symbols() -> None:
    symbols = shipped("resources/phoneme.txt").read_text().split()
    assert len(symbols) == 71 and symbols[:2] == ["SIL", "SPN"] and symbols[2:] == sorted(set(symbols[2:]))
    rows = [line.split(" ") for line in shipped("resources/char.dict").read_text().splitlines()]
    counts = [int(count) for _, count in rows]
    assert "".join(symbol for symbol, _ in rows) == "|ETAONIHSRDLUMCWFGYPBVK'XJQZ"
    assert counts == sorted(counts, reverse=True) and min(counts) > 0


def test_the_four_configs_hold_s3prls_recipe() -> None:
    found = {name: yaml.safe_load(shipped(f"downstream_configs/{name}.yaml").read_text()) for name in
             ("pr", "sid", "er", "asr")}  # fmt: skip
    steps = {name: config["runner"]["total_steps"] for name, config in found.items()}
    assert steps == {"pr": 100_000, "sid": 200_000, "er": 30_000, "asr": 200_000}
    rates = {name: config["optimizer"]["lr"] for name, config in found.items()}
    assert rates == {"pr": 1e-2, "sid": 1e-4, "er": 1e-4, "asr": 1e-4}
    weight = found["asr"]["downstream_expert"]["datarc"]["decoder_args"]["unk_weight"]
    assert weight == -math.inf  # a number, where s3prl has a string that it evaluates and fails on


def test_a_placeholder_path_is_named_with_its_key(tmp_path: Path) -> None:
    for task, name in (("ctc", "pr"), ("voxceleb1", "sid"), ("emotion", "er"), ("asr", "asr")):
        config = yaml.safe_load(shipped(f"downstream_configs/{name}.yaml").read_text())
        args = SimpleNamespace(downstream=task, mode="train", evaluate_split="test", expdir=str(tmp_path))
        with pytest.raises(EkdError, match=rf"{name}.yaml: downstream_expert\.\S+: /path/to/\S+: no such .*-o config"):
            taskdata.complete(args, config, source=f"{name}.yaml", s3prl=tmp_path)


def test_relative_paths_hold_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go into the checkpoint, which is tested or goes on from anywhere."""
    monkeypatch.chdir(tmp_path)
    data = bridge_corpora.voxceleb(tmp_path)
    (tmp_path / "link").symlink_to(data["root"])
    config = yaml.safe_load(shipped("downstream_configs/sid.yaml").read_text())
    section = config["downstream_expert"]["datarc"]
    section |= {"file_path": str(tmp_path / "link"), "meta_data": str(data["table"].relative_to(tmp_path))}
    args = SimpleNamespace(downstream="voxceleb1", mode="train", evaluate_split="test", expdir=str(tmp_path / "x"))
    taskdata.complete(args, config, source="sid.yaml", s3prl=tmp_path)
    assert section["meta_data"] == str(data["table"].resolve())
    assert section["file_path"] == str(tmp_path / "link")  # as it was given, so that it can be made to point elsewhere
    monkeypatch.setenv("HOME", str(tmp_path))
    section["file_path"] = "~/link"
    taskdata.complete(args, config, source="sid.yaml", s3prl=tmp_path)
    assert section["file_path"] == str(tmp_path / "link")
    runner = yaml.safe_load(shipped("pretrain/ekd/config_runner.yaml").read_text())
    runner["pretrain_expert"]["datarc"] |= {"libri_root": "audio", "file_path": "../tables"}
    pretrain_configs.check_ours(runner, "runner.yaml")
    found = runner["pretrain_expert"]["datarc"]
    assert (found["libri_root"], found["file_path"]) == (f"{tmp_path}/audio", f"{tmp_path.parent}/tables")
