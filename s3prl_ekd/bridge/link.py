"""``s3prl-ekd link`` and ``unlink``: a git checkout of s3prl whose own scripts know this project.

``link`` adds thin folders (``s3prl/pretrain/ekd``, ``s3prl/upstream/ekd_*``) and a marked block at the top of
three files: ``s3prl/hub.py``, ``s3prl/pretrain/__init__.py``, which ``run_pretrain.py`` imports first, and
``s3prl/run_downstream.py``, which imports torchaudio before the hub. A block applies the patches of ``shims.py`` before
anything else there is imported. ``unlink`` takes out the blocks and the files that ``link`` wrote. The command line is
in ``link_command.py`` and ``unlink_command.py``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from s3prl_ekd.compat.hub import UPSTREAMS
from s3prl_ekd.errors import EkdError
from s3prl_ekd.shipped import shipped
from s3prl_ekd.user_paths import expanded

BEGIN = "# >>> s3prl-ekd: made by `s3prl-ekd link`, removed by `s3prl-ekd unlink` >>>"
END = "# <<< s3prl-ekd <<<"
RECORD = ".s3prl-ekd.json"  # in each folder that link makes: file -> SHA-256 of what link wrote

_SHIMS = "from s3prl_ekd.compat.shims import apply_shims as _ekd_apply_shims\n\n_ekd_apply_shims()\n"
_HUB = "".join(
    f"from s3prl.upstream.{folder}.hubconf import {', '.join(names)}\n" for folder, names in UPSTREAMS.items()
)
BLOCKS = {
    "hub.py": _SHIMS + _HUB,
    "pretrain/__init__.py": _SHIMS,
    "run_downstream.py": _SHIMS,  # which imports torchaudio before the hub
}
_PATTERN = re.compile(rb"^" + re.escape(BEGIN.encode()) + rb".*?^" + re.escape(END.encode()) + rb"\r?\n?", re.M | re.S)


def link(checkout: Path) -> list[str]:
    """Make ``run_pretrain.py -u ekd`` and ``run_downstream.py -u ekd_student`` of a checkout work.

    Everything is checked before the first file is written; linking again changes nothing more, and brings the files
    of an older version up to date except where the user edited them.

    Args:
        checkout: the folder that ``git clone`` made.

    Returns:
        The paths changed, relative to ``checkout``; empty where everything was in place.

    Raises:
        EkdError: no git checkout of s3prl; a folder of ours exists and is not from ``link``; a broken marked block.
    """
    root = _package(checkout)
    texts = {name: _with_block(root / name, body) for name, body in BLOCKS.items()}
    folders = {root / name: files for name, files in _folders().items()}
    for folder in folders:
        if folder.exists() and not (folder / RECORD).is_file():
            raise EkdError(f"{folder}: exists and was not made by `s3prl-ekd link`; move it away first")
    records = {folder: _record(folder) for folder in folders}
    changed = []
    for folder, files in folders.items():
        for name, content in files.items():
            if _write(folder / name, content, records[folder].get(name)):
                changed.append(folder / name)
        hashes = {name: _hash(content) for name, content in files.items()}
        (folder / RECORD).write_text(json.dumps(records[folder] | hashes, indent=1) + "\n")
    changed += _rewrite(root, texts)  # last: the blocks import what the folders hold
    return _names(changed, root)


def refuse_model_keys(argv: Sequence[str]) -> None:
    """End a run of the checkout's own script that would say it has overridden such a key, and has not."""
    from s3prl_ekd.config import MODEL  # not needed to link

    if any(re.search(rf"(^|,,)\s*{MODEL}\.[^,]*=", word) for word in argv[1:]):
        raise SystemExit(
            f"error: -o {MODEL}.: s3prl's own script drops such keys; use the run_pretrain.py that s3prl-ekd "
            "installs, or a file with -g"
        )


def unlink(checkout: Path) -> tuple[list[str], list[str]]:
    """Undo :func:`link`, byte for byte.

    Returns:
        Paths relative to ``checkout``: what was removed or restored, and what stays because the user edited or added
        it (configs, results).

    Raises:
        EkdError: no git checkout of s3prl, or a broken marked block.
    """
    root = _package(checkout)
    texts = {name: _without_block(root / name) for name in BLOCKS}
    records = {root / name: _record(root / name) for name in _folders()}
    changed, kept = _rewrite(root, texts), []
    for folder, record in records.items():
        if record:
            kept += _remove(folder, record)
            changed.append(folder)
    return _names(changed, root), _names(kept, root)


def _names(paths: list[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root.parent)) for path in paths]


def _rewrite(root: Path, texts: Mapping[str, bytes]) -> list[Path]:
    """Give files below ``root`` these contents; those that had others."""
    changed = [root / name for name, text in texts.items() if text != (root / name).read_bytes()]
    for file in changed:
        file.write_bytes(texts[file.relative_to(root).as_posix()])
    return changed


def _remove(folder: Path, record: Mapping[str, str]) -> list[Path]:
    """Take away what link wrote, and the folders that are empty then; the files that stay."""
    for name, written in record.items():
        if (folder / name).is_file() and _hash((folder / name).read_bytes()) == written:
            (folder / name).unlink()
    (folder / RECORD).unlink()
    for cache in list(folder.rglob("__pycache__")):
        shutil.rmtree(cache)
    for path in sorted((path for path in (folder, *folder.rglob("*")) if path.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    return sorted(path for path in folder.rglob("*") if path.is_file())


def is_linked(root: Path) -> bool:
    """Whether the package folder ``root`` (CHECKOUT/s3prl) holds every marked block."""
    return all((root / name).is_file() and _PATTERN.search((root / name).read_bytes()) for name in BLOCKS)


def _package(checkout: Path) -> Path:
    """CHECKOUT/s3prl of a git checkout."""
    checkout = expanded(checkout)
    root = checkout / "s3prl"
    needed = [root / name for name in ("run_pretrain.py", "run_downstream.py", "upstream/__init__.py", *BLOCKS)]
    missing = next((path for path in needed if not path.is_file()), None)
    if missing is not None:
        raise EkdError(f"{checkout}: no git checkout of s3prl (there is no {missing.relative_to(checkout)})")
    if not (checkout / ".git").exists():  # a file in work trees and submodules
        raise EkdError(f"{checkout}: no git checkout of s3prl (there is no .git); the wheel needs no link")
    return root.resolve()


def _folders() -> dict[str, dict[str, bytes]]:
    """Folder -> file -> content that link writes."""
    task = shipped("pretrain/ekd")
    doc = '"""Made by `s3prl-ekd link`; the code is in the installed package s3prl_ekd."""\n'
    expert = (
        "import sys\n\nfrom s3prl_ekd.bridge.link import refuse_model_keys\n"
        "from s3prl_ekd.pretrain.ekd.pretrain_expert import UpstreamPretrainExpert  # noqa: F401\n\n"
        "refuse_model_keys(sys.argv)\n"
    )
    upstreams = {}
    for folder, names in UPSTREAMS.items():
        entries = f"from s3prl_ekd.upstream.{folder}.hubconf import {', '.join(names)}  # noqa: F401\n"
        upstreams[f"upstream/{folder}"] = {"__init__.py": doc.encode(), "hubconf.py": f"{doc}\n{entries}".encode()}
    return {
        "pretrain/ekd": {
            "__init__.py": doc.encode(),
            "pretrain_expert.py": f"{doc}\n{expert}".encode(),
            **{path.relative_to(task).as_posix(): path.read_bytes() for path in sorted(task.rglob("*.yaml"))},
        },
        **upstreams,
    }


def _write(file: Path, content: bytes, before: str | None) -> bool:
    """Write ``content`` unless it is there, or the user edited what link wrote (``before`` is its hash)."""
    if file.is_file():
        found = file.read_bytes()
        if found == content or _hash(found) != before:
            return False
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return True


def _record(folder: Path) -> dict[str, str]:
    file = folder / RECORD
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text())
    except ValueError:
        record = None
    if not isinstance(record, dict) or any(Path(name).is_absolute() or ".." in Path(name).parts for name in record):
        raise EkdError(f"{file}: is damaged; remove {folder} by hand")
    return record


def _without_block(file: Path) -> bytes:
    text = _PATTERN.sub(b"", file.read_bytes())
    if BEGIN.encode() in text or END.encode() in text:
        raise EkdError(f"{file}: a marker line of s3prl-ekd without its partner; take the marked lines out by hand")
    return text


def _with_block(file: Path, body: str) -> bytes:
    block = f"{BEGIN}\n{body}{END}\n".encode()
    text = block + _without_block(file)
    try:
        compile(text, file, "exec", dont_inherit=True)  # ast.parse lets a `from __future__` line stand anywhere
    except (SyntaxError, ValueError) as error:  # it must come first, as a byte-order mark must
        raise EkdError(f"{file}: not valid Python with our lines on top ({error.args[0]})") from error
    return text


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
