"""The configs of SUPERB's SE and SS before s3prl's experts read them: two tasks, one expert in two copies.

A split is a folder with one folder a condition (``noisy`` and ``clean``; ``mix_clean``, ``s1`` and ``s2``), each with a
Kaldi table ``wav.scp`` of the same utterances.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection
from pathlib import Path

from s3prl_ekd.audio import SAMPLE_RATE, audio_info
from s3prl_ekd.bridge import ranks
from s3prl_ekd.bridge.config_section import Section
from s3prl_ekd.bridge.text_table import lines_of
from s3prl_ekd.errors import EkdError, one_line

SOURCES = {"enhancement_stft": 1, "separation_stft": 2}
"""s3prl's -d -> signals that it takes out of one."""
CONVERTED = ("enhancement_stft",)
"""Of them, what reads clips of any rate."""
SPLITS = ["train", "dev", "test"]
CONDITIONS = ("s1", "s2", "noise", "mix_clean", "mix_both", "mix_single")
CHOICES = {"model": ("SepRNN",), "rnn": ("RNN", "LSTM", "GRU"), "non_linear": ("relu", "sigmoid", "tanh"),
           "loss_type": ("MSE", "SISDR"), "mask_type": ("AM", "PSM", "NPSM")}  # fmt: skip


def has_mixtures(task: str) -> bool:
    """Whether s3prl's -d is SE or SS, or its second version of one (``enhancement_stft2``)."""
    return task.removesuffix("2") in SOURCES


def complete(args: Namespace, expert: Section, used: Collection[str]) -> None:
    """Check ``downstream_expert`` of a task of :data:`SOURCES`; its expert reads all three splits' tables, always.

    Args:
        args: s3prl's arguments (``downstream``, ``device``, ``local_rank`` are read).
        used: the splits whose clips the run reads too.

    Raises:
        EkdError: a value that s3prl cannot take, a folder, table or clip that is missing, or several processes.
    """
    processes = ranks.downstream_size(args)
    if processes > 1:
        raise EkdError(
            f"-d {args.downstream}: s3prl gives each of {processes} processes the same batches; run it without torchrun"
        )
    data, loaders, model = (expert.section(name) for name in ("datarc", "loaderrc", "modelrc"))
    for key, choices in CHOICES.items():
        if model.get(key) not in choices:
            raise model.wrong(key, f"{model.get(key)!r}: expected {' or '.join(choices)}")
    if not 0 <= model.get("dropout") <= 1:
        raise model.wrong("dropout", f"{model.get('dropout')}: expected 0 to 1")
    _check_transform(data)
    if model.get("loss_type") == "SISDR" and not args.device.startswith("cuda"):
        raise model.wrong("loss_type", "SISDR: s3prl computes it on a GPU alone")
    if model.get("loss_type") == "SISDR" and data.get("window") != "hann":
        raise data.wrong("window", f"{data.get('window')!r}: s3prl's SISDR knows hann alone")
    if loaders.get("eval_batchsize") != 1:
        raise loaders.wrong("eval_batchsize", f"{loaders.get('eval_batchsize')}: s3prl scores one utterance at a time")
    conditions = _conditions(args.downstream, data)
    for split in SPLITS:
        for table, clips in _read_split(loaders, f"{split}_dir", conditions).items():
            if split in used:
                _check_clips(table, clips, args.downstream)


def _check_transform(data: Section) -> None:
    """What librosa needs of an STFT; it says so in the first batch."""
    from scipy.signal import get_window  # here, since it takes long to import and --help asks for this file's names

    window, length = data.get("window"), data.get("win_length")
    if length > data.get("n_fft"):
        raise data.wrong("win_length", f"{length}: more than n_fft, {data.get('n_fft')}")
    try:
        get_window(window, length)
    except ValueError as error:
        raise data.wrong("window", f"{window!r}: is no window of scipy's ({one_line(error)})") from error


def _conditions(task: str, data: Section) -> list[str]:
    """The folders of a split, the mixtures' first."""
    known = (*CONDITIONS, "noisy", "clean") if task == "enhancement_stft" else CONDITIONS
    found: list[str] = []
    for key, count in (("src", 1), ("tgt", SOURCES[task])):
        names = data.get(key)
        if not isinstance(names, list) or not {*names} <= {*known} or [len(names), len({*names})] != [count, count]:
            raise data.wrong(key, f"{names!r}: expected {count} of {', '.join(known)}, as a list")
        found += names
    if data.get("rate") != SAMPLE_RATE:
        raise data.wrong("rate", f"{data.get('rate')}: upstreams hear {SAMPLE_RATE} Hz")
    if data.get("num_speakers") != SOURCES[task]:
        raise data.wrong("num_speakers", f"{data.get('num_speakers')}: tgt names {SOURCES[task]}")
    return found


def _read_split(loaders: Section, key: str, conditions: list[str]) -> dict[Path, list[str]]:
    """Table -> its clips, line by line; a split's tables list the same utterances."""
    folder, clips, utterances = loaders.folder(key), {}, {}
    for condition in conditions:
        table = folder / condition / "wav.scp"
        if not table.is_file():
            raise loaders.wrong(key, f"{table}: no such table")
        rows = _read_table(table)
        utterances[condition], clips[table] = {name for name, _ in rows}, [clip for _, clip in rows]
    first, *others = conditions
    if not utterances[first]:
        raise EkdError(f"{folder / first / 'wav.scp'}: lists no utterance")
    for condition in others:
        odd = sorted(utterances[first] ^ utterances[condition])
        if odd:
            lacking = next(name for name in (first, condition) if odd[0] not in utterances[name])
            raise EkdError(f"{folder / lacking / 'wav.scp'}: no utterance {odd[0]}, which {folder} has elsewhere")
    return clips


def _read_table(table: Path) -> list[tuple[str, str]]:
    """Utterance and clip of each line of a ``wav.scp``."""
    rows = []
    for number, line in enumerate(lines_of(table), start=1):
        fields = line.split()
        if len(fields) != 2:
            raise EkdError(f"{table}: line {number}: expected `UTTERANCE FILE`, found {line!r}")
        rows.append((fields[0], fields[1]))
    return rows


def _check_clips(table: Path, clips: list[str], task: str) -> None:
    """They are there, and the first one is at a rate that the task reads: a corpus is of one rate."""
    for number, clip in enumerate(clips, start=1):
        if not Path(clip).is_file():
            raise EkdError(f"{table}: line {number}: {clip}: no such file")
        rate = SAMPLE_RATE if number > 1 else audio_info(clip).rate
        if rate != SAMPLE_RATE and task not in CONVERTED:
            raise EkdError(f"{table}: line {number}: {clip}: {rate} Hz; {task} takes {SAMPLE_RATE} Hz alone")
