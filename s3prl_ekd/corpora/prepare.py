"""From one manifest to the tasks it is for: what ``s3prl-ekd prepare --manifest`` does.

Corpora in their own layout are ``librispeech.py``, ``voxceleb1.py``, ``iemocap.py``, ``speech_commands.py`` and
``fluent_commands.py``; arguments and tables are ``command.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from s3prl_ekd.corpora.folders import Prepared, check_apart, turn_in
from s3prl_ekd.corpora.layout_emotion import prepare_emotion
from s3prl_ekd.corpora.layout_intent import prepare_intent
from s3prl_ekd.corpora.layout_keyword import prepare_keyword
from s3prl_ekd.corpora.layout_pretrain import check_set_name, prepare_pretrain
from s3prl_ekd.corpora.layout_speaker import prepare_speaker
from s3prl_ekd.corpora.layout_speech import prepare_speech
from s3prl_ekd.corpora.manifest import TASKS, Manifest, Row, check_tasks, choose_tasks, read_manifest
from s3prl_ekd.corpora.probe import probe
from s3prl_ekd.errors import EkdError

logger = logging.getLogger(__name__)

LAYOUTS = {"sid": prepare_speaker, "er": prepare_emotion, "ks": prepare_keyword, "ic": prepare_intent}
"""Tasks that have a folder each; pr and asr share their audio (layout_speech.py)."""


def parse_tasks(text: str) -> tuple[str, ...]:
    """``"pr,asr"`` as a tuple.

    Raises:
        EkdError: an unknown task.
    """
    tasks = tuple(dict.fromkeys(task.strip() for task in text.lower().split(",") if task.strip()))
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise EkdError(f"--tasks: {', '.join(unknown) or 'empty'}; expected some of {', '.join(TASKS)}")
    return tasks


def plan_manifest(
    manifest: str | Path, tasks: Sequence[str] | None = None, root: str | Path | None = None
) -> tuple[Manifest, tuple[str, ...]]:
    """The rows of a manifest and the tasks they are for; writes nothing.

    Args:
        manifest: a ``manifest.tsv`` or the folder it lies in; see ``manifest.py`` for its columns.
        tasks: some of pr, asr, sid, er, ks, ic, pretrain; None decides by the columns and says so.
        root: folder that ``path`` is relative to, where that is not the manifest's folder or its parent.

    Raises:
        EkdError: anything the user can fix, with the manifest's line.
    """
    rows = read_manifest(manifest, root)
    if tasks is None:
        tasks, why = choose_tasks(rows)
        logger.info("%s: prepared for %s, since %s (--tasks overrides)", rows.file, " and ".join(tasks), why)
    check_tasks(rows, tasks)
    return rows, tuple(tasks)


def lay_out(
    rows: Manifest,
    tasks: Sequence[str],
    out: Path,
    lexicons: Sequence[str | Path] = (),
    skip_bad: bool = False,
    name: str | None = None,
    held_out: bool = False,
) -> list[Prepared]:
    """Lay out a manifest's audio for s3prl, with a ready config beside each task's folder.

    Where several calls run, one writes after the other.

    Args:
        rows, tasks: of :func:`plan_manifest`.
        out: the data folder; earlier results for other tasks stay.
        lexicons: ``WORD<TAB>PH PH PH`` files for pr; CMUdict otherwise.
        skip_bad: leave out rows whose audio is missing or damaged.
        name: the pretraining set's name; the manifest's folder otherwise.
        held_out: that set is for the validation loss, whatever its rows' split.

    Raises:
        EkdError: anything the user can fix, with the manifest's line.
    """
    name = name or rows.name
    if "pretrain" in tasks:
        check_set_name(name)  # its turn comes last
    results: list[Prepared] = []
    with turn_in(out):
        audio = ((f"{rows.where(row)}: {row.path}", row.audio) for row in rows.rows)
        check_apart([out / task for task in tasks], [*audio, (rows.file, rows.file)])
        if set(tasks) - {"pretrain"}:
            clips = probe(rows, skip_bad)
            kept = replace(rows, rows=tuple(clip.row for clip in clips))
            check_tasks(kept, tasks)  # skipping may have emptied a split
            speech = [task for task in ("asr", "pr") if task in tasks]
            if speech:
                results.extend(prepare_speech(rows, clips, out, speech, lexicons))
            results += [layout(rows, clips, out) for task, layout in LAYOUTS.items() if task in tasks]
        if "pretrain" in tasks:
            results.append(_pretraining(rows, out, name, held_out))
    return results


def _pretraining(rows: Manifest, out: Path, name: str, held_out: bool) -> Prepared:
    """A manifest's set or, where rows of it say dev, two: these are held out, and those of test used for nothing."""
    dev, valid = f"{name}-dev", [name] if held_out else []
    parts: dict[str, Sequence[Row]] = {name: rows.rows}
    if not held_out:
        parts = {
            name: [row for row in rows.rows if row.split not in ("dev", "test")],
            dev: [row for row in rows.rows if row.split == "dev"],
        }
        valid = [dev] if parts[dev] else []
    used = {part: list(dict.fromkeys(row.audio for row in chosen)) for part, chosen in parts.items() if chosen}
    if not used:
        raise EkdError(f"{rows.file}: every row is of split test; pretraining takes train, and holds dev out")
    left_out = sum(row.split == "test" for row in rows.rows) if len(parts) > 1 else 0
    notes = [f"{name}: {left_out} utterances of split test left out"] if left_out else []
    speakers = len({row.speaker for chosen in parts.values() for row in chosen if row.speaker})
    return prepare_pretrain(used, out, rows.file, speakers, notes, valid, derived=[dev])
