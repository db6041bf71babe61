"""Original fairseq checkpoints (HuBERT, RobustHuBERT, wav2vec 2.0), read without fairseq and without running them.

Such files pickle more than tensors: ``omegaconf`` configurations, ``fairseq`` dictionaries, enums, meters, which
``weights_only=True`` cannot read even with admitted names. Here every class of a short list of packages becomes an
INERT SHELL that keeps its arguments and state and has no behaviour; nothing of those packages is imported. Real are
only tensors, their storages and ``OrderedDict``. Any name outside the list (``os.system``, ``builtins.eval``, ...) is
refused. The tests write both kinds of file.

What the configuration means is in ``files.py`` and ``shapes.py``.
"""

from __future__ import annotations

import argparse
import pickle
import tarfile
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from s3prl_ekd.errors import EkdError
from s3prl_ekd.torch_file import is_zip, read_torch_file

# Packages whose classes fairseq's trainers pickle. Inert, so that even a class of theirs with side effects has none.
_PACKAGES = frozenset({"fairseq", "omegaconf", "examples", "hydra", "typing", "enum", "numpy", "torch"})
# Single names that the above need, as shells too: Optional[int] pickles as operator.getitem(Union, (int, type(None)))
_NAMES = frozenset(
    {"operator.getitem", "_operator.getitem", "pathlib.PosixPath", "pathlib.Path", "collections.defaultdict",
     "_codecs.encode"}
    | {f"{module}.{name}" for module in ("builtins", "__builtin__")
       for name in ("int", "long", "float", "str", "unicode", "bool", "list", "dict", "tuple", "set", "frozenset",
                    "type", "object", "complex", "bytes", "bytearray", "slice", "Ellipsis")}
)  # fmt: skip


class Refused(pickle.UnpicklingError):
    """A pickle names something that is neither a tensor nor one of fairseq's and omegaconf's classes."""


class Shell:
    """Stands for a pickled object: its constructor's arguments and its state, nothing else."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Shell:
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    # dict and list subclasses (meters) are filled item by item; what they hold is never needed
    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


class ShellUnpickler(pickle.Unpickler):
    """An unpickler whose every class is a :class:`Shell`, but for tensors. Storages are torch.load's own matter."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return OrderedDict
        if full == "argparse.Namespace":
            return type("Namespace", (Shell,), {})
        # fresh functions each time: a pickle can set attributes on what it is given
        if full == "torch._utils._rebuild_tensor_v2":
            return lambda storage, offset, size, stride, *rest: torch._utils._rebuild_tensor(
                storage, offset, size, stride
            )
        if full == "torch._utils._rebuild_parameter":
            return lambda data, *rest: data
        if full in ("builtins.getattr", "__builtin__.getattr"):
            return _enum_member
        if full == "torch.Size":
            return lambda sizes=(): tuple(sizes)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.split(".")[0] in _PACKAGES or full in _NAMES:
            return type("Shell", (Shell,), {})
        raise Refused(f"{full} is no part of a model")


def _enum_member(shell: Any, name: Any) -> Shell:
    """A member of an enum by its name, as Python 3.11.0 to 3.11.3 pickles one; fairseq's are called as their values."""
    if not (isinstance(shell, type) and issubclass(shell, Shell) and isinstance(name, str)):
        raise Refused("builtins.getattr is no part of a model")
    return shell(name)


def _load(file: Any, **options: Any) -> Any:
    return ShellUnpickler(file, **options).load()


# what torch.load takes in the place of the pickle module, for every pickle of a file in either of its formats
_SHELL_PICKLE = types.SimpleNamespace(Unpickler=ShellUnpickler, load=_load, __name__="shell_pickle")


def read_checkpoint_with_shells(path: Path, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint's dictionary; where it has objects of fairseq, omegaconf and their like, they are :class:`Shell`.

    ``mmap`` as in :func:`s3prl_ekd.torch_file.read_torch_file`.

    Raises:
        EkdError: as :func:`s3prl_ekd.torch_file.read_torch_file`.
    """
    try:
        return read_torch_file(path, mmap)
    except EkdError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        first = str(error)  # the error itself keeps what was read so far in memory
    try:
        _check_container(path)
        # weights_only is torch's own unpickler, which ours replaces; ours builds less than that one does
        content = torch.load(
            path, map_location="cpu", pickle_module=_SHELL_PICKLE, weights_only=False, mmap=mmap and is_zip(path)
        )
    except Refused as error:
        raise EkdError(f"{path}: refused, since reading it could run code from the file ({error})") from error
    except Exception:  # a damaged pickle can fail anywhere; the first reader's message is the better one
        raise EkdError(first) from None
    if not isinstance(content, dict):
        raise EkdError(first)
    return content


def _check_container(path: Path) -> None:
    """Refuse the two containers that torch.load reads by other means than its pickle module."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.split("/")[-1] == "constants.pkl" for name in archive.namelist()):
                raise Refused("a TorchScript archive is a program")
    elif tarfile.is_tarfile(path):
        raise Refused("a tar archive, PyTorch's format before 0.2")


def is_fairseq(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has fairseq's layout: weights under ``model``, and ``cfg`` with parts, or ``args``."""
    if not isinstance(checkpoint.get("model"), Mapping):
        return False
    cfg = plain(checkpoint.get("cfg"))
    return isinstance(plain(checkpoint.get("args")), Mapping) or (isinstance(cfg, Mapping) and "model" in cfg)


def fairseq_configs(checkpoint: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's and the task's configuration, as plain values.

    A fine-tuned model (a CTC head on wav2vec 2.0 or HuBERT) keeps its encoder's under ``w2v_args``; that one is given.

    Raises:
        EkdError: no usable configuration.
    """
    cfg = plain(checkpoint.get("cfg"))
    if not isinstance(cfg, Mapping):
        cfg = plain(checkpoint.get("args"))
    model, task = _parts(cfg)
    if isinstance(model, Mapping) and ("w2v_args" in model or "w2v_path" in model):
        if not isinstance(model.get("w2v_args"), Mapping):
            raise EkdError(
                f"{path}: fine-tuned, without its encoder's configuration (w2v_args); use the pre-trained file"
            )
        model, task = _parts(model["w2v_args"])
    if not isinstance(model, Mapping) or not isinstance(task, Mapping):
        raise EkdError(f"{path}: its fairseq configuration (cfg or args) has no readable model and task part")
    return dict(model), dict(task)


def plain(value: Any) -> Any:
    """Configuration containers as dictionaries, lists and numbers; enums as their value, strings as they are.

    Interpolations (``${task.normalize}``) stay strings: nothing in them is resolved or evaluated.
    """
    if isinstance(value, argparse.Namespace):
        return {key: plain(item) for key, item in vars(value).items()}
    if isinstance(value, Shell):
        state = value.state if isinstance(value.state, Mapping) else {}
        for key in ("_content", "_val"):  # an omegaconf container, an omegaconf value
            if key in state:
                return plain(state[key])
        if state:  # a dataclass
            return {key: plain(item) for key, item in state.items() if isinstance(key, str)}
        return plain(value.args[0]) if len(value.args) == 1 else None  # an enum is called with its value
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _parts(config: Any) -> tuple[Any, Any]:
    """(model, task): two parts of a hydra configuration, or twice one flat ``args``."""
    if isinstance(config, Mapping) and "model" in config:
        return config["model"], config.get("task") or {}
    return config, config
