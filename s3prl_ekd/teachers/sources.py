"""Where teachers come from: the package, either hub, a checkpoint file, a transformers folder, any s3prl upstream.

Two steps, so that mistakes show before anything is downloaded: :func:`describe` says what a source is (layers, width)
from its name or header; :func:`load` gives the encoder with its weights. No file is ever unpickled freely.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from s3prl_ekd.compat import hub
from s3prl_ekd.errors import EkdError, naming, reading
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.random_state import seeded
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.source_names import HF, RANDOM, S3PRL, split_hub_model, split_source
from s3prl_ekd.teachers import adapter, embedded, huggingface, mapping, shapes
from s3prl_ekd.teachers.adapter import S3prlUpstream, UpstreamShape
from s3prl_ekd.teachers.files import (
    extractor_normalizes,
    has_weights,
    kind_of_file,
    read_json,
    read_teacher_file,
    transformers_weights,
)
from s3prl_ekd.teachers.hub import HUB
from s3prl_ekd.teachers.names import check_source, model_path

__all__ = ["HUB", "TeacherSource", "describe", "load"]


@dataclass(frozen=True)
class TeacherSource:
    """What a source is, known without its weights."""

    source: str
    """As the user wrote it."""
    kind: Literal[
        "embedded", "hub", "huggingface", "converted", "fairseq", "transformers", "random", "s3prl", "student"
    ]
    """student: a checkpoint of ours, from which a student may start (build.py); no teacher."""
    family: str
    """hubert, wavlm, wav2vec2, ...: for messages and model cards."""
    shape: EncoderShape | UpstreamShape
    path: Path | None
    """File or folder; None for a hub name, for random weights, and for an upstream of s3prl's without one. Of a model
    of the Hugging Face Hub such a folder lacks the weights until they are loaded."""

    @property
    def encoder_shape(self) -> EncoderShape:
        """The shape of an encoder of ours.

        Raises:
            EkdError: the source is an s3prl expert.
        """
        if isinstance(self.shape, UpstreamShape):
            raise EkdError(f"{self.source}: is an upstream of s3prl's own, no encoder of ours")
        return self.shape

    @property
    def pinned(self) -> str:
        """The source, a model of the Hugging Face Hub with its commit: what means the same weights for ever."""
        if self.kind != "huggingface":
            return self.source
        assert self.path is not None
        return huggingface.pinned(self.source, self.path)


def describe(source: str, where: str = "source") -> TeacherSource:
    """Say what a source is without loading or downloading weights.

    From the Hugging Face Hub comes the configuration of a transformers model, but a checkpoint file whole. Another
    exception is ``s3prl:NAME``: nothing but a forward pass tells an upstream's layers and width, so that its
    checkpoint is downloaded and loaded here.

    Args:
        source: ``embedded:NAME``, an s3prl hub name, ``hf:OWNER/NAME`` or ``hf:OWNER/NAME/FILE`` (perhaps with
            ``@REVISION``), a file, a folder, ``random:`` before any of these, or ``s3prl:NAME`` / ``s3prl:NAME:CKPT``.
        where: the configuration key, for messages.

    Raises:
        EkdError: nothing of that name; a folder or file that is no teacher we know; the Hub cannot be reached.
    """
    check_source(source, where)
    if source.startswith(RANDOM) and source.removeprefix(RANDOM) not in HUB:
        other = describe(source.removeprefix(RANDOM), where)
        return TeacherSource(source, "random", other.family, other.shape, None)
    if source.startswith(embedded.PREFIX):
        return replace(_describe_path(source, embedded.folder(source, where), where), kind="embedded")
    if source.startswith(HF):
        return replace(_describe_path(source, huggingface.locate(source, where), where), kind="huggingface")
    path = model_path(source)
    if path is not None:
        return _describe_path(source, path, where)
    if source.startswith(S3PRL):
        upstream = adapter.built_upstream(source, where)
        _, name = split_source(source)
        return TeacherSource(source, "s3prl", upstream.name, upstream.shape, model_path(name))
    name = source.removeprefix(RANDOM)
    return TeacherSource(source, "hub" if name == source else "random", HUB[name].family, HUB[name].shape, None)


def is_known_by_loading(source: str) -> bool:
    """Whether :func:`describe` downloads the whole of a source, or loads it."""
    name = source.removeprefix(RANDOM)
    if name.startswith(HF) and split_hub_model(name).file is not None:
        return not huggingface.is_here(name)
    return source.startswith(S3PRL)


def load(teacher: TeacherSource, where: str = "source") -> Encoder | S3prlUpstream:
    """Build the encoder of a described teacher and load its weights, in fp32 on the CPU, in eval mode.

    Raises:
        EkdError: the download failed, or weights do not fit the shape.
    """
    if teacher.kind == "s3prl":
        return adapter.take_upstream(teacher.source, where)
    if teacher.kind == "random":  # shapes for benchmarks and memory checks; the seed makes runs comparable
        with seeded(zlib.crc32(teacher.source.encode())):
            return Encoder(teacher.encoder_shape).eval()
    path = weights_path(teacher, where)
    assert path is not None
    with naming(where):
        return _load_path(teacher, path).eval()


def weights_path(teacher: TeacherSource, where: str, download: bool = True) -> Path | None:
    """The file or folder with the weights of a described teacher.

    Args:
        download: fetch them where they are not on this machine yet; without it None then.

    Raises:
        EkdError: the download failed.
    """
    if teacher.kind == "hub":
        return hub_file(teacher.source, where, download)
    if teacher.kind == "huggingface" and teacher.path is not None and teacher.path.is_dir():
        if download:
            huggingface.fetch_weights(teacher.source, teacher.path, where)
        elif not has_weights(teacher.path):
            return None
    return teacher.path


def _describe_path(source: str, path: Path, where: str) -> TeacherSource:
    # e.g. a width that its heads do not divide, unequal lists of convolutions
    with naming(where), reading(f"the configuration in {path} describes no encoder"):
        if path.is_dir():
            config = read_json(path / "config.json")
            described = shapes.from_transformers(config, path / "config.json", extractor_normalizes(path))
            return TeacherSource(source, "transformers", *described, path)
        kind, family, shape, _ = kind_of_file(read_teacher_file(path, mmap=True), path)
        return TeacherSource(source, kind, family, shape, path)


def _load_path(teacher: TeacherSource, path: Path) -> Encoder:
    if path.is_dir():
        return from_transformers(teacher.encoder_shape, transformers_weights(path), path)
    _, family, shape, weights = kind_of_file(read_teacher_file(path), path)
    promised = teacher.shape  # of a hub name: the file's own configuration decides all but these
    if (shape.layers, shape.width, shape.hop) != (promised.layers, promised.width, promised.hop):
        raise EkdError(
            f"{path} holds a {family} of another shape than {teacher.source} should have: "
            f"{shape.layers} layers of {shape.width}, expected {promised.layers} of {promised.width}"
        )
    return _filled(shape, mapping.to_ours(weights, mapping.FAIRSEQ, str(path)), path)


def from_transformers(shape: EncoderShape, weights: Mapping[str, Tensor], folder: Path) -> Encoder:
    """The encoder of a transformers folder's weights, by their names there.

    Raises:
        EkdError: weights do not fit the shape.
    """
    return _filled(shape, mapping.to_ours(weights, mapping.TRANSFORMERS, str(folder)), folder)


def _filled(shape: EncoderShape, weights: dict[str, Tensor], path: Path) -> Encoder:
    encoder = Encoder(shape)
    mapping.load_into(encoder, weights, str(path))
    return encoder


def hub_file(name: str, where: str, download: bool = True) -> Path | None:
    """The checkpoint file of a hub name, through s3prl's own cache (~/.cache/s3prl/download).

    Without ``download``, None where it is not there yet.

    Raises:
        EkdError: the download failed.
    """
    url = HUB[name].url
    if not download:
        return hub.downloaded(url)
    try:
        return hub.download(url)
    except Exception as error:  # the downloader raises whatever its HTTP library raises
        raise EkdError(
            f"{where}: the checkpoint of {name!r} could not be downloaded from {url} ({type(error).__name__}); "
            "without a network, download it elsewhere and give the file's path instead of the name"
        ) from error
