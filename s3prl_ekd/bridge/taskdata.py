"""The configs of PR, SID, ER and ASR before s3prl's experts read them: shipped files filled in, missing data named.

Each check answers one bare assertion, KeyError or IndexError of s3prl's datasets with a line that names the key and the
value. SUPERB's other tasks are in ``taskdata_superb.py``; what is in neither passes unchanged.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from s3prl_ekd.bridge import taskdata_superb
from s3prl_ekd.bridge.config_section import Section
from s3prl_ekd.bridge.sorted_path import list_by_name
from s3prl_ekd.corpora.split_file import PARTS, read_split_file, wav_folders
from s3prl_ekd.errors import EkdError
from s3prl_ekd.whole_file import whole_file

SECTIONS = ("runner", "optimizer", "downstream_expert")


def splits(task: str, config: dict[str, Any]) -> list[str] | None:
    """What ``-t`` and ``runner.eval_dataloaders`` may name; None for a task that has no config of ours."""
    if task != "asr":
        return ["train", "dev", "test"] if task in ("ctc", "voxceleb1", "emotion") else taskdata_superb.SPLITS.get(task)
    data = config["downstream_expert"].get("datarc") or {}
    # s3prl names files of the experiment by the split, and by ER's fold: neither may be a path out of its folder
    return [key for key in data if key.startswith(("train", "dev", "test")) and "batch" not in key and "/" not in key]


def check_sections(config: Any, task: str, source: str) -> None:
    """See that the config of any task has the sections that s3prl's runner reads.

    Raises:
        EkdError: it is no mapping, or a section is missing.
    """
    if not isinstance(config, dict):
        raise EkdError(f"{source}: expected a YAML file with the sections {', '.join(SECTIONS)}")
    for section in SECTIONS:
        if section == "optimizer" and task in taskdata_superb.UNTRAINED:
            continue
        if not isinstance(config.get(section), dict):
            raise EkdError(f"{source}: the section {section!r} is missing")


def complete(args: Namespace, config: dict[str, Any], source: str, s3prl: Path) -> None:
    """Fill in and check ``config`` in place.

    Args:
        args: s3prl's arguments (``downstream``, ``mode``, ``evaluate_split``, ``expdir`` are read).
        config: the merged downstream config.
        source: file the config came from, for messages.
        s3prl: folder of the package s3prl, where relative paths of its own configs are looked up.

    Raises:
        EkdError: a section, folder or file is missing.
    """
    check_sections(config, args.downstream, source)
    known = splits(args.downstream, config)
    if args.mode == "evaluate" and known is not None and args.evaluate_split not in known:
        raise EkdError(f"-t {args.evaluate_split}: {args.downstream} knows the splits {', '.join(known)}")
    expert = Section(source, config["downstream_expert"], "downstream_expert", s3prl)
    used = _used(args, config, known or ())
    if args.downstream == "ctc":
        _phones(expert, used)
    elif args.downstream == "voxceleb1":
        _speakers(args, expert)
    elif args.downstream == "emotion":
        _emotion(args, expert)
    elif args.downstream == "asr":
        _speech(expert, () if args.mode == "inference" else used)
    elif args.downstream in taskdata_superb.SPLITS:
        taskdata_superb.complete(args, expert, used)


def _used(args: Namespace, config: dict[str, Any], known: Iterable[str]) -> list[str]:
    """The splits that a run reads. A training comes to those that it evaluates on thousands of steps after its start.

    What is none of the ``known`` ones there, ``taskkeys.check_runner`` says.
    """
    if args.mode != "train":
        return [args.evaluate_split]
    evaluated = config["runner"].get("eval_dataloaders")
    return ["train", *(name for name in evaluated if name in known)] if isinstance(evaluated, list) else ["train"]


def _phones(expert: Section, used: Sequence[str]) -> None:
    corpus, text = expert.section("corpus"), expert.section("text")
    name = str(corpus.get("name")).lower()
    if name == "snips":
        taskdata_superb.complete_slots(corpus, text, used)
    symbols = text.file("vocab_file")
    _keep_workers()
    if name != "libriphone":
        return
    corpus.files("lexicon")
    root = corpus.folder("path")
    for split in used:
        for name in corpus.split_names(split):
            if not (root / name).is_dir():
                raise corpus.wrong(split, f"{root / name}: no such folder")
    mode = text.values.get("mode")
    if mode is None:
        return  # taskkeys.check_expert says so
    try:
        tokenizer = importlib.import_module("s3prl.downstream.ctc.text").load_text_encoder(mode, str(symbols))
    except NotImplementedError as error:
        raise text.wrong("mode", f"{mode!r}: s3prl has no such tokenizer; PR's is word") from error
    except ModuleNotFoundError as error:
        raise text.wrong("mode", f"{mode!r}: s3prl's tokenizer needs {error.name}; PR's is word") from error
    corpora = list_by_name("s3prl.downstream.ctc.corpus.libriphone")  # a checkout's, or ours, which does so itself
    for split in used[1:]:  # the first one is read next
        corpora.LibriPhoneDataset(corpus.values[split], tokenizer, 1, **corpus.values)


def _keep_workers() -> None:
    """Give s3prl's ctc loader a copy of the corpus section for each loader that it makes.

    It pops num_workers from the section, so that every later loader, and evaluation from a checkpoint, ran 12 workers.
    """
    expert: Any = importlib.import_module("s3prl.downstream.ctc.expert")
    original = importlib.import_module("s3prl.downstream.ctc.data").load_dataset
    expert.load_dataset = lambda split, tokenizer, corpus: original(split, tokenizer, dict(corpus))


def _speech(expert: Section, used: Iterable[str]) -> None:
    data = expert.section("datarc")
    data.values.setdefault("dict_path", "char.dict")
    data.file("dict_path")
    root, tables = data.folder("libri_root"), data.folder("bucket_file")
    if uses_language_model(data.values):
        _language_model(data.section("decoder_args"))
    for split in used:
        count = 0
        for name in data.split_names(split):
            table = tables / f"{name}.csv"
            if not table.is_file():
                raise data.wrong("bucket_file", f"{table}: no such table of lengths (split {split!r})")
            count += _check_utterances(table, root, f"{data.path}.libri_root")
        size = "batch_size" if split == "train" else "eval_batch_size"
        if count == 1 and data.values.get(size) != 1:
            raise data.wrong(size, f"s3prl leaves out a last batch of one, and {split} has one utterance; expected 1")


def uses_language_model(datarc: Any) -> bool:
    """Whether ASR's section ``datarc`` asks for a decoder with a language model."""
    decoder = datarc.get("decoder_args") if isinstance(datarc, dict) else None
    return isinstance(decoder, dict) and decoder.get("decoder_type") == "kenlm"


def _language_model(decoder: Section) -> None:
    """What s3prl builds its decoder of, in training too: without the packages it ends in a NameError."""
    for module in ("flashlight", "kenlm"):
        if importlib.util.find_spec(module) is None:
            needs = f"kenlm: s3prl's decoder needs {module}: pip install flashlight-text kenlm"
            raise decoder.wrong("decoder_type", needs)
    decoder.file("kenlm_model")
    if decoder.values.get("lexicon") or not decoder.values.get("unit_lm"):
        decoder.file("lexicon")


def _check_utterances(table: Path, root: Path, key: str) -> int:
    """How many utterances s3prl takes of a table of ASR: those with a transcript, whose audio must be there."""
    from s3prl_ekd.data.lengths import read_table

    transcribed: dict[str, set[str]] = {}
    found = 0
    for path in read_table(table, key).file_path:
        folder, _, name = path.rpartition("/")
        if "/" not in folder:
            raise EkdError(f"{table}: {path}: expected .../SPK/CHAP/SPK-CHAP-UTT.flac")
        if folder not in transcribed:
            transcribed[folder] = _transcribed(root / folder / f"{'-'.join(folder.split('/')[-2:])}.trans.txt")
        if name.partition(".")[0] in transcribed[folder]:
            found += 1
            if not (root / path).is_file():
                raise EkdError(f"{table}: {path}: no such file below {root} ({key})")
    if not found:
        raise EkdError(f"{table}: no utterance in it has a line in its .trans.txt below {root} ({key})")
    return found


def _transcribed(file: Path) -> set[str]:
    """The names of the utterances that a ``.trans.txt`` transcribes."""
    names = set()
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    raise EkdError(f"{file}: line {number} is empty, at which s3prl fails")
                names.add(line.split()[0])
    except OSError as error:
        raise EkdError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise EkdError(f"{file}: is not a UTF-8 text file") from error
    return names


def _emotion(args: Namespace, expert: Section) -> None:
    data = expert.section("datarc")
    root, tables = data.folder("root"), data.folder("meta_data")
    fold = str(data.values.get("test_fold") or getattr(args, "downstream_variant", None) or "fold1")
    if "/" in fold:
        raise data.wrong("test_fold", f"{fold}: expected the name of a fold")
    labels = None
    for name in ("train", "test"):
        table = tables / fold.replace("fold", "Session") / f"{name}_meta_data.json"
        if not table.is_file():
            raise data.wrong("test_fold", f"{fold}: {table}: no such file")
        own, paths = _read_fold(table)
        if labels not in (None, own):  # the head learns the numbers of one, and is tested by those of the other
            raise EkdError(f"{table}: labels: other ones than in {table.with_name('train_meta_data.json')}")
        labels = own
        held_out = data.values.get("valid_ratio", 0)  # of which s3prl makes its dev set, rounded up
        if name == "train" and args.mode == "train" and int((1 - held_out) * len(paths)) == 0:
            raise EkdError(f"{table}: nothing is left to train on: with {data.path}.valid_ratio {held_out} all is dev")
        for path in paths:
            if not (root / path).is_file():
                raise EkdError(f"{table}: {path}: no such file below {root} ({data.path}.root)")


def _read_fold(table: Path) -> tuple[dict[str, int], list[str]]:
    """The number of each label, and every utterance's path: s3prl fails at a label without a number when it comes."""
    try:
        content = json.loads(table.read_text())
        utterances = [(os.fspath(entry["path"]), entry["label"]) for entry in content["meta_data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise EkdError(f"{table}: expected labels and meta_data: [{{path, label, speaker}}] ({error!r})") from error
    if not utterances:
        raise EkdError(f"{table}: lists no utterance")
    labels = content.get("labels")
    numbers = list(labels.values()) if isinstance(labels, dict) else []
    if not all(type(number) is int for number in numbers) or sorted(numbers) != list(range(len(numbers) or 1)):
        raise EkdError(f"{table}: labels: expected {{name: 0, name: 1, ...}}, found {labels!r}")
    for path, label in utterances:
        if label not in list(labels):
            raise EkdError(f"{table}: {path}: its label {label!r} is none of the labels {', '.join(labels)}")
    return labels, [path for path, _ in utterances]


def _speakers(args: Namespace, expert: Section) -> None:
    """Find the audio of every line of the split file, and hand s3prl the lists.

    s3prl keeps such lists in a cache inside its installed package, under the split's name only, so that a second corpus
    gets the first one's files. Here they go into the experiment folder and are made anew for every run.
    """
    data = expert.section("datarc")
    root, table = data.folder("file_path"), data.file("meta_data")
    lists = speaker_lists(root, table, key=f"{expert.source}: {data.path}")
    for split in PARTS:
        if not lists[split] and (split != "test" or args.mode != "train"):
            raise EkdError(f"{table}: lists no utterance for {split}")
    cache = Path(args.expdir, ".files").resolve()
    cache.mkdir(parents=True, exist_ok=True)
    for split, files in lists.items():
        with whole_file(cache / f"{split}.pkl") as partial:
            partial.write_bytes(pickle.dumps(files))
    dataset: Any = importlib.import_module("s3prl.downstream.voxceleb1.dataset")
    dataset.CACHE_PATH = f"{cache}/"


def speaker_lists(root: Path, table: Path, key: str) -> dict[str, list[str]]:
    """Audio files by split ("train", "dev", "test"), in the order of the split file.

    Args:
        root: folder of VoxCeleb1: ``*/wav/idNNNNN/VIDEO/CLIP.wav``.
        table: lines of ``1|2|3 idNNNNN/VIDEO/CLIP.wav``.
        key: config key of both, for messages.

    Raises:
        EkdError: a malformed line, an id outside 10001..11251, or an utterance without audio.
    """
    folders = wav_folders(root)
    if not folders:
        raise EkdError(f"{key}.file_path: {root}: has no */wav/ folder")
    names = {number: split for split, number in PARTS.items()}
    lists: dict[str, list[str]] = {split: [] for split in PARTS}
    for part, path in read_split_file(table):
        found = next((folder / path for folder in folders if (folder / path).is_file()), None)
        if found is None:
            raise EkdError(f"{table}: {path}: no such file in a */wav/ folder of {root}")
        lists[names[part]].append(str(found))
    return lists
