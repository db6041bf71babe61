"""A student as a Hugging Face model: a folder that transformers loads as ``HubertModel``, and its upload.

Weights are renamed, never changed; the format is in ``teachers/mapping.py`` and ``teachers/writers.py``. The way
back (such a folder as student or teacher) is ``student_checkpoint.py: load_student`` and ``teachers/sources.py``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.inputs import model_digest
from s3prl_ekd.evaluate.models import STUDENT, WITH_HEADS, choose
from s3prl_ekd.evaluate.scores_file import read_scores
from s3prl_ekd.export import cards
from s3prl_ekd.export.files import CARD, export_folder, write_license
from s3prl_ekd.model.encoder import Encoder, count_parameters
from s3prl_ekd.student_checkpoint import load_student
from s3prl_ekd.student_part import same_weights
from s3prl_ekd.teachers.writers import as_json, transformers_files, write_transformers_weights
from s3prl_ekd.whole_file import write_whole

MARKER = "config.json"  # tells a folder of this export
_OPTIONS = {"licence": "--licence", "data": "--training-data", "scores": "--scores"}
_MASKS = (
    "apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_time_min_masks",
    "mask_feature_prob", "mask_feature_length", "mask_feature_min_masks",
)  # fmt: skip

log = logging.getLogger(__name__)


def export_huggingface(
    checkpoint: Path, out: Path, data: str | None = None, licence: str | None = None, scores: Path | None = None
) -> Path:
    """Write config.json, model.safetensors, preprocessor_config.json, README.md and LICENSE into ``out``.

    Where ``out`` holds an earlier export of the same weights, its card keeps what this call says nothing of, and the
    two .json files stay as they were edited.

    Args:
        checkpoint: a student: ``states-N.ckpt``, an experiment folder, or a transformers folder.
        out: a new or empty folder, or one that such an export wrote before.
        data: what the student was trained on, for the card.
        licence: identifier of the weights' licence, for the card (None: mit); with "mit" the LICENSE file is written.
        scores: ``scores.json`` of ``s3prl-ekd evaluate``, for the card.

    Raises:
        EkdError: a shape that HubertModel does not have, an unreadable file, or an earlier card or .json in ``out``
            that would lose what it says.
    """
    if licence is not None and re.fullmatch(r"[\w.+-]+", licence) is None:
        raise EkdError(f"--licence {licence!r}: expected an identifier, such as mit or cc-by-4.0")
    encoder, _, part = load_student(checkpoint)
    section = None if scores is None else _scores_section(scores, checkpoint)
    _check(encoder, checkpoint)
    encoder = _with_projection(encoder)
    with export_folder(out, MARKER):
        given = {"licence": licence, "data": data, "scores": section}
        same = _holds(out, encoder)
        # without its mask a batch's padding would reach the states of the shorter clips; no student has heard padding
        settings = transformers_files(encoder.shape, attention_mask=True)
        settings["config.json"] |= _training_settings(part)
        files = {name: as_json(values) for name, values in settings.items()}
        kept = _kept_files(out, files, same, known=part.get("config") is not None)
        facts = _facts(out, same, part, {name: text for name, text in given.items() if text is not None})
        if not same:
            (out / CARD).unlink(missing_ok=True)  # of other weights: a kill from here on must not leave it beside these
        for name, text in files.items():
            if name not in kept:
                write_whole(out / name, text)
        write_transformers_weights(encoder, out, mask_vector=part.get("mask", {}).get("vector"))
        if facts is not None:
            card = cards.huggingface_card(part, encoder.shape, count_parameters(encoder), facts, files)
            write_whole(out / CARD, card)
            write_license(out, facts.licence)
    return out


def _kept_files(out: Path, files: Mapping[str, str], same: bool, known: bool) -> set[str]:
    """Names of the .json files of an earlier export that stay as they are.

    Args:
        files: name -> what this export would write.
        same: whether the earlier export is of the same weights.
        known: whether the checkpoint knows how its student was trained, and so its dropout.

    Raises:
        EkdError: one was edited, and is of other weights.
    """
    card, kept = out / CARD, set()
    record = cards.written(card.read_text("utf-8", "replace")) if card.is_file() else {}
    for name in files:
        there = (out / name).read_text("utf-8", "replace") if (out / name).is_file() else files[name]
        edited = there != files[name] and cards.digest(there) != record.get(name)
        if edited and not same:
            raise EkdError(f"{out / name}: was edited, or another version wrote it, for other weights; "
                           "name another folder")  # fmt: skip
        if edited:
            log.info("%s: stays as it is: it was edited, or another version wrote it", out / name)
        if edited or (there != files[name] and same and not known):
            kept.add(name)
    return kept


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
    text = card.read_text("utf-8", "replace")
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
                f"--out {out}: holds other weights, and its {CARD} has details that this call does not give; add "
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
    shape = there.shape.with_(normalize_eps=encoder.shape.normalize_eps)  # config.json does not hold it
    return shape == encoder.shape and same_weights(there.state_dict(), encoder.state_dict())


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload an exported folder to the hub, with the token that ``hf auth login`` stored; returns what was done.

    Raises:
        EkdError: the hub refused, or cannot be reached.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="s3prl-ekd export")
    except Exception as error:  # the uploader raises whatever its HTTP library raises, or the disk
        said = [line for line in str(error).splitlines() if line and not line.startswith("(Request ID")]
        reason = said[0] if said else type(error).__name__
        raise EkdError(f"--push {repository}: {reason} ({folder} is written; log in with: hf auth login)") from error
    return f"uploaded to {repository} ({getattr(commit, 'oid', commit)})"


def _scores_section(path: Path, checkpoint: Path) -> str:
    """Of an evaluation's record; another upstream's scores do not belong on a student's card, nor another one's."""
    record = read_scores(path)
    if not record["upstream"].startswith(STUDENT):
        raise EkdError(f"--scores {path}: holds the scores of {record['label']!r}, which is no {STUDENT}")
    if record["upstream"] == WITH_HEADS:
        raise EkdError(f"--scores {path}: holds the scores of {record['label']!r}; the model has no heads")
    if record.get("layer") is not None or record.get("feature") is not None:
        raise EkdError(f"--scores {path}: holds the scores of {record['label']!r}, of a part of its states alone")
    model = choose({"ckpt": str(checkpoint)})
    if record.get("checkpoint_sha256") != model_digest(model):
        raise EkdError(
            f"--scores {path}: holds the scores of {record.get('checkpoint')}, which is not what {model.checkpoint} is"
        )
    return cards.scores_section(record)


def _training_settings(part: Mapping[str, Any]) -> dict[str, Any]:
    """Dropout as the student was trained with, for those who fine-tune; never layer drop: there are few layers.

    Nor masks, where the student has never seen one: transformers' default would replace frames by a vector of zeros.
    What began as a transformers folder has that one's settings, layer drop and masks too; what it does not name has
    transformers' default.
    """
    student = (part.get("config") or {}).get("student", {})
    settings = {
        "hidden_dropout": student.get("dropout", 0.0),
        "attention_dropout": student.get("attention_dropout", 0.0),
        "activation_dropout": student.get("activation_dropout", 0.0),
        "feat_proj_dropout": 0.0,
        "final_dropout": 0.0,
        "layerdrop": 0.0,
        "feature_grad_mult": student.get("feature_grad_mult", 1.0),  # for -u ekd_student -f; transformers leaves it be
    }
    if not part.get("mask"):
        settings["apply_spec_augment"] = False
    if "transformers" in part:
        there = part["transformers"]
        settings = {name: there[name] for name in (*settings, *_MASKS) if name in there}
    return settings


def _check(encoder: Encoder, checkpoint: Path) -> None:
    shape = encoder.shape
    if shape.attention != "plain" or shape.padding_rule != "conv":
        raise EkdError(f"{checkpoint}: only students with plain attention are exported as HubertModel")
    if shape.pos_conv_depth != 1:
        raise EkdError(f"{checkpoint}: {shape.pos_conv_depth} positional convolutions; HubertModel has one")


def _with_projection(encoder: Encoder) -> Encoder:
    """What HubertModel always has and a student as wide as its conv channels has not: here the identity."""
    if encoder.projection is not None:
        return encoder
    width = encoder.shape.width
    projected = Encoder(encoder.shape.with_(square_projection=True))
    identity = {"projection.weight": torch.eye(width), "projection.bias": torch.zeros(width)}
    projected.load_state_dict(encoder.state_dict() | identity)
    return projected
