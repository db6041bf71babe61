"""What s3prl's experts and models may ``eval`` and unpickle: names and numbers, and nothing that runs.

They evaluate values of a configuration (``select``, ``pooling``, ``metric``, ``conv_feature_layers``, ...) to find a
class, a function or a list of numbers. A checkpoint holds a configuration too, a downstream one also names the upstream
and its checkpoint, and any expression in them would run. Here each module gets an ``eval`` of its own that looks a
dotted name up where it is called from, and a ``pickle`` that reads containers and numbers; those that ask torch to
unpickle whatever a checkpoint holds get a ``torch.load`` that does not.
"""

from __future__ import annotations

import ast
import inspect
import operator
import pickle
import sys
from typing import Any, BinaryIO, NoReturn

import torch
from torch import nn

from s3prl_ekd.compat.modules import ModuleProxy
from s3prl_ekd.errors import EkdError
from s3prl_ekd.torch_file import read_torch_file

# Downstream training imports s3prl's packages by their full names, pretraining by their bare ones.
_GUARDED = ("s3prl.downstream.", "s3prl.upstream.", "upstream.", "pretrain.")
UNPICKLING = ("upstream.mockingjay.builder", "upstream.distiller.builder", "upstream.roberta.convert")
"""Modules of s3prl's that say ``weights_only=False``: TERA's and its kin's, DistilHuBERT's, DiscreteBERT's."""
_FEATURES = "torchaudio.compliance.kaldi"  # whose functions compute fbank, mfcc, ... for s3prl's baselines
_OPERATORS = {ast.Add: operator.add, ast.Mult: operator.mul}  # [(512, 10, 5)] + [(512, 3, 2)] * 4


def guard_s3prl() -> None:
    """Give every module of s3prl's upstreams and tasks that has been imported what only looks up (repeatable)."""
    for name, module in list(sys.modules.items()):
        if name.startswith(_GUARDED) and module is not None:
            module.eval = look_up  # type: ignore[attr-defined]
            if getattr(module, "pickle", None) is pickle:
                module.pickle = ModuleProxy(pickle, load=_load)  # type: ignore[attr-defined]
            if name.removeprefix("s3prl.") in UNPICKLING:
                module.torch = ModuleProxy(torch, load=_read)  # type: ignore[attr-defined]


def look_up(expression: str) -> Any:
    """What a dotted name stands for in the caller's function or module, or a number, or a list of numbers.

    Raises:
        EkdError: the expression is more than that, the caller's module has no such name, or it is a function or class
            of foreign code: s3prl calls what it finds, with values of the same configuration.
    """
    caller = sys._getframe(1)
    module = caller.f_globals["__name__"]
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        found = _value(tree, {**caller.f_globals, **caller.f_locals})
    except (SyntaxError, TypeError) as error:
        raise EkdError(f"{expression!r}: expected a name of {module}; s3prl would run it as code") from error
    except (LookupError, AttributeError) as error:
        raise EkdError(f"{expression!r}: {module} has no such name") from error
    if not _may_be_called(found, module):
        raise EkdError(f"{expression!r}: expected a model or function of {module.partition('.')[0]}, not of other code")
    return found


def _value(tree: ast.AST, names: dict[str, Any]) -> Any:
    if isinstance(tree, ast.Name):
        return names[tree.id]
    if isinstance(tree, ast.Attribute) and not tree.attr.startswith("_"):
        return getattr(_value(tree.value, names), tree.attr)
    if isinstance(tree, ast.Subscript):
        return _value(tree.value, names)[_value(tree.slice, names)]  # self.model.encoder.layers[3]
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return -_value(tree.operand, names)  # -math.inf
    if isinstance(tree, (ast.List, ast.Tuple)):
        items = [_value(item, names) for item in tree.elts]
        return items if isinstance(tree, ast.List) else tuple(items)
    if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATORS:
        return _OPERATORS[type(tree.op)](_value(tree.left, names), _value(tree.right, names))
    if isinstance(tree, ast.Constant) and isinstance(tree.value, (int, float)):
        return tree.value
    raise TypeError(type(tree).__name__)


def _may_be_called(found: Any, module: str) -> bool:
    """False for functions and classes from elsewhere: ``torch.hub.load`` runs what its arguments name."""
    if isinstance(found, type):
        if issubclass(found, nn.Module):
            return True
    elif not inspect.isroutine(found):
        return True
    home = str(found.__module__)
    return home.partition(".")[0] == module.partition(".")[0] or home == _FEATURES


def _read(file: str, **kwargs: Any) -> dict[str, Any]:
    """``torch.load`` of an upstream's checkpoint, by :func:`read_torch_file`; raises as that does."""
    return read_torch_file(file)


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def _load(file: BinaryIO, **kwargs: Any) -> Any:
    """``pickle.load`` of s3prl's lists of files.

    Raises:
        EkdError: the file holds more than containers, text and numbers.
    """
    try:
        return _Plain(file, **kwargs).load()
    except pickle.UnpicklingError as error:
        raise EkdError(f"{file.name}: refused, since reading it could run code from the file ({error})") from error
