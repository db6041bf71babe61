"""A student as a Hugging Face model: a folder that transformers loads as ``HubertModel``, and its upload.

Weights are renamed, never changed; the format is in ``teachers/mapping.py`` and ``teachers/writers.py``. The way
back (such a folder as student or teacher) is ``student_checkpoint.py: load_student`` and ``teachers/sources.py``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.inputs import content
from s3prl_ekd.evaluate.scores_file import read_scores
from s3prl_ekd.export import cards
from s3prl_ekd.export.files import CARD, output_folder, write_license
from s3prl_ekd.model.encoder import Encoder, count_parameters
from s3prl_ekd.student_checkpoint import load_student, newest_checkpoint, same_weights
from s3prl_ekd.teachers.writers import write_transformers
from s3prl_ekd.whole_file import whole_file

_OPTIONS = {"licence": "--licence", "data": "--training-data", "scores": "--scores"}

log = logging.getLogger(__name__)


def export_huggingface(
    checkpoint: Path, out: Path, data: str | None = None, licence: str | None = None, scores: Path | None = None
) -> Path:
    """Write config.json, model.safetensors, preprocessor_config.json, README.md and LICENSE into ``out``.

    Where ``out`` holds an earlier export of the same weights, its card keeps what this call says nothing of.

    Args:
        checkpoint: a student: ``states-N.ckpt``, an experiment folder, or a transformers folder.
        out: a new or empty folder, or one that such an export wrote before.
        data: what the student was trained on, for the card.
        licence: identifier of the weights' licence, for the card (None: mit); with "mit" the LICENSE file is written.
        scores: ``scores.json`` of ``s3prl-ekd evaluate``, for the card.

    Raises:
        EkdError: a shape that HubertModel does not have, an unreadable file, or an earlier card in ``out`` that would
            lose what it says.
    """
    encoder, _, part = load_student(checkpoint)
    section = None if scores is None else cards.scores_section(_student_scores(scores, checkpoint))
    _check(encoder, checkpoint)
    output_folder(out, marker="config.json")
    given = {"licence": licence, "data": data, "scores": section}
    same = _holds(out, encoder)
    facts = _facts(out, same, part, {name: text for name, text in given.items() if text is not None})
    if not same:
        (out / CARD).unlink(missing_ok=True)  # of other weights: a kill from here on must not leave it beside these
    # without its mask a batch's padding would reach the states of the shorter clips; no student has heard padding
    write_transformers(encoder, out, attention_mask=True)
    file = out / "config.json"
    config = json.loads(file.read_text()) | _training_settings(part)
    file.write_text(json.dumps(config, indent=2) + "\n")
    if facts is not None:
        card = cards.huggingface_card(part, encoder.shape, count_parameters(encoder), facts)
        with whole_file(out / CARD) as partial:
            partial.write_text(card)
        write_license(out, facts.licence)
    return out


def _facts(out: Path, same: bool, part: Mapping[str, Any], given: Mapping[str, str]) -> cards.CardFacts | None:
    """What the card is to say: what is given, and what an earlier card of these weights says; None where that stays.

    Args:
        same: whether the earlier card is of these weights.

    Raises:
        EkdError: the earlier card would lose what is neither given nor known here.
    """
    card = out / CARD
    if not card.is_file():
        return cards.CardFacts(**given)
    text = card.read_text(errors="replace")
    earlier, edited = cards.card_facts(text), cards.is_edited(text)
    poorer = part.get("config") is None and cards.says_origin(text)
    if same and not given and (edited or poorer):
        log.info("%s: stays as it is: the weights are the same", card)
        return None
    if edited:
        leave = f"leave {', '.join(_OPTIONS[name] for name in given)} out to keep it, or " if same else ""
        raise EkdError(f"{card}: was edited, or another version wrote it; {leave}name another folder")
    if not same:
        told = {"licence": earlier.licence != cards.CardFacts.licence, "data": earlier.data, "scores": earlier.scores}
        missing = [_OPTIONS[name] for name, there in told.items() if there and name not in given]
        if missing:
            raise EkdError(
                f"--out {out}: holds other weights, and its {CARD} says more of them than this call of its own; give "
                f"{', '.join(missing)}, or name another folder"
            )
        return cards.CardFacts(**given)
    if poorer:
        raise EkdError(f"{card}: says how the student was trained, which --ckpt does not here; give its states-N.ckpt")
    return replace(earlier, **given)


def _holds(out: Path, encoder: Encoder) -> bool:
    """Whether a folder's weights are those of ``encoder``."""
    try:
        there = load_student(out).encoder
    except EkdError:
        return False
    shape = replace(there.shape, normalize_eps=encoder.shape.normalize_eps)  # config.json does not hold it
    return shape == encoder.shape and same_weights(there.state_dict(), encoder.state_dict())


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload an exported folder to the hub, with the token that ``hf auth login`` stored; returns what was done.

    Raises:
        EkdError: the hub refused, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="s3prl-ekd export")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EkdError(f"--push {repository}: {reason} ({folder} is written; log in with: hf auth login)") from error
    return f"uploaded to {repository} ({getattr(commit, 'oid', commit)})"


def _student_scores(path: Path, checkpoint: Path) -> dict[str, Any]:
    """The record of an evaluation; another upstream's scores do not belong on a student's card, nor another one's."""
    record = read_scores(path)
    if not str(record.get("upstream", "")).startswith("ekd_student"):
        raise EkdError(f"--scores {path}: holds the scores of {record['label']!r}, which is no ekd_student")
    file = newest_checkpoint(checkpoint)
    if record.get("checkpoint_sha256") != content(file):
        raise EkdError(f"--scores {path}: holds the scores of {record.get('checkpoint')}, which is not what {file} is")
    return record


def _training_settings(part: Mapping[str, Any]) -> dict[str, Any]:
    """Dropout as the student was trained with, for those who fine-tune; never layer drop: there are few layers."""
    student = (part.get("config") or {}).get("student", {})
    return {
        "hidden_dropout": student.get("dropout", 0.0),
        "attention_dropout": student.get("attention_dropout", 0.0),
        "activation_dropout": student.get("activation_dropout", 0.0),
        "feat_proj_dropout": 0.0,
        "final_dropout": 0.0,
        "layerdrop": 0.0,
    }


def _check(encoder: Encoder, checkpoint: Path) -> None:
    shape = encoder.shape
    if shape.attention != "plain" or shape.padding_rule != "conv":
        raise EkdError(f"{checkpoint}: only students with plain attention are exported as HubertModel")
    if encoder.projection is None:
        raise EkdError(
            f"{checkpoint}: width {shape.width} is that of the conv channels: no projection, but HubertModel has one"
        )
