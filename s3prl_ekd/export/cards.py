"""Model cards: what a README.md says about an exported student. Text only; nothing is computed or measured here.

A card states what the checkpoint knows (teachers, targets, shape) and what the caller hands in (scores, sizes). It
never quotes a number from elsewhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3prl_ekd.config.model_file import EkdConfig, StudentConfig, TeacherConfig
from s3prl_ekd.evaluate.scores_file import first_part, folds
from s3prl_ekd.evaluate.tasks import TASKS, spelt
from s3prl_ekd.export.files import MADE_WITH
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.source_names import HF, RANDOM
from s3prl_ekd.version import __version__

PAPER = "[Ensemble knowledge distillation of self-supervised speech models](https://arxiv.org/abs/2302.12757)"
_MODES = {
    "multi_head": "one head set per teacher (multi_head)",
    "layerwise_average": "the layerwise average of the teachers",
    "layerwise_concat": "the layerwise concatenation of the teachers",
}
# keys of ``ekd`` that have lines of their own, or no part in what is learned
_NO_OPTIONS = {
    "teachers", "mode", "cosine_weight", "l1_weight", "initialise_from",
    "precision", "teacher_precision", "cache_targets", "cache_precision",
}  # fmt: skip
# what of the section ``student`` are options, and no sizes
_STUDENT = ("mask", "conv_norm", "conv_bias", "pre_norm", "normalize", "feature_grad_mult")
_USUAL_STUDENT = StudentConfig().model_dump(mode="json")
_NO_DATA = "Not recorded by the exporter: the checkpoint does not name its corpus."
_NO_ORIGIN = "Converted from a transformers model with s3prl-ekd; how it was trained is not known to the converter."
_SCORES = "\n## Scores\n"
_SEAL = re.compile(r"\n<!-- as s3prl-ekd wrote it: \w+ -->\n$")  # on a page the hub does not show it
_WRITTEN = re.compile(r"\n<!-- (\S+) as s3prl-ekd wrote it: (\w+) -->")


def superb_card(
    part: Mapping[str, Any], shape: EncoderShape, names: Sequence[str], task_states: Mapping[str, Sequence[int]]
) -> str:
    """README.md of a SUPERB submission folder.

    Args:
        part: the checkpoint's ``EKD`` part.
        shape: the encoder's.
        names: what each hidden state is.
        task_states: task -> the states it gets, where a choice was made.
    """
    rows = "\n".join(f"| {number} | {_plain(name)} |" for number, name in enumerate(names))
    chosen = "".join(
        f"\n`{task}` gets the states {', '.join(map(str, states))}." for task, states in task_states.items()
    )
    return _sealed(f"""# Distilled speech encoder: SUPERB upstream

{_origin(part)}

`expert.py` holds the model (PyTorch only), `model.pt` its weights and numbers.

```python
from expert import UpstreamExpert
upstream = UpstreamExpert(ckpt="model.pt").eval()
hidden_states = upstream([waveform])["hidden_states"]  # list of (1, frames, {shape.width}); 16 kHz, 20 ms a frame
```

| hidden state | what it is |
| --- | --- |
{rows}
{chosen}

{_method(part, shape)}
""")


@dataclass(frozen=True)
class CardFacts:
    """What a model card says and no checkpoint knows."""

    licence: str = "mit"
    """Identifier of the weights' licence."""
    data: str | None = None
    """What the student was trained on, in the user's words."""
    scores: str = ""
    """The section of :func:`scores_section`."""


def huggingface_card(
    part: Mapping[str, Any], shape: EncoderShape, parameters: int, facts: CardFacts, files: Mapping[str, str]
) -> str:
    """README.md of a transformers folder, with the hub's YAML header.

    Args:
        part: the checkpoint's ``EKD`` part.
        shape: the encoder's.
        parameters: of the exported model.
        facts: what the user says of it.
        files: name -> text of the files beside it that users edit; the card keeps a digest of each.
    """
    last = "; the last one is `last_hidden_state`, after the final norm" if shape.pre_norm else ""
    record = "".join(f"\n<!-- {name} as s3prl-ekd wrote it: {digest(text)} -->" for name, text in files.items())
    return _sealed(f"""---
license: {facts.licence}
library_name: transformers
pipeline_tag: feature-extraction
tags:
- speech
- hubert
- knowledge-distillation
- s3prl-ekd
---

# Distilled speech encoder

{_origin(part)}

```python
from transformers import AutoFeatureExtractor, AutoModel
extractor, model = AutoFeatureExtractor.from_pretrained(FOLDER), AutoModel.from_pretrained(FOLDER)
inputs = extractor(waveform, sampling_rate=16000, return_tensors="pt")
states = model(**inputs, output_hidden_states=True).hidden_states  # {shape.layers + 1} x (1, frames, {shape.width})
```

`hidden_states[0]` is the input of the first transformer layer; s3prl's `ekd_student` upstream gives the projected conv
features there. All later states are the same{last}.

## Training data

{facts.data or _NO_DATA}

{_method(part, shape, parameters)}
{facts.scores}{record}""")


def card_facts(card: str) -> CardFacts:
    """What an earlier :func:`huggingface_card` was told, read from its text."""
    card = _WRITTEN.sub("", _SEAL.sub("", card))
    licence = re.search(r"^license: (.*)$", card, flags=re.MULTILINE)
    # to the last such heading: the user's words may have headings of their own
    data = re.search(r"^## Training data\n\n(.*)\n\n## Model$", card, flags=re.MULTILINE | re.DOTALL)
    _, heading, scores = card[data.end() if data else 0 :].partition(_SCORES)
    return CardFacts(
        licence[1] if licence else CardFacts.licence,
        data[1] if data and data[1] != _NO_DATA else None,
        heading + scores,
    )


def is_edited(card: str) -> bool:
    """Whether a card is not as an export wrote it: its last line holds the digest of the others."""
    return _sealed(_SEAL.sub("", card)) != card


def written(card: str) -> dict[str, str]:
    """Name -> :func:`digest` of each file that was written with a card."""
    return dict(_WRITTEN.findall(card))


def digest(text: str) -> str:
    """What a comment in a card keeps of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def says_origin(card: str) -> bool:
    """Whether a card says how its student was trained, which a transformers folder does not know."""
    return _NO_ORIGIN not in card


def _sealed(card: str) -> str:
    return f"{card}\n<!-- as s3prl-ekd wrote it: {digest(card)} -->\n"


def _origin(part: Mapping[str, Any]) -> str:
    if part.get("config") is None:
        return _NO_ORIGIN
    teachers = part["config"]["ekd"]["teachers"]
    listed = ", ".join(f"{_plain(teacher['name'])} (`{_shown(teacher['source'])}`)" for teacher in teachers)
    return (
        f"A small student distilled from {len(teachers)} teacher{'s' * (len(teachers) > 1)}: {listed}, after {PAPER}."
    )


def _shown(source: str) -> str:
    """A teacher's source for readers elsewhere: of a file or folder here its last name, not where it lies."""
    is_elsewhere = "://" in source or source.removeprefix(RANDOM).startswith(HF)
    return _plain(source if is_elsewhere else source.rstrip("/").rsplit("/", 1)[-1])


def _plain(text: str) -> str:
    """A name out of a checkpoint, which may be somebody else's, without what Markdown or HTML would make of it."""
    return re.sub(r"[^\w .,:/+()?=&%~@#-]+", "_", text)


def _method(part: Mapping[str, Any], shape: EncoderShape, parameters: int | None = None) -> str:
    lines = [
        "## Model",
        "",
        f"- {len(shape.conv_layers)} convolutions, {shape.layers} transformer layers of width {shape.width} "
        f"({shape.heads} attention heads, feed-forward {shape.ffn_width})",
    ]
    if parameters is not None:
        lines.append(f"- {parameters:,} parameters")
    if part.get("config") is not None:
        ekd = part["config"]["ekd"]
        teachers = ((_plain(teacher["name"]), list(map(int, teacher["layers"]))) for teacher in ekd["teachers"])
        layers = "; ".join(f"{name} {numbers}" for name, numbers in teachers)
        lines += [
            f"- targets: {_MODES[ekd['mode']]}; teacher layers: {layers}",
            f"- loss: {_loss(part)}",
            f"- started from: {_shown(ekd['initialise_from'] or 'random weights')}",
        ]
        options = _options(part["config"])
        if options:
            lines.append(f"- options that are off by default: {'; '.join(options)}")
    if isinstance(part.get("merged"), list):
        tuned = [one for one in part["merged"] if isinstance(one, Mapping) and one.get("fine_tuned") is not None]
        text = f"interpolated from {len(part['merged'])} students (s3prl-ekd merge), each distilled by itself"
        if tuned:
            tasks = ", ".join(sorted({_plain(str(one["fine_tuned"])) for one in tuned}))
            text += f", {len(tuned)} of them fine-tuned on a task before (`-d {tasks} -f`)"
        first = "" if part.get("config") is None else "; targets, loss and start are the first one's"
        lines.append(f"- weights: {text}{first}")
    if "fine_tuned" in part:
        tasks = ", then ".join(f"`-d {_plain(task)} -f`" for task in str(part["fine_tuned"]).split(", "))
        lines.append(f"- weights: fine-tuned on a task afterwards ({tasks})")
    return "\n".join([*lines, f"- {MADE_WITH} {__version__}"])


def _loss(part: Mapping[str, Any]) -> str:
    own = part.get("objective")
    if own is not None:
        return f"{_plain(str(own))}, of the author's own (docs/extending.md of s3prl-ekd)"
    ekd = part["config"]["ekd"]
    terms = ((ekd.get("l1_weight", 1.0), "L1"), (ekd["cosine_weight"], "(-log sigmoid(cosine))"))
    named = (name if weight == 1 else f"{weight:g} * {name}" for weight, name in terms if weight)
    return f"{' + '.join(named)}, mean over heads"


def _options(config: Mapping[str, Any]) -> list[str]:
    """``key: value`` of each option that a student was trained with and the paper's plain recipe does not have."""
    usual = EkdConfig(teachers=[TeacherConfig(name="any", source="any")]).model_dump(mode="json")
    usual |= {f"student.{key}": _USUAL_STUDENT[key] for key in _STUDENT} | {"distortion.setup": None}
    student, distortion = config.get("student", {}), config.get("distortion")
    setup = distortion.get("setup") if isinstance(distortion, Mapping) else None  # its files' places are not told
    of_student = {f"student.{key}": student[key] for key in _STUDENT if key in student}
    trained = config["ekd"] | of_student | {"distortion.setup": setup}
    told = []
    for key in (key for key in usual if key not in _NO_OPTIONS):
        value, default = trained.get(key, usual[key]), usual[key]
        for name, one in value.items() if isinstance(value, Mapping) else [("", value)]:
            before = default.get(name) if isinstance(default, Mapping) else default
            if str(one) != str(before):  # texts: of somebody else's checkpoint, anything may stand there
                told.append(f"{key}{name and f'.{name}'}: {one}")
    return [_plain(re.sub(r"['\"\[\]{}]", "", text)) for text in told]


def scores_section(record: Mapping[str, Any]) -> str:
    """The section of a card that holds the scores of a record of ``s3prl-ekd evaluate`` (scores.json)."""
    tasks = record["tasks"]
    rows = []
    for name, task in TASKS.items():
        if name in tasks:
            scores, metric = tasks[name], task.metric
            title = f"{name.upper()} ({spelt(metric)} %)"
            error = scores.get("standard_error", {}).get(metric)
            spread = "" if error is None else f" ± {error:.2f}"
            rate = scores.get("lr")
            utterances, steps = (_plain(str(scores.get(key, ""))) for key in ("n_utterances", "steps"))
            how = f"{steps} | {'' if rate is None else f'{rate:g}'}"
            rows.append(f"| {title} | {scores[metric]:.2f}{spread} | {utterances} | {how} |")
    table = "\n".join(rows)
    counts = {len(task["seeds"]) for task in tasks.values() if "seeds" in task}
    er_folds = [_plain(fold) for fold in folds(first_part(tasks.get("er", {})))]
    some = f" ER is the mean over {', '.join(er_folds)} alone." if 0 < len(er_folds) < 5 else ""  # IEMOCAP has five
    alone = " Clips were encoded alone, not in padded batches." if record.get("cache_states") else ""
    number = " to ".join(map(str, sorted({min(counts), max(counts)}))) if counts else ""
    means = f" Means over {number} seeds ± their standard error." if counts else ""
    label, preset = (_plain(str(record.get(key))) for key in ("label", "preset"))
    return f"""{_SCORES}

Measured with s3prl's own downstream runner (`{label}`, preset `{preset}`) on the data of its
`scores.json`. They are comparable with the SUPERB leaderboard only where that data and the steps below are
SUPERB's.{means}{some}{alone}

| task | test | utterances | training steps | learning rate |
| --- | --- | --- | --- | --- |
{table}
"""
