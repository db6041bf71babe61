"""Models of the Hugging Face Hub, ``hf:OWNER/NAME`` or a file ``hf:OWNER/NAME/FILE``, through huggingface_hub's cache.

Token, endpoint, cache folder and offline mode are that library's (``HF_TOKEN``, ``HF_ENDPOINT``, ``HF_HOME``,
``HF_HUB_OFFLINE``). Of a transformers model its configuration, a few kilobytes, comes first, then the weights. No more
of a repository is fetched than makes a teacher, and no code of it.
"""

from __future__ import annotations

from pathlib import Path

from s3prl_ekd.errors import EkdError
from s3prl_ekd.source_names import HF, HubModel, split_hub_model
from s3prl_ekd.teachers.files import CONFIG, EXTRACTORS, WEIGHTS, extractor_normalizes, has_weights, shard_names


class _Unreachable(EkdError):
    """The Hub does not answer, and what it was asked for is not in the cache."""


def locate(source: str, where: str) -> Path:
    """Where the cache has a model: its checkpoint file; or the folder of a transformers model, perhaps without weights.

    Raises:
        EkdError: no such model or file, no transformers model, or the Hub cannot be reached and it is not in the cache.
    """
    model = split_hub_model(source)
    if model.file is not None:
        file = _file(source, model.file, model.revision, where)
        if file is None:
            raise EkdError(f"{where}: {source!r}: the model has no such file{_files(model)}")
        return file
    config = _file(source, CONFIG, model.revision, where)
    if config is None:
        raise EkdError(f"{where}: {source!r} has no {CONFIG}, so it is no transformers model{_files(model)}")
    folder = config.parent
    try:
        for name in EXTRACTORS:
            _file(source, name, folder.name, where)
    except _Unreachable:
        if extractor_normalizes(folder) is None:  # `hf download` keeps no note of what a repository lacks
            raise
    return folder


def is_here(source: str) -> bool:
    """Whether the cache has the checkpoint file that a source names; nothing is asked for."""
    from huggingface_hub import try_to_load_from_cache

    model = split_hub_model(source)
    assert model.file is not None
    return isinstance(try_to_load_from_cache(model.repository, model.file, revision=model.revision), str)


def fetch_weights(source: str, folder: Path, where: str) -> None:
    """See that the weights lie in the folder that :func:`locate` found.

    Raises:
        EkdError: there are none, or the Hub cannot be reached and they are not in the cache.
    """
    try:
        _fetch_weights(source, folder, where)
    except _Unreachable:
        if not has_weights(folder):
            raise


def _fetch_weights(source: str, folder: Path, where: str) -> None:
    for name in WEIGHTS:
        file = _file(source, name, folder.name, where)
        if file is None:
            continue
        for shard in shard_names(file) if name.endswith(".json") else ():
            if _file(source, shard, folder.name, where) is None:
                raise EkdError(f"{where}: {source!r} has no {shard}, though {name} names it")
        return
    raise EkdError(f"{where}: {source!r} has no weights ({', '.join(WEIGHTS)})")


def pinned(source: str, located: Path) -> str:
    """The source with the commit at which :func:`locate` found it: the same weights whenever it is read again."""
    repository, file, _ = split_hub_model(source)
    if file is None:
        return f"{HF}{repository}@{located.name}"
    return f"{HF}{repository}/{file}@{located.parents[file.count('/')].name}"


def _file(source: str, name: str, revision: str | None, where: str) -> Path | None:
    """A file of a repository, from the cache or downloaded into it; None where the repository has none of that name.

    Raises:
        EkdError: no such repository or revision, or the download failed.
        _Unreachable: see there.
    """
    # the package's own marker of a file that a repository lacks, as transformers too imports it
    from huggingface_hub import _CACHED_NO_EXIST, errors, hf_hub_download, try_to_load_from_cache

    model = split_hub_model(source)._replace(revision=revision)
    known = try_to_load_from_cache(model.repository, name, revision=revision) if model.is_pinned else None
    if known is not None:
        return Path(known) if isinstance(known, str) else None
    try:
        return Path(hf_hub_download(model.repository, name, revision=revision))
    except errors.GatedRepoError as error:
        raise EkdError(
            f"{where}: {source!r}: its owner's terms are to be accepted first, on its page; then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise EkdError(f"{where}: {source!r}: no such model, or a private one (`hf auth login`)") from error
    except errors.RevisionNotFoundError as error:
        raise EkdError(f"{where}: {source!r}: the model has no revision {revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        if try_to_load_from_cache(model.repository, name, revision=revision) is _CACHED_NO_EXIST:
            return None
        wanted = split_hub_model(source).revision
        at = f" --revision {wanted}" if wanted else ""
        raise _Unreachable(
            f"{where}: {source!r}: the Hugging Face Hub cannot be reached, and {name} is not in its cache here; "
            f"on another machine run `hf download {model.repository}{at} --local-dir DIR`, copy DIR here, and give DIR "
            "or the file in it instead"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except Exception as error:  # the downloader raises whatever its HTTP library raises, or the disk
        raise EkdError(f"{where}: {source!r}: {name} could not be downloaded ({type(error).__name__})") from error


def _files(model: HubModel) -> str:
    """The end of a message: the checkpoint files of a repository that can be named, where it says."""
    from huggingface_hub import HfApi

    try:
        listed = HfApi().list_repo_files(model.repository, revision=model.revision)
    except Exception:  # offline, or whatever the HTTP library raises; the message says enough without
        return ""
    at = f"@{model.revision}" if model.revision else ""
    files = [f"{HF}{model.repository}/{file}{at}" for file in listed if file.endswith((".pt", ".pth", ".ckpt", ".gz"))]
    return f"; perhaps you mean: {', '.join(files[:5])}" if files else ""
