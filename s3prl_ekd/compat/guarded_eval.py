"""What s3prl's downstream code may ``eval``: the names of its own modules, and nothing that runs.

Its experts and models evaluate values of the configuration (``select``, ``pooling``, ``metric``, ``module``, ...) to
find a class or function by its name. A checkpoint holds a configuration too, and would run any expression in it. Here
each module gets an ``eval`` of its own that looks a dotted name up where it is called from.
"""

from __future__ import annotations

import ast
import sys
from typing import Any

from s3prl_ekd.errors import EkdError


def guard_downstream() -> None:
    """Give every module of s3prl's downstream package that has been imported the ``eval`` that only looks up."""
    for name, module in list(sys.modules.items()):
        if name.startswith("s3prl.downstream.") and module is not None:
            module.eval = look_up  # type: ignore[attr-defined]


def look_up(expression: str) -> Any:
    """What a dotted name stands for in the caller's function or module, or a number.

    Raises:
        EkdError: the expression is more than that, or the caller's module has no such name.
    """
    caller = sys._getframe(1)
    module = caller.f_globals["__name__"]
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        return _value(tree, {**caller.f_globals, **caller.f_locals})
    except (SyntaxError, TypeError) as error:
        raise EkdError(f"{expression!r}: expected a name of {module}; s3prl would run it as code") from error
    except (KeyError, AttributeError) as error:
        raise EkdError(f"{expression!r}: {module} has no such name") from error


def _value(tree: ast.AST, names: dict[str, Any]) -> Any:
    if isinstance(tree, ast.Name):
        return names[tree.id]
    if isinstance(tree, ast.Attribute) and not tree.attr.startswith("_"):
        return getattr(_value(tree.value, names), tree.attr)
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return -_value(tree.operand, names)  # -math.inf
    if isinstance(tree, ast.Constant) and isinstance(tree.value, (int, float)):
        return tree.value
    raise TypeError(type(tree).__name__)
