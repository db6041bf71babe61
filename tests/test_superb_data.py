"""What the data of SUPERB's other tasks must hold, named before a run; mixtures (SE, SS) in test_superb_mixtures.py."""

from __future__ import annotations

import importlib
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from bridge_corpora import tone
from superb_corpora import CORPORA, check_data

from s3prl_ekd.bridge import downstream_arguments, taskdata, taskdata_superb
from s3prl_ekd.bridge.sorted_path import SortedPath
from s3prl_ekd.bridge.taskdata_mixtures import SOURCES
from s3prl_ekd.compat.shims import apply_shims
from s3prl_ekd.corpora.keyword_folders import NOISE, split_of
from s3prl_ekd.errors import EkdError
from s3prl_ekd.shipped import shipped
from s3prl_ekd.task_names import PAPER_TASKS, WITH_CONFIG


@pytest.fixture(scope="module", autouse=True)
def shims() -> None:
    apply_shims()


DAMAGE = [
    ("speech_commands", "test/bed/a.wav", "x", "test/bed: expected folders of the test set's classes, yes, no"),
    ("speech_commands", "test/yes/b c.wav", "x", "test/yes/b c.wav: s3prl's prediction file would cut this name at"),
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
    ("enhancement_stft", "test/noisy/wav.scp", "u0 a b.wav\n", "line 1: expected `UTTERANCE FILE`, found 'u0 a b.wav'"),
    ("enhancement_stft", "test/noisy/wav.scp", "u0 x.wav\nu1 x.wav\n", "noisy/wav.scp: line 1: x.wav: no such file"),
    ("enhancement_stft", "test/noisy/wav.scp", "\n", "wav.scp: line 1: expected `UTTERANCE FILE`, found ''"),
    ("separation_stft", "dev/s1/wav.scp", f"u0 {__file__}\nu1 x\n", "test_superb_data.py: cannot be read as audio"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "file", "text", "message"), DAMAGE)
def test_what_a_corpus_lacks_is_named(tmp_path: Path, task: str, file: str, text: str, message: str) -> None:
    items = CORPORA[task](tmp_path / task)
    used = ("train", "dev", "test") if task in SOURCES else ("dev",)
    check_data(task, items, used, tmp_path)
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
        check_data(task, items, used, tmp_path)


def test_a_keyword_training_that_could_not_begin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3prl leaves out a batch that is not full, and would look for one without end."""
    items, root = CORPORA["speech_commands"](tmp_path / "ks"), tmp_path / "ks" / "train"
    noise = root / NOISE / "noise.wav"
    there = [file for file in root.glob("*/*.wav") if split_of(file.name) == "train" and file != noise]
    count = len(there) + 1
    size = "config.downstream_expert.datarc.batch_size"
    check_data("speech_commands", [*items, f"{size}={count}"], ("train",), tmp_path)
    too_large = [*items, f"{size}={count + 1}"]
    with pytest.raises(EkdError, match=rf"datarc.batch_size: {count + 1}: .* {count} clips to train on"):
        check_data("speech_commands", too_large, ("train",), tmp_path)
    check_data("speech_commands", too_large, ("test",), tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_data("speech_commands", [*items, f"{size}={count}"], ("train",), tmp_path)  # the run is none of torchrun's
    share = (count + 1) // 2
    check_data("speech_commands", [*items, f"{size}={share}"], ("train",), tmp_path, local_rank=0)
    with pytest.raises(EkdError, match=rf"{share + 1}: .* {share} clips to train on, for each of 2 processes"):
        check_data("speech_commands", [*items, f"{size}={share + 1}"], ("train",), tmp_path, local_rank=0)
    noise.unlink()
    for file in there:
        file.unlink()
    with pytest.raises(EkdError, match="speech_commands_root: .*no clip of train by the hash of its name"):
        check_data("speech_commands", items, ("train", "dev"), tmp_path)
    tone(noise, 1, 0.9)
    with pytest.raises(EkdError, match="speech_commands_root: .*noise.wav: 14400 samples long"):
        check_data("speech_commands", items, ("dev",), tmp_path)


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
    check_data("speech_commands", items, ("train",), tmp_path)
    (tmp_path / "ks" / "test" / ".empty").mkdir()  # holds nothing that s3prl would read
    check_data("speech_commands", items, ("train",), tmp_path)
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
        check_data(task, items, ("dev",), tmp_path)


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
        check_data(task, items, ("dev", "test"), tmp_path)
    if task != "fluent_commands":  # of which s3prl reads all tables at once
        check_data(task, items, ("test",) if "dev" in file else ("dev",), tmp_path)


def test_asvs_lengths_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut by a signal or a full disk, they ended every later start in torch's error on a zip archive."""
    dataset = importlib.import_module("s3prl.downstream.sv_voxceleb1.dataset")
    for name in ("__file__", "torch"):
        monkeypatch.setattr(dataset, name, getattr(dataset, name))  # as they were, once the test is over
    check_data("sv_voxceleb1", CORPORA["sv_voxceleb1"](tmp_path / "corpus"), ("train",), tmp_path)

    class Cut:
        def __reduce__(self) -> str:
            raise KeyboardInterrupt

    file = tmp_path / "lengths.pt"
    with pytest.raises(KeyboardInterrupt):
        dataset.torch.save([["clip"], [Cut()]], str(file))
    assert not file.exists()
    dataset.torch.save([["clip"], [2]], str(file))
    assert torch.load(file) == [["clip"], [2]]


def test_what_slot_filling_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3prl ends in a FileNotFoundError, at the first dev evaluation in an AssertionError."""
    module, root = "s3prl.downstream.ctc.corpus.snips", tmp_path / "SNIPS"
    corpus = {"name": "snips", "path": str(root), "train": ["train"], "dev": ["valid"], "test": ["test"]}
    text = {"mode": "character-slot", "slots_file": str(root / "slots.txt")}
    text["vocab_file"] = "downstream/ctc/vocab/character.txt"  # which a checkout has too
    expert = {"corpus": corpus, "text": text}
    config = {"runner": {"eval_dataloaders": ["dev"]}, "optimizer": {}, "downstream_expert": expert}

    def complete() -> None:
        args = Namespace(downstream="ctc", mode="train", expdir=str(tmp_path))
        taskdata.complete(args, config, source="x.yaml", s3prl=tmp_path)

    monkeypatch.setitem(sys.modules, module, None)  # s3prl is the wheel
    with pytest.raises(EkdError, match="corpus.name: snips: needs a git checkout of s3prl first on PYTHONPATH"):
        complete()
    corpora = ModuleType(module)
    monkeypatch.setitem(sys.modules, module, corpora)
    text["vocab_file"] = str(shipped("resources/phoneme.txt"))
    for file, message in (
        ("slots.txt", "text.slots_file: .*/SNIPS/slots.txt: no such file"),
        ("all.iob.snips.txt", "corpus.path: .*/SNIPS/all.iob.snips.txt: no such file"),
        ("train/Ivy-0.wav", "corpus.train: .*/SNIPS/train: holds no .wav"),
        ("valid/Amy-0.wav", "corpus.dev: .*/SNIPS/valid: holds no .wav"),
    ):
        with pytest.raises(EkdError, match=message):
            complete()
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    complete()  # test is not read in training
    assert corpora.Path is SortedPath  # as of KS: its clips are listed by name, not as the disk has them


@pytest.mark.parametrize(
    ("task", "package", "install"),
    [
        ("enhancement_stft", "h5py", "'s3prl-ekd[superb_sg]'"),
        ("separation_stft", "h5py", "'s3prl-ekd[superb_sg]'"),
        ("diarization", "h5py", "'s3prl-ekd[superb]'"),
        ("quesst14_dtw", "dtw", "'s3prl-ekd[superb]'"),
        ("fluent_commands", "pandas", "pandas"),
    ],
)
def test_a_package_that_a_task_needs_comes_with_its_extra(
    task: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the extra at once: SE's and SS's code asks for h5py, which is SD's too, before it asks for asteroid."""
    for name in [name for name in sys.modules if name.startswith(f"s3prl.downstream.{task}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EkdError, match=re.escape(f"code for it needs {package}: pip install {install}")):
        downstream_arguments.import_expert(task, torch.device("cpu"))


def test_every_task_has_a_config_and_its_splits() -> None:
    paper = {WITH_CONFIG[name] for name in PAPER_TASKS}
    assert set(WITH_CONFIG.values()) - paper == set(taskdata_superb.SPLITS) == set(CORPORA)
    for short, task in WITH_CONFIG.items():
        assert downstream_arguments.find_task_config(None, task, Path("/")).endswith(f"downstream_configs/{short}.yaml")
