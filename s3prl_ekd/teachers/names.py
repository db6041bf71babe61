"""What can be named as a teacher: told by the name alone, without torch and without reading a file.

What a source is, its layers and width, is ``sources.py``'s to say.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from s3prl_ekd.compat.hub import check_upstream_name, upstream_names
from s3prl_ekd.errors import EkdError
from s3prl_ekd.source_names import HF, RANDOM, S3PRL, split_hub_model, split_upstream
from s3prl_ekd.spelling import did_you_mean
from s3prl_ekd.teachers import embedded
from s3prl_ekd.teachers.hub import HUB
from s3prl_ekd.user_paths import expanded

_LISTED = "`s3prl-ekd teachers` lists what can be named"
_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar", ".gz", ".zip", ".json", ".yaml", ".onnx")


def check_source(source: str, where: str = "source") -> None:
    """Refuse what names no teacher.

    Args:
        source: as ``ekd.teachers[].source``.
        where: the configuration key or command, for messages.

    Raises:
        EkdError: no embedded teacher, file, folder, hub name or upstream of s3prl's, with what may be meant; what
            cannot be a model's name on the Hugging Face Hub; or an upstream without the checkpoint that it needs.
    """
    name = source.removeprefix(RANDOM)
    if name in ("", S3PRL, HF):
        raise EkdError(f"{where}: {source!r}: the name is missing; {_LISTED}")
    if name.startswith(embedded.PREFIX):
        embedded.folder(name, where)
        return
    if name.startswith(HF):
        _check_hub_model(name, where)
        return
    if model_path(name) is not None or name in HUB:
        return
    if name.startswith(S3PRL):
        if name != source:
            raise EkdError(f"{where}: {source!r}: random weights are not available for s3prl's own upstreams")
        upstream, checkpoint = split_upstream(name)
        check_upstream_name(upstream, f"{where}:")
        if upstream.endswith(("_local", "_custom")) and not checkpoint:
            raise EkdError(f"{where}: {upstream} needs a checkpoint: {S3PRL}{upstream}:FILE")
        if upstream.endswith("_local") and not _absolute(checkpoint).exists():
            raise EkdError(f"{where}: no such file or folder: {_absolute(checkpoint)}")
        return
    if _is_path(name):
        raise EkdError(f"{where}: no such file or folder: {_absolute(name)}")
    if "conformer" in name:
        raise EkdError(f"{where}: {name!r} has conformer layers, which have no mapping here; try '{S3PRL}{name}'")
    what = "is no s3prl hub name of the wav2vec2 family, checkpoint file or transformers folder"
    raise EkdError(f"{where}: {name!r} {what}; {_hint(name)}")


def model_path(source: str, base: Path = Path()) -> Path | None:
    """The file or folder that a source is, looked for from ``base``; None where there is none.

    A folder with the name of a hub model counts only if it holds a config.json: result folders are often named after
    their teacher.
    """
    path = base / expanded(source)
    if source in HUB and path.is_dir() and not (path / "config.json").is_file():
        return None
    return path if path.exists() else None


def _check_hub_model(source: str, where: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    model = split_hub_model(source)
    try:
        validate_repo_id(model.repository)
        name, _, _ = source.partition("@")
        complete = {"", ".", ".."}.isdisjoint(name.split("/"))
    except HFValidationError:
        complete = False
    if not complete:
        raise EkdError(f"{where}: {source!r}: expected {HF}OWNER/NAME or {HF}OWNER/NAME/FILE, and perhaps @REVISION")
    if model.file is not None and model.file.endswith((".safetensors", "pytorch_model.bin")):
        raise EkdError(f"{where}: {source!r}: a transformers model is named by its repository: {HF}{model.repository}")
    if model.revision is None and "@" in source:
        raise EkdError(f"{where}: {source!r}: the revision behind @ is missing")


def _is_path(source: str) -> bool:
    """Whether a source that is not there can only have been meant as a file or folder."""
    if "://" in source:
        return False
    begins = source.startswith(("/", "./", "../", "~"))
    return begins or source.endswith("/") or source.count("/") > 1 or source.lower().endswith(_SUFFIXES)


def _absolute(source: str) -> Path:
    """Where it was looked for; a relative one is below the current folder."""
    return Path(os.path.abspath(expanded(source)))


def _hint(source: str) -> str:
    """What may have been meant by a source that is none."""
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", source):
        return f"there is no folder {_absolute(source)}; the model of that name on huggingface.co is '{HF}{source}'"
    if source in upstream_names():
        return f"another upstream of s3prl's is '{S3PRL}{source}'"
    return did_you_mean(source, HUB, count=3).removeprefix("; ") or _LISTED
