"""The configs of SUPERB's other tasks (KS, IC, ASV, SD, QbE, SF, SE, SS) before s3prl's experts read them.

Missing data is named. The paper's four are in ``taskdata.py``, SE and SS in ``taskdata_mixtures.py``. Slot filling is
s3prl's ctc, on a corpus whose code the registry's wheel leaves out.
"""

from __future__ import annotations

import importlib
import os
from argparse import Namespace
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from s3prl_ekd.bridge import ranks, taskdata_mixtures
from s3prl_ekd.bridge.checkpoints import AtomicCheckpoints
from s3prl_ekd.bridge.config_section import Section
from s3prl_ekd.bridge.sorted_path import list_by_name
from s3prl_ekd.bridge.text_table import lines_of
from s3prl_ekd.compat.modules import ModuleProxy
from s3prl_ekd.corpora.intent_tables import read_intents
from s3prl_ekd.corpora.keyword_folders import test_clips, training_clips
from s3prl_ekd.errors import EkdError

SPLITS = {
    "speech_commands": ["train", "dev", "test"],
    "fluent_commands": ["train", "dev", "test"],
    "sv_voxceleb1": ["train", "test"],  # s3prl's dev pass looks for the test pairs among dev's clips
    "diarization": ["train", "dev", "test"],
    "quesst14_dtw": ["dev", "test"],
    **{task: taskdata_mixtures.SPLITS for task in taskdata_mixtures.SOURCES},
}
"""s3prl's -d -> what ``-t`` and ``runner.eval_dataloaders`` may name."""
UNTRAINED = ("quesst14_dtw",)  # DTW on the upstream's states: there is no head to train
KALDI = ("segments", "utt2spk", "spk2utt", "reco2dur")


def complete(args: Namespace, expert: Section, used: Collection[str]) -> None:
    """Fill in and check ``downstream_expert`` of a task of :data:`SPLITS`, in place.

    Args:
        args: s3prl's arguments (``downstream``, ``device``, ``expdir``, ``local_rank`` are read).
        used: the splits that the run reads.

    Raises:
        EkdError: a section, folder or file is missing, or does not hold what s3prl's expert looks for.
    """
    if args.downstream == "speech_commands":
        _keywords(expert.section("datarc"), used, max(1, ranks.downstream_size(args)))
    elif args.downstream == "fluent_commands":
        _intents(expert.section("datarc"))
    elif args.downstream == "sv_voxceleb1":
        _verification(args, expert.section("datarc"))
    elif args.downstream == "diarization":
        _diarization(expert.section("loaderrc"), used)
    elif args.downstream in taskdata_mixtures.SOURCES:
        taskdata_mixtures.complete(args, expert, used)
    else:
        _queries(expert.section("datarc"), used)


def complete_slots(corpus: Section, text: Section, used: Iterable[str]) -> None:
    """Check what s3prl looks for in SF's SNIPS, of dev at its first evaluation alone.

    Args:
        corpus, text: the sections of ctc's ``downstream_expert``.
        used: the splits that the run reads.

    Raises:
        EkdError: it is not there, or s3prl lacks the corpus's code.
    """
    try:
        list_by_name("s3prl.downstream.ctc.corpus.snips")
    except ModuleNotFoundError as error:
        needs = "snips: needs a git checkout of s3prl first on PYTHONPATH; the wheel lacks the code of this corpus"
        raise EkdError(f"{corpus.source}: {corpus.path}.name: {needs}") from error
    slots = "-slot" in str(text.values.get("mode"))
    if slots:
        text.file("slots_file")
    root = corpus.folder("path")
    transcripts = root / ("all.iob.snips.txt" if slots else "all-trans.txt")
    if not transcripts.is_file():
        raise corpus.wrong("path", f"{transcripts}: no such file")
    for split in used:
        for name in corpus.split_names(split):
            if next((root / name).rglob("*.wav"), None) is None:
                raise corpus.wrong(split, f"{root / name}: holds no .wav")


def _keywords(data: Section, used: Collection[str], processes: int) -> None:
    root, test = data.folder("speech_commands_root"), data.folder("speech_commands_test_root")
    try:
        clips = training_clips(root)
    except EkdError as error:
        raise data.wrong("speech_commands_root", str(error)) from error
    counts = {split: len(clips[split]) + len(clips["noise"]) for split in ("train", "dev")}
    for split in counts.keys() & {*used}:
        if counts[split] == 0:
            raise data.wrong("speech_commands_root", f"{root}: no clip of {split} by the hash of its name")
    batch = data.values.get("batch_size")
    share = -(-counts["train"] // processes)
    if "train" in used and isinstance(batch, int) and share < batch:
        many = f"{share} clips to train on" + (f", for each of {processes} processes" if processes > 1 else "")
        raise data.wrong("batch_size", f"{batch}: s3prl leaves out a batch that is not full, and there are {many}")
    try:
        test_clips(test)
    except EkdError as error:
        raise data.wrong("speech_commands_test_root", str(error)) from error
    for name in ("expert", "dataset"):
        list_by_name(f"s3prl.downstream.speech_commands.{name}")


def _intents(data: Section) -> None:
    root = data.folder("file_path")
    try:
        read_intents(root)
    except EkdError as error:
        raise EkdError(f"{error} ({data.source}: {data.path}.file_path)") from error


def _verification(args: Namespace, data: Section) -> None:
    root, pairs = data.folder("file_path"), data.file("test_meta_data")
    data.values["train_meta_data"] = data.values["dev_meta_data"] = str(pairs)  # which s3prl reads and does not use
    for folder in (root / "dev" / "wav", root / "test" / "wav"):
        if not folder.is_dir():
            raise data.wrong("file_path", f"{folder}: no such folder")
    if not any(files for _, _, files in os.walk(root / "dev" / "wav")):  # as s3prl looks for them
        raise data.wrong("file_path", f"{root / 'dev' / 'wav'}: holds no clips (links to folders are not followed)")
    there: set[str] = set()  # a clip is in many pairs
    for number, line in enumerate(lines_of(pairs), start=1):
        fields = line.split()
        clips = fields[1:]
        if fields[:1] not in (["0"], ["1"]) or len(clips) != 2:
            raise EkdError(f"{pairs}: line {number}: expected `1|0 CLIP CLIP`, found {line!r}")
        for clip in clips:
            if clip not in there and not (root / "test" / "wav" / clip).is_file():
                raise EkdError(f"{pairs}: line {number}: {clip}: no such file below {root / 'test' / 'wav'}")
        there.update(clips)
    _keep_lengths_in(Path(args.expdir).resolve())
    _put_masks_on(args.device)


def _keep_lengths_in(expdir: Path) -> None:
    """Let ASV keep its clips' lengths with the run, and whole or not at all: a cut file would end every later start.

    s3prl keeps them inside its installed package, where a second corpus would get the first one's.
    """
    import torch

    dataset: Any = importlib.import_module("s3prl.downstream.sv_voxceleb1.dataset")
    dataset.__file__ = str(expdir / "dataset.py")
    dataset.torch = ModuleProxy(torch, save=AtomicCheckpoints().save)


def _put_masks_on(device: str) -> None:
    """Let ASV's expert run without a GPU: it says ``.cuda()`` to its attention mask, padded as (clips, frames)."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    class Mask(torch.Tensor):
        def cuda(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return self.as_subclass(torch.Tensor).to(device)

    def pad(sequences: list[torch.Tensor], batch_first: bool) -> torch.Tensor:
        padded = pad_sequence(sequences, batch_first)
        return padded.as_subclass(Mask) if padded.dim() == 2 else padded

    expert: Any = importlib.import_module("s3prl.downstream.sv_voxceleb1.expert")
    expert.pad_sequence = pad


def _diarization(loaders: Section, used: Collection[str]) -> None:
    for split in used:
        folder = loaders.folder(f"{split}_dir")
        missing = [name for name in KALDI if not (folder / name).is_file()]
        if missing:
            raise loaders.wrong(f"{split}_dir", f"{folder}: a Kaldi folder without {', '.join(missing)}")
        table = folder / "wav.scp"
        if not table.is_file() and not (folder / "wav").is_dir():
            raise loaders.wrong(f"{split}_dir", f"{folder}: has neither wav.scp nor wav/")
        for number, line in enumerate(lines_of(table) if table.is_file() else (), start=1):
            if line.rstrip().endswith("|"):
                raise EkdError(f"{table}: line {number}: a command, which s3prl would run; expected an audio file")


def _queries(data: Section, used: Collection[str]) -> None:
    root = data.folder("dataset_root")
    for name in ("utterances", *("eval" if split == "test" else split for split in used)):
        table = root / "scoring" / f"language_key_{name}.lst"
        if not table.is_file():
            raise data.wrong("dataset_root", f"{table}: no such list")
        for clip in _english(table):
            if not (root / clip).is_file():
                raise EkdError(f"{table}: {clip}: no such file below {root} ({data.path}.dataset_root)")


def _english(table: Path) -> Iterator[str]:
    """The clips of lines ``FOLDER/CLIP LANGUAGE`` that s3prl takes: English ones, without the first folder."""
    for number, line in enumerate(lines_of(table), start=1):
        fields = line.split()
        if len(fields) != 2:
            raise EkdError(f"{table}: line {number}: expected `CLIP LANGUAGE`, found {line!r}")
        if fields[1] == "nnenglish":
            yield fields[0].partition("/")[2] or fields[0]
