"""The models of a call: ``--ckpt``, ``--teacher``, ``--upstream``, ``--untrained``, ``--models``, ``--label``.

Every one becomes an :class:`Upstream`, which s3prl's ``-u -k -g`` name. Nothing is trained here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from s3prl_ekd.checked import read_each
from s3prl_ekd.compat.hub import check_upstream_name
from s3prl_ekd.ensemble_file import ENSEMBLE, read_members
from s3prl_ekd.errors import EkdError, naming
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.source_names import HF, S3PRL
from s3prl_ekd.teachers.names import check_source, model_path
from s3prl_ekd.user_paths import expanded
from s3prl_ekd.variants import find_model_config

STUDENT = "ekd_student"  # the hub name under which the bridge registers our upstream
WITH_HEADS = "ekd_student_with_heads"
TEACHER = "ekd_teacher"  # and that of a teacher, whose checkpoint is any source of ekd.teachers
_KEYS = ("label", "ckpt", "teacher", "upstream", "untrained", "layer", "feature")
_ALL_STATES = "hidden_states"  # what s3prl reads without -s
_LACKS = {  # what our upstreams are named by beside, or in place of, --upstream
    STUDENT: "--ckpt CKPT instead",
    TEACHER: "--teacher SOURCE instead",
    WITH_HEADS: "the student too: --ckpt CKPT",
    ENSEMBLE: "the list of its models too: --ckpt FILE.yaml",
}
_ALONE = {"teacher": "a teacher", "untrained": "an untrained student"}  # kinds that go with no other
_FILES = ("scores.json", "scores.md", "robustness.md")  # of a table, beside the folders of its rows
_NOTHING = "nothing to evaluate: give --ckpt CKPT, --teacher SOURCE, --upstream NAME or --untrained MODEL"


@dataclass(frozen=True)
class Upstream:
    """A model to evaluate, as s3prl names it: ``-u name [-k checkpoint] [-g model_config] [-s feature] [-l layer]``."""

    name: str
    label: str
    checkpoint: Path | str | None = None  # a string: a source of ekd.teachers
    model_config: Path | None = None
    feature: str | None = None  # the key of its output that tasks read; None: all hidden states
    layer: int | None = None  # the only one of these states; None: their weighted sum
    named: bool = field(default=False, compare=False)  # by the user: LABEL=VALUE, --label, label in --models
    row: str | None = field(default=None, compare=False)  # its folder in a table that has it already

    def arguments(self) -> list[str]:
        """The upstream's part of a native command."""
        words = ["-u", self.name]
        if self.checkpoint is not None:
            words += ["-k", str(self.checkpoint)]
        if self.model_config is not None:
            words += ["-g", str(self.model_config)]
        if self.feature is not None:
            words += ["-s", self.feature]
        if self.layer is not None:
            words += ["-l", str(self.layer)]
        return words

    def record(self) -> dict[str, Any]:
        """What the scores say of it, but for its label and the digest of its weights."""
        return {
            "upstream": self.name,
            "checkpoint": str(self.checkpoint) if self.checkpoint else None,
            "model_config": str(self.model_config) if self.model_config else None,
            "feature": self.feature,
            "layer": self.layer,
        }

    @property
    def folder(self) -> str:
        """Name of this model's folder below ``--out`` where several models are evaluated."""
        return self.row or folder_name(self.label)


def read_states(record: Mapping[str, Any]) -> list[str]:
    """What of the hidden states tasks read, where it is not the sum of all."""
    feature, layer = record.get("feature"), record.get("layer")
    return ([] if feature is None else [feature]) + ([] if layer is None else [f"layer {layer}"])


def folder_name(label: str) -> str:
    """A label, file-safe, and not the name of a file that stands among the folders."""
    name = re.sub(r"[^\w.+-]+", "-", label).strip("-.") or "model"
    return f"{name}-model" if name.lower() in _FILES else name


def choose_models(
    given: Sequence[tuple[str, str]], listing: Path | None = None, label: str | None = None
) -> list[Upstream]:
    """The models of a command line in its order, those of ``--models`` first.

    ``given`` holds kinds (``ckpt``, ``teacher``, ``upstream``, ``untrained``), each with ``VALUE`` or ``LABEL=VALUE``.
    One ``ckpt`` and one ``upstream``, both without a label, are one model: s3prl's ``-u NAME -k FILE``.

    Raises:
        EkdError: no model, a file that is not there, two models of one label, ``--label`` beside several models.
    """
    models = [] if listing is None else read_listing(listing)
    options = [(kind, *split_label(text)) for kind, text in given]
    pair = [option for option in options if option[0] not in _ALONE]
    if len(pair) == 2 and {kind: own for kind, own, _ in pair} == {"ckpt": None, "upstream": None}:
        models.append(choose({kind: value for kind, _, value in pair}))
        options = [option for option in options if option[0] in _ALONE]
    models += [choose({kind: value}, own) for kind, own, value in options]
    if not models:
        raise EkdError(_NOTHING)
    if label is not None and len(models) > 1:
        raise EkdError(
            f"--label {label}: names one model, and {len(models)} are given; write --ckpt LABEL=PATH instead"
        )
    if label is not None:
        models = [replace(models[0], label=label, named=True)]
    check_labels(models)
    return models


def check_labels(models: Sequence[Upstream]) -> None:
    """See that each model has a label that can be written and read again, and a folder of its own.

    Raises:
        EkdError: an empty label, one with control characters or odd spaces; two of one label, or of one folder.
    """
    seen: dict[str, str] = {}  # folders by their names in lower case, as some file systems see them
    for model in models:
        if not model.label.strip() or not model.label.isprintable():  # scores_file.py reads no such record
            raise EkdError(f"label {model.label!r}: expected printable characters; give another one, LABEL=VALUE")
        other = seen.get(model.folder.lower())
        if other is not None:
            same = f"two models are called {other!r}" if other == model.label else f"{other!r} and {model.label!r}"
            raise EkdError(f"{same}: their runs would share the folder {model.folder}; give each a label, LABEL=VALUE")
        seen[model.folder.lower()] = model.label


def split_label(text: str) -> tuple[str | None, str]:
    """Split ``"LABEL=VALUE"``; there is no label where the text is a path itself, or its ``=`` comes after a ``/``."""
    label, equals, value = text.partition("=")
    if not equals or "/" in label or Path(text).exists():
        return None, text
    if not label.strip() or not value:
        raise EkdError(f"{text!r}: expected LABEL=VALUE")
    return label.strip(), value


def read_listing(path: Path) -> list[Upstream]:
    """Read ``--models FILE``: a YAML list of mappings with ``label`` and the keys that name the model.

    These are ``ckpt``, ``upstream``, both, ``teacher`` or ``untrained``; ``layer`` and ``feature`` name what of its
    states is read. Paths are relative to the file.

    Raises:
        EkdError: not such a list, or a model that is not there.
    """
    expected = f"a list of models, each with some of {', '.join(_KEYS)}"
    try:
        return read_each(path, lambda entry: _entry(entry, path.parent), least=1, expected=expected)
    except EkdError as error:
        raise EkdError(f"--models {error}") from error


def _entry(entry: Any, folder: Path) -> Upstream:
    texts = {key: value for key, value in entry.items() if key != "layer"} if isinstance(entry, dict) else {}
    if not texts or not all(isinstance(value, str) for value in texts.values()):
        raise EkdError(f"expected a mapping of {', '.join(_KEYS)} to text (layer: to a number)")
    unknown = [key for key in entry if key not in _KEYS]
    if unknown:
        raise EkdError(f"unknown key {unknown[0]!r}; expected some of {', '.join(_KEYS)}")
    label, feature = texts.pop("label", None), texts.pop("feature", _ALL_STATES)
    model = choose(texts, label, folder)
    return _reading(model, None if feature == _ALL_STATES else feature, entry.get("layer"))


def _reading(model: Upstream, feature: str | None, layer: Any) -> Upstream:
    """The model of which tasks read one key of its output, one layer, or both; its own label says which."""
    shape = None if layer is None or feature is not None else encoder_shape(model)
    last = None if shape is None else shape.layers  # of another model s3prl says it in the run
    if layer is not None and (type(layer) is not int or layer < 0 or (last is not None and layer > last)):
        upto = "or more" if last is None else f"to {last}, the states of {model.label}"
        raise EkdError(f"layer: {layer!r}: expected a whole number, 0 {upto}")
    if feature is not None and (not feature.strip() or not feature.isprintable()):
        raise EkdError(f"feature: {feature!r}: expected a key of the upstream's output, as last_hidden_state")
    chosen = replace(model, feature=feature, layer=layer)
    return chosen if model.named else replace(chosen, label=", ".join([model.label, *read_states(chosen.record())]))


def encoder_shape(upstream: Upstream) -> EncoderShape | None:
    """The shape of a model that is an encoder of ours, a student or a teacher; None of any other.

    Raises:
        EkdError: the checkpoint or configuration is not readable, or there is no such teacher.
    """
    if upstream.name == TEACHER:
        from s3prl_ekd.teachers.sources import describe  # torch: not needed for --help

        return describe(str(upstream.checkpoint), "--teacher").encoder_shape
    if upstream.name == STUDENT and upstream.checkpoint is not None:
        from s3prl_ekd.student_checkpoint import read_checkpoint

        return EncoderShape.from_dict(read_checkpoint(upstream.checkpoint)["shape"])
    if upstream.name == STUDENT and upstream.model_config is not None:
        from s3prl_ekd.config import load_model_config
        from s3prl_ekd.model.student import student_shape

        config = load_model_config(upstream.model_config)
        with naming(upstream.model_config):
            return student_shape(config.student)
    return None


def choose(given: Mapping[str, str], label: str | None = None, folder: Path = Path()) -> Upstream:
    """Find the model that options, or keys of ``--models``, name.

    An upstream with a ckpt is s3prl's ``-u NAME -k FILE``.

    Args:
        given: some of ckpt, teacher, upstream, untrained -> value.
        label: as the user calls it, or None.
        folder: where relative paths begin.

    Raises:
        EkdError: a file that is not there, or values that do not go together.
    """
    for kind, what in _ALONE.items():
        others = [other for other in given if other != kind]
        if kind in given and others:
            raise EkdError(f"{what} is one model, and so without {' and '.join(others)} of its own")
    if "teacher" in given:
        return choose_teacher(given["teacher"], label, folder)
    if "untrained" in given:
        file = folder / expanded(given["untrained"])
        model_config = find_model_config(str(file) if file.is_file() else given["untrained"], "--untrained")
        return Upstream(STUDENT, label or "untrained student", model_config=model_config, named=label is not None)
    name = given.get("upstream")
    if "ckpt" in given and given["ckpt"].startswith(HF):
        return _choose_published(given["ckpt"], name, label)
    if "ckpt" in given:
        return _choose_checkpoint(folder / expanded(given["ckpt"]), name, label)
    if name is None:
        raise EkdError(_NOTHING)
    if name in _LACKS:
        raise EkdError(f"--upstream {name}: give {_LACKS[name]}")
    return Upstream(name, label or name, named=label is not None)


def choose_teacher(source: str, label: str | None, folder: Path = Path()) -> Upstream:
    """Find a teacher by its source; no weights are read.

    Raises:
        EkdError: no such teacher.
    """
    if source.startswith(S3PRL):
        raise EkdError(f"--teacher {source}: is an upstream of s3prl's own; give its name to --upstream instead")
    path = model_path(source, folder) or model_path(source)
    source = source if path is None else str(path.resolve())
    check_source(source, "--teacher")
    from s3prl_ekd.teachers import sources  # torch: not needed for --help and the mistakes above

    found = sources.describe(source, "--teacher").pinned
    own = source.removeprefix("embedded:").removeprefix(HF)
    return Upstream(TEACHER, label or own, checkpoint=found, named=label is not None)


def _choose_published(source: str, name: str | None, label: str | None) -> Upstream:
    """A student of the Hugging Face Hub, at the commit that it has now."""
    if name is not None and not name.startswith(STUDENT):
        raise EkdError(f"--ckpt {source}: a student of the Hugging Face Hub, which s3prl's {name} does not read")
    from s3prl_ekd.student_checkpoint import pinned_student  # torch: not needed for --help and the mistakes above

    found = pinned_student(source, "--ckpt")
    own = label or _student_label(source.removeprefix(HF), name)
    return Upstream(name or STUDENT, own, checkpoint=found, named=label is not None)


def _choose_checkpoint(ckpt: Path, name: str | None, label: str | None) -> Upstream:
    if not ckpt.exists():
        raise EkdError(f"--ckpt {ckpt}: not found; expected a states-N.ckpt file or an experiment folder")
    from s3prl_ekd.student_checkpoint import is_student  # torch: not needed for --help

    if name == ENSEMBLE:
        read_members(ckpt)
        return Upstream(name, label or ckpt.stem, checkpoint=ckpt.resolve(), named=label is not None)
    ours = name is None or name.startswith(STUDENT)
    if not ours and is_student(ckpt):
        raise EkdError(
            f"--ckpt {ckpt}: a student, which s3prl's {name} does not read; to set the two side by side, give them "
            f"labels: --ckpt LABEL={ckpt} --upstream {name}"
        )
    path = student_checkpoint(ckpt) if ours else ckpt.resolve()
    own = label or _student_label(f"{path.parent.name}/{path.name if path.is_dir() else path.stem}", name)
    return Upstream(name or STUDENT, own, checkpoint=path, named=label is not None)


def _student_label(own: str, name: str | None) -> str:
    return f"{own} with heads" if name == WITH_HEADS else own


def student_checkpoint(path: Path) -> Path:
    """The student's checkpoint file (a folder's newest), read once so that a wrong one fails here and not in a run."""
    from s3prl_ekd.student_checkpoint import newest_checkpoint, read_checkpoint  # torch: not needed for --help

    file = newest_checkpoint(path).resolve()
    read_checkpoint(file)
    return file


def check_names(models: Sequence[Upstream]) -> None:
    """Check that s3prl's hub has the models' names, which costs nothing where it has.

    Raises:
        EkdError: a name that it does not have.
    """
    for model in models:
        if model.name not in (STUDENT, TEACHER):
            check_upstream_name(model.name, "--upstream")
