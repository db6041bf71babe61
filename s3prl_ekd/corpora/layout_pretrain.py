"""Pretraining: one length CSV per set of audio, the root they are relative to, and a runner config that names them.

A set is either trained on or held out for the validation loss; ``valid.txt`` names the latter.
Several sets add up in one folder; when they come from different places the root becomes the folder above them all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from s3prl_ekd.audio import AudioInfo
from s3prl_ekd.config.model_file import TaskConfig
from s3prl_ekd.corpora.folders import Prepared, filled_config, fresh_folder
from s3prl_ekd.corpora.length_csv import read_lengths, write_lengths
from s3prl_ekd.corpora.probe import in_parallel, info_or_reason
from s3prl_ekd.crops import little_heard
from s3prl_ekd.errors import EkdError
from s3prl_ekd.whole_file import whole_file

logger = logging.getLogger(__name__)

HELD_OUT = "valid.txt"
Sets = dict[str, list[tuple[Path, int]]]
"""Name of a set -> absolute path and samples of each of its files."""


def prepare_pretrain(
    sets: Mapping[str, Sequence[Path]],
    out: Path,
    source: Path,
    speakers: int,
    notes: Sequence[str],
    held_out: Collection[str],
    derived: Collection[str] = (),
) -> Prepared:
    """Write ``pretrain/<set>.csv`` for each set, ``root.txt``, ``valid.txt`` beside it, and ``pretrain.yaml``.

    Args:
        sets: audio files of each set, by its name (:func:`check_set_name`); those that cannot be read or are shorter
            than 0.05 s are left out, and counted.
        out: the data folder.
        source: where they come from, for messages.
        speakers: how many; 0 where that is not known.
        notes: what to say besides.
        held_out: which of ``sets`` are for the validation loss.
        derived: names that an earlier call may have given to a part of these files; it goes where this one doesn't.

    Raises:
        EkdError: a name that is none, no readable audio in a set, a file that is both trained on and held out, or a
            folder that is not ours.
    """
    for name in sets:
        check_set_name(name)
    folder, config = out / "pretrain", out / "pretrain.yaml"
    notes = list(notes)
    out.mkdir(parents=True, exist_ok=True)
    # the configuration goes last into its place, but is written before the folder goes into its own: a full disk must
    # not leave the old root beside the new tables
    with whole_file(config) as written, fresh_folder(folder, source) as fresh:
        new = _measured(sets, source, notes)
        earlier = _earlier(folder, new, derived, notes)
        measured = {**earlier, **new}
        valid = sorted({*held_out, *(name for name in earlier_held_out(folder) if name in earlier)})
        _check_held_out(measured, valid)
        root = Path(os.path.commonpath([file.parent for entries in measured.values() for file, _ in entries]))
        for name, entries in measured.items():
            write_lengths(fresh / f"{name}.csv", [(file.relative_to(root).as_posix(), n) for file, n in entries])
        (fresh / "root.txt").write_text(f"{root}\n", encoding="utf-8")
        if valid:
            (fresh / HELD_OUT).write_text("".join(f"{name}\n" for name in valid), encoding="utf-8")
        trained = sorted(set(measured) - set(valid))
        write_pretrain_config(written, root, folder.absolute(), trained, valid)
    order = [*trained, *valid]
    lengths = [[samples for _, samples in measured[name]] for name in order]
    longest = TaskConfig().sequence_length  # the recipe's
    long = [little_heard(name, of_set, longest) for name, of_set in zip(order, lengths, strict=True)]
    notes += [said for said in long if said is not None]
    if not trained:
        notes.append("no set to train on yet; another call with this --out adds one")
    elif not valid:
        notes.append("no speech is held out, so there will be no validation loss; a call with --held-out adds some")
    return Prepared(
        task="pretrain",
        config=config,
        splits=(*trained, *(f"{name} (validation)" for name in valid)),
        utterances=tuple(map(len, lengths)),
        samples=sum(map(sum, lengths)),
        speakers=speakers if set(sets) == set(measured) else 0,
        notes=tuple(notes),
        ready=bool(trained),
    )


def check_set_name(name: str) -> None:
    """Raise unless ``pretrain/NAME.csv`` is a visible file of that folder, and the name a line of ``valid.txt``."""
    if not name or name.startswith(".") or "/" in name or "\\" in name or not name.isprintable():
        raise EkdError(
            f"--name {name!r}: no name for a pretraining set, a file pretrain/NAME.csv; expected one line without / "
            "and without a dot in front"
        )


def _measured(sets: Mapping[str, Sequence[Path]], source: Path, notes: list[str]) -> Sets:
    """Absolute path and samples of every file of each set; what is left out is added to ``notes``."""
    measured: Sets = {}
    for name, files in sets.items():
        files = [Path(os.path.abspath(file)) for file in files]
        results = in_parallel(info_or_reason, files)
        good = [(file, info.samples) for file, info in zip(files, results, strict=True) if isinstance(info, AudioInfo)]
        bad = [text for text in results if isinstance(text, str)]
        first = f"first: {bad[0]}" if bad else "it is empty"
        if not good:
            raise EkdError(f"{source}: no readable audio in set {name}; {first}")
        if bad:
            notes.append(f"{name}: {len(bad)} of {len(files)} files left out, {first}")
        measured[name] = good
    return measured


def _earlier(folder: Path, new: Sets, derived: Collection[str], notes: list[str]) -> Sets:
    """The sets that are already there and stay beside the ``new`` ones; what goes is added to ``notes``."""
    if not (folder / "root.txt").is_file():
        return {}
    root = Path(_text(folder / "root.txt").strip())
    ours = {file for entries in new.values() for file, _ in entries}
    kept: Sets = {}
    for table in sorted(folder.glob("*.csv")):
        name, entries = table.stem, [(root / path, n) for path, n in read_lengths(table)]
        files = {file for file, _ in entries}
        if name in derived and name not in new and files <= ours:
            notes.append(f"{name}: removed, as its {len(entries)} files are in {', '.join(new)} now")
        elif name not in new:
            kept[name] = entries
        elif files != {file for file, _ in new[name]}:
            notes.append(f"{name}: replaces an earlier set of {len(entries)} other files (--name keeps both)")
    return kept


def _check_held_out(sets: Sets, held_out: Sequence[str]) -> None:
    """Raise where a file of a held-out set is in another set too, be it by a link."""
    if not held_out:
        return
    trained = {os.path.realpath(file): name for name in sets if name not in held_out for file, _ in sets[name]}
    for name in held_out:
        for file, _ in sets[name]:
            other = trained.get(os.path.realpath(file))
            if other is not None:
                raise EkdError(
                    f"pretraining sets {name} and {other}: the one is held out, the other trained on, and {file} is in "
                    "both"
                )


def earlier_held_out(folder: Path) -> list[str]:
    """Names of the sets there that are held out."""
    file = folder / HELD_OUT
    return _text(file).splitlines() if file.is_file() else []


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EkdError(f"{file}: not the text that prepare wrote; remove {file.parent} and prepare it again") from error


def write_pretrain_config(
    file: Path, root: Path, csv_folder: Path, sets: Sequence[str], valid_sets: Sequence[str]
) -> None:
    with filled_config(file, "pretrain/ekd/config_runner.yaml") as config:
        data = config["pretrain_expert"]["datarc"]
        data.update(libri_root=str(root), file_path=str(csv_folder), sets=list(sets))
        if valid_sets:
            data["valid_sets"] = list(valid_sets)
