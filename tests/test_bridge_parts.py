"""The bridge's parts without a real command: checkpoints, arguments, task data, the PR corpus, shipped files."""

from __future__ import annotations

import argparse
import errno
import io
import math
import os
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import bridge_corpora
import pytest
import torch
import yaml

from s3prl_ekd.bridge import arguments, checkpoints, interrupts, taskdata
from s3prl_ekd.compat.modules import ModuleProxy, ours
from s3prl_ekd.errors import EkdError


def state(step: int) -> dict:
    return {"Step": step, "Args": Namespace(upstream="tera"), "Config": {}, "Optimizer": {}}


# --------------------------------------------------------------------------------------------------- checkpoints


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    keeper, path = checkpoints.Keeper(), tmp_path / "states-1.ckpt"
    keeper.save(state(1), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle|local object"):
        keeper.save({"x": lambda: None}, path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["states-1.ckpt"]


class SmallDisk(io.FileIO):
    """A file on a disk with room for 100 kB."""

    def write(self, data: bytes) -> int:
        if self.tell() + len(data) > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_full_disk_is_one_line_and_a_bug_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, path = checkpoints.Keeper(), tmp_path / "states-2.ckpt"
    monkeypatch.setattr(checkpoints, "open", SmallDisk, raising=False)
    with pytest.raises(EkdError, match=r"states-2.ckpt: the checkpoint could not be written \(No space left on device"):
        keeper.save({str(index): torch.zeros(5_000) for index in range(9)}, path)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr(torch, "save", lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        keeper.save(state(2), path)


def test_the_old_checkpoint_goes_only_after_the_new_is_complete(tmp_path: Path) -> None:
    keeper = checkpoints.Keeper()
    keeper.save(state(1), tmp_path / "states-1.ckpt")
    keeper.remove(tmp_path / "states-1.ckpt")  # max_keep: 1 removes before it writes
    assert (tmp_path / "states-1.ckpt").exists()
    keeper.save(state(2), tmp_path / "dev-best.ckpt")
    assert (tmp_path / "states-1.ckpt").exists()
    keeper.save(state(2), tmp_path / "states-2.ckpt")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["dev-best.ckpt", "states-2.ckpt"]
    keeper.remove(tmp_path / "states-2.ckpt")  # resumed: the same name is written again
    keeper.save(state(2), tmp_path / "states-2.ckpt")
    assert (tmp_path / "states-2.ckpt").exists()


def test_newest_goes_by_step_and_skips_the_unreadable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step, name in ((90, "states-90.ckpt"), (100, "states-epoch-2.ckpt")):
        torch.save(state(step), tmp_path / name)
    assert checkpoints.newest(tmp_path, checkpoints.read).name == "states-epoch-2.ckpt"
    whole = (tmp_path / "states-90.ckpt").read_bytes()
    (tmp_path / "states-110.ckpt").write_bytes(whole[: len(whole) // 2])
    assert checkpoints.newest(tmp_path, checkpoints.read).name == "states-epoch-2.ckpt"
    assert "states-110.ckpt: cannot be read (cut short" in caplog.text
    assert checkpoints.newest(tmp_path / "none", checkpoints.read) is None


def test_one_folder_is_one_run(tmp_path: Path) -> None:
    """Neither a new run beside an old one's checkpoints, nor a step back that the later ones would undo."""
    checkpoints.check_unused(tmp_path / "nowhere")
    checkpoints.check_unused(tmp_path)
    for name, step in (("states-4.ckpt", 4), ("states-8.ckpt", 8), ("states-epoch-1.ckpt", 8)):
        torch.save(state(step), tmp_path / name)
    with pytest.raises(EkdError, match=r"holds states-epoch-1.ckpt of an earlier run; go on with it \(-a\)"):
        checkpoints.check_unused(tmp_path)
    for name in ("states-8.ckpt", "states-epoch-1.ckpt"):
        checkpoints.check_last(tmp_path / name, checkpoints.read)
    with pytest.raises(EkdError, match=r"-e .*states-4.ckpt: is of step 4, and states-\S+ of step 8 beside it"):
        checkpoints.check_last(tmp_path / "states-4.ckpt", checkpoints.read)


@pytest.mark.parametrize("content,words", [(b"", "empty"), (b"hello", "cannot be read"), (None, "no such checkpoint")])
def test_unreadable_checkpoints_are_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "states-1.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(checkpoints.CheckpointError, match=words) as caught:
        checkpoints.read(path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_kind_says_so(tmp_path: Path) -> None:
    torch.save(state(1), tmp_path / "a.ckpt")
    with pytest.raises(EkdError, match="not a checkpoint of s3prl's downstream runner: it has no 'Downstream'"):
        checkpoints.read_runner(tmp_path / "a.ckpt", ("Args", "Downstream"), "s3prl's downstream runner")


def test_a_missing_best_checkpoint_names_what_is_there(tmp_path: Path) -> None:
    missing = tmp_path / "dev-clean-best.ckpt"
    for files, end in (([], "experiment folder$"), (["states-9.ckpt"], "; that folder holds states-9.ckpt$")):
        for name in files:
            torch.save(state(9), tmp_path / name)
        with pytest.raises(EkdError, match=f"-e {missing}: no such checkpoint or .*{end}"):
            checkpoints.resume_from(None, False, str(missing), checkpoints.read)


def test_sweep_removes_only_what_dead_processes_left(tmp_path: Path) -> None:
    mine, dead = tmp_path / f".states-1.ckpt.tmp-{os.getpid()}", tmp_path / ".states-1.ckpt.tmp-4194305"
    for path in (mine, dead):
        path.touch()
    checkpoints.sweep(tmp_path)
    assert mine.exists() and not dead.exists()


def test_the_scaler_takes_up_a_waiting_state(monkeypatch: pytest.MonkeyPatch) -> None:
    from s3prl_ekd.bridge import scaler

    monkeypatch.setattr(torch.amp.GradScaler, "is_enabled", lambda self: True)
    taken = []
    monkeypatch.setattr(torch.amp.GradScaler, "load_state_dict", lambda self, given: taken.append(given))
    scaler.load_state_on_create({"scale": 4.0})
    made = scaler.TrackedGradScaler()
    assert scaler.current_scaler() is made and taken == [{"scale": 4.0}]
    scaler.TrackedGradScaler()
    assert len(taken) == 1
    del made


# ----------------------------------------------------------------------------------------------------- arguments


def test_the_hook_tells_given_from_default(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    parser = arguments.hooked_argparse(lambda args, explicit: seen.append((args, explicit))).ArgumentParser()
    parser.add_argument("-n", "--name")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("--seed", default=1337, type=int)
    monkeypatch.setattr(sys, "argv", ["x", "-n", "a", "--flag"])
    args = parser.parse_args()
    assert vars(args) == {"name": "a", "device": "cuda", "flag": True, "seed": 1337}
    assert seen == [(args, {"name", "flag"})]
    assert isinstance(parser, argparse.ArgumentParser)


@pytest.mark.parametrize(
    "argv,env,expected",
    [
        (["-m", "train", "--local-rank=1"], None, (["-m", "train"], 1)),
        (["--local_rank", "0", "-a"], None, (["-a"], 0)),
        (["-a"], "3", (["-a"], 3)),
        (["-a"], None, (["-a"], None)),
    ],
)
def test_local_rank(monkeypatch: pytest.MonkeyPatch, argv: list, env: str | None, expected: tuple) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if env is not None:
        monkeypatch.setenv("LOCAL_RANK", env)
    assert arguments.take_local_rank(argv) == expected


@pytest.mark.parametrize("argv", [["--device", "cpu"], ["--device=cpu"], ["--dev", "cpu"], ["--de=cpu"]])
def test_cpu_hides_the_gpu(monkeypatch: pytest.MonkeyPatch, argv: list) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    arguments.hide_gpu(["--device", "cuda"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    arguments.hide_gpu(argv)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("text", ["config.a", "config.a=b=c", "runner.a=1", "config=1"])
def test_overrides_that_s3prl_drops_or_crashes_on(text: str) -> None:
    with pytest.raises(EkdError, match="^-o "):
        arguments.check_override(text)
    arguments.check_override("config.a.b=1,,args.c='x'")


YAML_ONLY = ["[false]", "true", "null", "[dev, test]", "[1e3, dev]", "[/a/b]", "[a b]", "~", "[.inf]", "010"]


@pytest.mark.parametrize("value", YAML_ONLY)
def test_an_override_that_only_yaml_understands_would_become_a_string(value: str) -> None:
    with pytest.raises(EkdError) as caught:
        arguments.check_override(f"config.a.b=1,,config.c={value}")
    assert str(caught.value).startswith(f"-o 'config.c={value}': s3prl reads values as Python, and this would stay a")


AS_MEANT = ["[False]", "dev", "dev-clean", "1e-3", "2*10", "[2*10]", "/a/b.pt", "'true'", "{'a': 1}", "", "None"]
AS_MEANT += ["[int(1e3), 2]", "float('inf')", "[i*2 for i in range(3)]", "2001-13-45", "0b_", "a: b: c"]


@pytest.mark.parametrize("value", AS_MEANT)
def test_an_override_that_s3prl_reads_as_it_is_meant(value: str) -> None:
    arguments.check_override(f"config.a.b={value}")


def test_a_proxy_changes_one_name_for_its_holder_alone() -> None:
    proxy = ModuleProxy(math, pi=3)
    assert proxy.pi == 3 and proxy.e == math.e and math.pi > 3.1
    with pytest.raises(AttributeError):
        _ = proxy.nothing


# --------------------------------------------------------------------------------------------------------- ending


def test_a_workers_error_is_cut_to_its_last_line() -> None:
    text = "Caught AudioError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\n"
    error = EkdError(text + "s3prl_ekd.audio.AudioError: a.flac: the audio file is empty (0 bytes)\n")
    assert interrupts.one_line(error) == "a.flac: the audio file is empty (0 bytes)"


def test_bugs_keep_their_traceback() -> None:
    run = interrupts.Run([])
    run._listen = lambda: None  # leave pytest's own signal handlers

    def bug() -> None:
        raise KeyError("a real one")

    with pytest.raises(KeyError):
        run.execute(bug)


def test_an_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    run = interrupts.Run([])
    run._listen = lambda: None

    def body() -> None:
        raise EkdError("-k x: no such\n checkpoint")

    assert run.execute(body) == 2
    assert capsys.readouterr().err == "error: -k x: no such checkpoint\n"


# ------------------------------------------------------------------------------------------------- PR, SID, files


class Words:
    """s3prl's word tokenizer, written again: <pad> 0, <eos> 1, <unk> 2, then the list; <eos> ends a sequence."""

    def __init__(self, symbols: list[str]) -> None:
        self._vocab2idx = {symbol: index for index, symbol in enumerate(["<pad>", "<eos>", "<unk>", *symbols])}

    def encode(self, text: str) -> list[int]:
        return [self._vocab2idx.get(word, 2) for word in text.split(" ")] + [1]


@pytest.fixture(scope="module")
def libri(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return bridge_corpora.librispeech(tmp_path_factory.mktemp("libri"))


def phones() -> list[str]:
    return (ours("resources") / "phoneme.txt").read_text().split()


def dataset(libri: dict[str, Path], bucket: int = 1, **changed: object) -> object:
    from s3prl_ekd.compat.libriphone import LibriPhoneDataset

    given = {"path": str(libri["root"]), "lexicon": [str(libri["lexicon"])], "train": [], "num_workers": 0} | changed
    return LibriPhoneDataset(["train-clean-100"], Words(phones()), bucket, **given)


def test_phone_labels_equal_a_naive_reading(libri: dict[str, Path]) -> None:
    tokenizer, expected = Words(phones()), {}
    for table in libri["root"].rglob("train-clean-100/**/*.trans.txt"):
        for line in table.read_text().splitlines():
            name, *words = line.split()
            spelled = " ".join(bridge_corpora.LEXICON[word] for word in words)  # "ONE" has a second line, left aside
            expected[name] = tokenizer.encode(spelled)
    found = dataset(libri)
    assert {file.stem: text for file, text in (found[i] for i in range(len(found)))} == expected
    lengths = [len(found[i][1]) for i in range(len(found))]
    assert lengths == sorted(lengths, reverse=True)


def test_speakers_behind_links_are_trained_on(libri: dict[str, Path], tmp_path: Path) -> None:
    """`prepare` counts them, and so must training. Neither takes hidden folders, nor .FLAC for PR."""
    expected = {file.name: text for file, text in (dataset(libri)[i] for i in range(6))}
    split = tmp_path / "LibriSpeech" / "train-clean-100"
    split.mkdir(parents=True)
    whole = libri["root"] / split.name
    (split / "10").symlink_to(whole / "10")
    (split / "again").symlink_to(whole / "10")  # a second way to the same clips
    (split / ".snapshot").symlink_to(whole)
    shutil.copytree(whole / "10", split / "11")
    for file in (split / "11").rglob("*.flac"):
        file.rename(file.with_suffix(".FLAC"))
    found = dataset(libri | {"root": split.parent})
    assert {file.name: text for file, text in (found[i] for i in range(len(found)))} == expected
    assert len(found) == 6
    (split / "10").unlink()
    (split / "again").unlink()
    with pytest.raises(EkdError, match=r"train-clean-100: no \*\.flac file below this folder"):
        dataset(libri | {"root": split.parent})
    with pytest.raises(EkdError, match="corpus: .*train-clean-100: no such folder"):
        dataset(libri | {"root": tmp_path})


def test_a_lexicon_may_begin_with_a_byte_order_mark(libri: dict[str, Path], tmp_path: Path) -> None:
    marked = tmp_path / "lexicon.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + libri["lexicon"].read_bytes())
    assert [dataset(libri | {"lexicon": marked})[i] for i in range(6)] == [dataset(libri)[i] for i in range(6)]


def test_buckets_are_neighbours_and_never_run_over_the_end(libri: dict[str, Path]) -> None:
    single = [dataset(libri)[i] for i in range(6)]
    pairs = dataset(libri, bucket=2)
    assert [pairs[i] for i in (0, 3, 5)] == [single[0:2], single[3:5], single[4:6]]
    for size in (7, 16):
        assert all(dataset(libri, bucket=size)[i] == single for i in range(6))


def test_missing_words_phones_and_transcripts_are_named(libri: dict[str, Path], tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("ONE\tW AH1 N\n")
    with pytest.raises(EkdError, match="trans.txt: .*the word 'TWO' is in no lexicon"):
        dataset(libri, lexicon=[str(short)])
    short.write_text("ONE\tW XX N\nTWO\tT\nTHREE\tR\nFOUR\tF\n")
    with pytest.raises(EkdError, match="'ONE': the phone 'XX' is not in the vocabulary"):
        dataset(libri, lexicon=[str(short)])
    with pytest.raises(EkdError, match="nowhere.txt: cannot be read"):
        dataset(libri, lexicon=[str(tmp_path / "nowhere.txt")])
    bridge_corpora.tone(tmp_path / "train-clean-100/1/1/1-1-0000.flac", 0)
    with pytest.raises(EkdError, match="1-1.trans.txt: cannot be read"):
        dataset(libri, path=str(tmp_path))
    (tmp_path / "train-clean-100/1/1/1-1.trans.txt").write_text("1-1-0001 ONE\n")
    with pytest.raises(EkdError, match="no line for 1-1-0000.flac"):
        dataset(libri, path=str(tmp_path))


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
    symbols = phones()
    assert len(symbols) == 71 and symbols[:2] == ["SIL", "SPN"] and symbols[2:] == sorted(set(symbols[2:]))
    rows = [line.split(" ") for line in (ours("resources") / "char.dict").read_text().splitlines()]
    counts = [int(count) for _, count in rows]
    assert "".join(symbol for symbol, _ in rows) == "|ETAONIHSRDLUMCWFGYPBVK'XJQZ"
    assert counts == sorted(counts, reverse=True) and min(counts) > 0


def test_the_four_configs_hold_s3prls_recipe() -> None:
    found = {name: yaml.safe_load((ours("downstream_configs") / f"{name}.yaml").read_text()) for name in
             ("pr", "sid", "er", "asr")}  # fmt: skip
    steps = {name: config["runner"]["total_steps"] for name, config in found.items()}
    assert steps == {"pr": 100_000, "sid": 200_000, "er": 30_000, "asr": 200_000}
    rates = {name: config["optimizer"]["lr"] for name, config in found.items()}
    assert rates == {"pr": 1e-2, "sid": 1e-4, "er": 1e-4, "asr": 1e-4}
    weight = found["asr"]["downstream_expert"]["datarc"]["decoder_args"]["unk_weight"]
    assert weight == -math.inf  # a number, where s3prl has a string that it evaluates and fails on


def test_a_placeholder_path_is_named_with_its_key(tmp_path: Path) -> None:
    for task, name in (("ctc", "pr"), ("voxceleb1", "sid"), ("emotion", "er"), ("asr", "asr")):
        config = yaml.safe_load((ours("downstream_configs") / f"{name}.yaml").read_text())
        args = SimpleNamespace(downstream=task, mode="train", evaluate_split="test", expdir=str(tmp_path))
        with pytest.raises(EkdError, match=rf"{name}.yaml: downstream_expert\.\S+: /path/to/\S+: no such .*-o config"):
            taskdata.complete(args, config, source=f"{name}.yaml", s3prl=tmp_path)
