"""The tasks' data and what is shipped with them: speaker lists, symbols, recipes, and paths still to be filled in."""

from __future__ import annotations

import copy
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import bridge_corpora
import pytest
import yaml
from dotted import changed

from s3prl_ekd.bridge import pretrain_configs, taskdata
from s3prl_ekd.compat.shims import apply_shims
from s3prl_ekd.errors import EkdError
from s3prl_ekd.shipped import shipped
from s3prl_ekd.task_names import DOWNSTREAM


@pytest.fixture(scope="module", autouse=True)
def shims() -> None:
    apply_shims()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Our four configs with every place filled in, by our name of the task."""
    return bridge_corpora.all_tasks(tmp_path_factory.mktemp("corpora"))


def complete(name: str, config: dict[str, Any], expdir: Path, mode: str = "train", split: str = "test") -> None:
    args = SimpleNamespace(downstream=DOWNSTREAM[name], mode=mode, evaluate_split=split, expdir=str(expdir))
    taskdata.complete(args, config, source="x.yaml", s3prl=expdir)


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
    found = {name: bridge_corpora.task_config(name) for name in ("pr", "sid", "er", "asr")}
    steps = {name: config["runner"]["total_steps"] for name, config in found.items()}
    assert steps == {"pr": 100_000, "sid": 200_000, "er": 30_000, "asr": 200_000}
    rates = {name: config["optimizer"]["lr"] for name, config in found.items()}
    assert rates == {"pr": 1e-2, "sid": 1e-4, "er": 1e-4, "asr": 1e-4}
    weight = found["asr"]["downstream_expert"]["datarc"]["decoder_args"]["unk_weight"]
    assert weight == -math.inf  # a number, where s3prl has a string that it evaluates and fails on


def test_a_placeholder_path_is_named_with_its_key(tmp_path: Path) -> None:
    for task, name in (("ctc", "pr"), ("voxceleb1", "sid"), ("emotion", "er"), ("asr", "asr")):
        config = bridge_corpora.task_config(name)
        args = SimpleNamespace(downstream=task, mode="train", evaluate_split="test", expdir=str(tmp_path))
        with pytest.raises(EkdError, match=rf"{name}.yaml: downstream_expert\.\S+: /path/to/\S+: no such .*-o config"):
            taskdata.complete(args, config, source=f"{name}.yaml", s3prl=tmp_path)


def test_relative_paths_hold_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go into the checkpoint, which is tested or goes on from anywhere."""
    monkeypatch.chdir(tmp_path)
    data = bridge_corpora.voxceleb(tmp_path)
    (tmp_path / "link").symlink_to(data["root"])
    config = bridge_corpora.task_config("sid")
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


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("pr", "downstream_expert.text", None, "downstream_expert.text: the section is missing"),
        ("pr", "downstream_expert.text.mode", "words", "text.mode: 'words': s3prl has no such tokenizer; PR's is word"),
        ("pr", "downstream_expert.text.mode", "subword", "text.mode: 'subword': s3prl's tokenizer needs sentencepiece"),
        ("pr", "downstream_expert.corpus.path", None, "corpus.path: is missing; give it with -o config.downstream_exp"),
        ("pr", "downstream_expert.corpus.lexicon", "a.txt", "corpus.lexicon: 'a.txt': expected a list of files"),
        ("pr", "downstream_expert.corpus.train", "dev-clean", "train: 'dev-clean': expected a list of split names"),
        ("pr", "downstream_expert.corpus.dev", ["dev-x"], "corpus.dev: ROOT/libri/LibriSpeech/dev-x: no such folder"),
        ("asr", "downstream_expert.datarc.train", ["a"], "ROOT/libri/len_for_bucket/a.csv: no such table of lengths ("),
        ("er", "downstream_expert.datarc.test_fold", "fold1/../x", "test_fold: fold1/../x: expected the name of a"),
        ("er", "downstream_expert.datarc.test_fold", "fold7", "fold7: ROOT/iem/meta_data/Session7/train_meta_data"),
        ("er", "downstream_expert.datarc.root", "ROOT", "train_meta_data.json: Session1/sentences/wav/Ses01F/Ses01"),
        ("sid", "downstream_expert.datarc.file_path", "ROOT/vox", "datarc.file_path: ROOT/vox: has no */wav/ folder"),
        ("sid", "optimizer", 3, "x.yaml: the section 'optimizer' is missing"),
    ],
)
def test_what_the_data_lack_is_named(
    filled: dict, tmp_path: Path, name: str, key: str, value: object, message: str
) -> None:
    root = str(Path(filled["sid"]["downstream_expert"]["datarc"]["meta_data"]).parent.parent)
    complete(name, copy.deepcopy(filled[name]), tmp_path)
    config = changed(filled[name], {key: value.replace("ROOT", root) if isinstance(value, str) else value})
    with pytest.raises(EkdError, match=re.escape(message.replace("ROOT", root))):
        complete(name, config, tmp_path)


@pytest.mark.parametrize(
    ("name", "key", "split"),
    [("pr", "corpus", "test"), ("asr", "datarc", "dev-clean"), ("asr", "datarc", "test-other")],
)
def test_a_training_needs_every_split_that_it_evaluates_on(
    filled: dict, tmp_path: Path, name: str, key: str, split: str
) -> None:
    """They are read thousands of steps after the start; of an evaluation, only its own."""
    config = copy.deepcopy(filled[name])
    section = config["downstream_expert"][key]
    section[split] = ["none"]
    config["runner"]["eval_dataloaders"] = ["dev" if name == "pr" else "train"]
    complete(name, copy.deepcopy(config), tmp_path)
    config["runner"]["eval_dataloaders"].append(split)
    with pytest.raises(EkdError, match=r"none(\.csv)?: no such "):
        complete(name, config, tmp_path)
    complete(name, copy.deepcopy(config), tmp_path, "evaluate", "train")
    with pytest.raises(EkdError, match=r"none(\.csv)?: no such "):
        complete(name, copy.deepcopy(config), tmp_path, "evaluate", split)
    for wrong in ("dev", ["nothing"], None):  # said by check_runner
        complete(name, config | {"runner": {"eval_dataloaders": wrong}}, tmp_path)


DEV = "LibriSpeech/dev-clean/11/1/11-1"  # of the tiny LibriSpeech


@pytest.mark.parametrize(
    ("file", "text", "asr", "pr"),
    [
        ("len_for_bucket/dev-clean.csv", "path,length\na.flac,1\n", "not a length CSV with the columns", None),
        ("len_for_bucket/dev-clean.csv", "", "not a length CSV with the columns", None),
        ("len_for_bucket/dev-clean.csv", "file_path,length\n", "no utterance in it has a line in its .trans", None),
        ("len_for_bucket/dev-clean.csv", "file_path,length\na.flac,1\n", "a.flac: expected .../SPK/CHAP/", None),
        (f"{DEV}.trans.txt", None, "cannot be read (No such file", "cannot be read (No such file"),
        (f"{DEV}.trans.txt", b"11-1-0000 \xff\n", "is not a UTF-8 text file", "is not a UTF-8 text file"),
        (f"{DEV}.trans.txt", "11-1-0000 ONE\n\n11-1-0001 ONE\n", "line 2 is empty", "no line for 11-1-0002.flac"),
        (f"{DEV}.trans.txt", "x ONE\n", "no utterance in it has a line in its .trans", "no line for 11-1-0000.flac"),
        (f"{DEV}.trans.txt", "11-1-0000 FIVE\n", None, "the word 'FIVE' is in no lexicon of"),
        (f"{DEV}-0002.flac", None, "11-1-0002.flac: no such file below", None),
    ],
)
def test_speech_that_a_training_evaluates_on_is_read_ahead(
    tmp_path: Path, file: str, text: str | bytes | None, asr: str | None, pr: str | None
) -> None:
    """s3prl comes to it thousands of steps after the start, and to most of this with a traceback."""
    filled = bridge_corpora.all_tasks(tmp_path)
    damaged = tmp_path / "libri" / file
    if text is None:
        damaged.unlink()
    else:
        damaged.write_bytes(text if isinstance(text, bytes) else text.encode())
    for name, message in (("asr", asr), ("pr", pr)):
        config = filled[name]
        config["runner"]["eval_dataloaders"] = ["train"]
        complete(name, copy.deepcopy(config), tmp_path)
        config["runner"]["eval_dataloaders"] = ["dev-clean" if name == "asr" else "dev"]
        if message is None:
            complete(name, config, tmp_path)
        else:
            with pytest.raises(EkdError, match=re.escape(message)):
                complete(name, config, tmp_path)


CHECKOUTS_CORPUS = """
from pathlib import Path

LISTED = []

class LibriPhoneDataset:
    def __init__(self, split, tokenizer, bucket_size, path, **kwargs):
        LISTED.append([file.name for name in split for file in Path(path, name).rglob("*.flac")])
"""


def test_the_pr_code_of_a_checkout_lists_clips_by_name(
    filled: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """s3prl's own takes the order of the disk, from which a seed then draws."""
    corpus: Any = ModuleType("libriphone")
    exec(CHECKOUTS_CORPUS, corpus.__dict__)
    monkeypatch.setitem(sys.modules, "s3prl.downstream.ctc.corpus.libriphone", corpus)
    config = copy.deepcopy(filled["pr"])
    found = Path(config["downstream_expert"]["corpus"]["path"])
    names = [f"1-2-{number:04}.flac" for number in range(4)]
    disk = [found / "x" / name for name in (names[2], names[0], names[3], names[1])]
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: iter([type(self)(file) for file in disk]))
    complete("pr", config, tmp_path)
    assert corpus.LISTED and all(listed == names for listed in corpus.LISTED)


def test_what_a_config_may_leave_out(filled: dict, tmp_path: Path) -> None:
    """ASR's symbols are ours, ER's fold is s3prl's first or what -v says; of another corpus of ctc nothing is asked."""
    config = copy.deepcopy(filled["asr"])
    del config["downstream_expert"]["datarc"]["dict_path"]
    complete("asr", config, tmp_path)
    assert config["downstream_expert"]["datarc"]["dict_path"] == str(shipped("resources/char.dict"))
    config = copy.deepcopy(filled["er"])
    del config["downstream_expert"]["datarc"]["test_fold"]
    complete("er", config, tmp_path)
    args = SimpleNamespace(downstream="emotion", mode="train", evaluate_split="test", downstream_variant="fold2")
    with pytest.raises(EkdError, match="test_fold: fold2: .*/Session2/train_meta_data.json: no such file"):
        taskdata.complete(args, config, source="x.yaml", s3prl=tmp_path)
    for name, asks in (("LibriPhone", True), ("sbcsae", False)):
        config = copy.deepcopy(filled["pr"])
        config["downstream_expert"]["corpus"] |= {"name": name, "path": "/none"}
        if asks:
            with pytest.raises(EkdError, match="corpus.path: /none: no such folder"):
                complete("pr", config, tmp_path)
        else:
            complete("pr", config, tmp_path)


def test_an_inference_of_asr_needs_no_tables(filled: dict, tmp_path: Path) -> None:
    config = copy.deepcopy(filled["asr"])
    config["downstream_expert"]["datarc"]["train"] = ["none"]
    complete("asr", config, tmp_path, "inference")


def test_a_language_model_is_there_before_asr_begins(
    filled: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """s3prl builds its decoder for every run: a NameError without its packages, C++'s own errors without the files."""
    config = copy.deepcopy(filled["asr"])
    decoder = config["downstream_expert"]["datarc"]["decoder_args"]
    decoder["decoder_type"] = "kenlm"
    for missing in ("flashlight", "kenlm"):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, missing=missing: None if name == missing else name)
        with pytest.raises(EkdError, match=rf"decoder_args\.decoder_type: kenlm: .* needs {missing}: pip install f"):
            complete("asr", config, tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.chdir(tmp_path)
    for key, placeholder in (("kenlm_model", "/path/to/4-gram.arpa"), ("lexicon", "/path/to/librispeech_lexicon.lst")):
        with pytest.raises(EkdError, match=rf"datarc\.decoder_args\.{key}: {placeholder}: no such file; give it with"):
            complete("asr", config, tmp_path)
        (tmp_path / key).touch()
        decoder[key] = key
    complete("asr", config, tmp_path)
    assert decoder["lexicon"] == str(tmp_path / "lexicon")  # s3prl's script runs in another folder
    decoder |= {"lexicon": None, "unit_lm": True}
    complete("asr", config, tmp_path)


NEUTRAL = {"path": "here.wav", "label": "neu"}  # an utterance of ER


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected labels and meta_data: "),
        ({"meta_data": [{"label": "neu"}]}, "expected labels and meta_data: "),
        ({"labels": {}}, "expected labels and meta_data: "),
        ({"meta_data": []}, "lists no utterance"),
        ({"meta_data": [{"path": 5, "label": "neu"}]}, "expected labels and meta_data: "),
        ({"meta_data": [NEUTRAL]}, "labels: expected {name: 0, name: 1, ...}, found None"),
        ({"meta_data": [NEUTRAL], "labels": ["neu"]}, "labels: expected {name: 0, name: 1, ...}, found ['neu']"),
        ({"meta_data": [NEUTRAL], "labels": {"neu": 0, "hap": 2}}, "labels: expected {name: 0, name: 1, ...}, found {"),
        ({"meta_data": [NEUTRAL], "labels": {"hap": 0}}, "here.wav: its label 'neu' is none of the labels hap"),
        ({"meta_data": [NEUTRAL], "labels": {"hap": 0, "neu": 1}}, "labels: other ones than in TRAIN"),
    ],
)
def test_a_fold_whose_tables_cannot_be_used(filled: dict, tmp_path: Path, content: object, message: str) -> None:
    config = copy.deepcopy(filled["er"])
    data = config["downstream_expert"]["datarc"]
    old = Path(data["meta_data"], "Session1")
    for part in ("train", "test"):
        table = tmp_path / "Session2" / f"{part}_meta_data.json"
        table.parent.mkdir(exist_ok=True)
        table.write_text((old / table.name).read_text())
    data |= {"meta_data": str(tmp_path), "test_fold": "fold2"}
    complete("er", config, tmp_path)
    table.write_text(json.dumps(content))  # the second of them
    train = str(table.with_name("train_meta_data.json"))
    with pytest.raises(EkdError, match=re.escape(f"{table}: {message.replace('TRAIN', train)}")):
        complete("er", config, tmp_path)


@pytest.mark.parametrize(("split", "size"), [("train", "batch_size"), ("dev-clean", "eval_batch_size")])
def test_asr_of_one_utterance_needs_batches_of_one(tmp_path: Path, split: str, size: str) -> None:
    """s3prl's dataset was empty, and its loader ended in a traceback."""
    config = bridge_corpora.all_tasks(tmp_path)["asr"]
    config["runner"]["eval_dataloaders"] = ["dev-clean"]
    data = config["downstream_expert"]["datarc"]
    table = Path(data["bucket_file"], f"{data[split][0]}.csv")
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:2]))
    data[size] = 2
    with pytest.raises(EkdError, match=rf"datarc\.{size}: s3prl leaves out a last batch of one, and {split} has one"):
        complete("asr", copy.deepcopy(config), tmp_path)
    data[size] = 1
    complete("asr", config, tmp_path)


def test_er_needs_more_than_its_dev_set(tmp_path: Path) -> None:
    """A fifth of one is one."""
    config = bridge_corpora.all_tasks(tmp_path)["er"]
    table = Path(config["downstream_expert"]["datarc"]["meta_data"], "Session1", "train_meta_data.json")
    content = json.loads(table.read_text())
    for count in (1, 2):
        table.write_text(json.dumps(content | {"meta_data": content["meta_data"][:count]}))
        if count == 1:
            with pytest.raises(EkdError, match=rf"{table}: nothing is left to train on: with .*\.valid_ratio 0.2 all"):
                complete("er", copy.deepcopy(config), tmp_path)
            complete("er", copy.deepcopy(config), tmp_path, "evaluate")
    complete("er", config, tmp_path)


def test_a_split_file_without_a_test_part_is_enough_to_train(filled: dict, tmp_path: Path) -> None:
    config = copy.deepcopy(filled["sid"])
    data = config["downstream_expert"]["datarc"]
    lines = Path(data["meta_data"]).read_text().splitlines()
    for part, mode in (("3", "evaluate"), ("2", "train"), ("1", "train")):
        table = tmp_path / f"without_{part}.txt"
        table.write_text("\n".join(line for line in lines if line[0] != part))
        data["meta_data"] = str(table)
        if mode == "evaluate":
            complete("sid", config, tmp_path)
        with pytest.raises(EkdError, match=f"{table}: lists no utterance for "):
            complete("sid", config, tmp_path, mode)
