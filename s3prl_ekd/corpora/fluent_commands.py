"""Fluent Speech Commands (IC) in its own layout: the configuration points at the corpus."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from s3prl_ekd.corpora.folders import Prepared, fresh_folder
from s3prl_ekd.corpora.intent_tables import SLOTS, TABLES, read_intents
from s3prl_ekd.corpora.layout_intent import intent_note, write_ic_config
from s3prl_ekd.corpora.probe import ready_lengths
from s3prl_ekd.errors import EkdError

TEST_UTTERANCES = 3_793


def prepare_fluent_commands(root: Path, out: Path) -> Prepared:
    """IC on Fluent Speech Commands with its ``data/{train,valid,test}_data.csv``.

    Raises:
        EkdError: a table is missing or wrong, a name of a clip to test on is another's too or has a comma, or a wav
            cannot be read as it is.
    """
    root = root.absolute()
    tables = read_intents(root)
    names = Counter(Path(line["path"]).stem for line in tables["test"])
    table = root / "data" / TABLES["test"]
    for name, count in names.items():
        if count > 1:
            raise EkdError(f"{table}: {count} clips are called {name}, and s3prl's predictions go by that name")
        if "," in name:
            raise EkdError(f"{table}: {name!r}: s3prl's prediction file would cut this name at its comma")
    lines = [line for part in tables.values() for line in part]
    samples = ready_lengths([root / line["path"] for line in lines])
    notes = [intent_note([tuple(line[slot] for slot in SLOTS) for line in lines])]
    if len(tables["test"]) != TEST_UTTERANCES:
        notes.append(f"{len(tables['test'])} utterances to test on; SUPERB's test set has {TEST_UTTERANCES}")
    with fresh_folder(out / "ic", root):
        pass  # nothing beside the configuration: what an earlier manifest left there goes
    write_ic_config(out / "ic.yaml", root)
    return Prepared(
        task="ic",
        config=out / "ic.yaml",
        splits=tuple(tables),
        utterances=tuple(map(len, tables.values())),
        samples=sum(samples),
        speakers=len({line.get("speakerId") for line in lines} - {None, ""}),
        notes=tuple(notes),
    )
