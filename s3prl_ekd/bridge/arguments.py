"""What s3prl's own argument parsers make of a command line, ahead of its scripts, and the checks that both share.

s3prl's parser stays the one that parses and prints ``-h``.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import io
import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import yaml

from s3prl_ekd.compat.modules import ModuleProxy
from s3prl_ekd.errors import EkdError
from s3prl_ekd.spelling import did_you_mean
from s3prl_ekd.user_paths import expanded

_BEFORE_OVERRIDE = {"config": "-c", "past_exp": "-e", "auto_resume": "-a", "mode": "-m", "override": "one -o"}
"""Arguments that are read before ``-o`` is applied, and the option of each."""
_HALF_BEFORE = {"upstream": "-u", "init_ckpt": "-e"}
"""Those of pretraining that are read again after it: a run would be of two tasks, or go on from two checkpoints."""


class _Answer(BaseException):
    """Leaves a function of s3prl's once its parser has answered."""

    def __init__(self, args: Namespace, explicit: set[str]) -> None:
        self.found = args, explicit


class _Parser(argparse.ArgumentParser):
    """A parser that ends the function which it was called in."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Namespace:  # type: ignore[override]
        unset = object()
        probe = Namespace(**{action.dest: unset for action in self._actions if action.dest != "help"})
        super().parse_args(args, probe)
        parsed = super().parse_args(args, namespace)
        raise _Answer(parsed, {name for name, value in vars(probe).items() if value is not unset})


def parse_ahead(script: Path, function: str, names: Mapping[str, Any]) -> tuple[Namespace, set[str]]:
    """What s3prl's own parser makes of the command line, without the imports of its script, which take seconds.

    Of the script only the function with the parser is compiled; it is left where it would use what was parsed.

    Args:
        script: s3prl's ``run_*.py``.
        function: its function that parses.
        names: what the parser's options need of the script's namespace.

    Returns:
        The arguments; and the destinations that the command line gave itself, as opposed to defaults.

    Raises:
        NameError: the options need more than ``names``.
    """
    parse = function_of(script, function, {**names, "argparse": ModuleProxy(argparse, ArgumentParser=_Parser)})
    try:
        parse()
    except _Answer as answer:
        return answer.found
    raise EkdError(f"{script}: {function}() parses no arguments; this is not the script of s3prl 0.4")


def function_of(script: Path, name: str, names: Mapping[str, Any]) -> Callable[..., Any]:
    """One function of a file of s3prl's, without the rest of it; ``names``: what it needs of the file's namespace."""
    tree = ast.parse(script.read_text(encoding="utf-8"), str(script))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    namespace = dict(names)
    exec(compile(tree, str(script), "exec"), namespace)
    function: Callable[..., Any] = namespace[name]
    return function


def answering_argparse(args: Namespace) -> ModuleType:
    """An ``argparse`` whose parsers take no look at the command line: what it says is known, and checked."""

    class Parser(argparse.ArgumentParser):
        def parse_args(self, *ignored: Any) -> Namespace:  # type: ignore[override]
            return args

    return ModuleProxy(argparse, ArgumentParser=Parser)


def with_value(argv: list[str], short: str, long: str, value: str) -> list[str]:
    """A raw command line with another value of an option, in each of the forms that argparse takes."""
    words, follows = [], False
    for word in argv:
        flag, equals, _ = word.partition("=")
        named = flag == short or (len(flag) > 2 and long.startswith(flag))
        if follows:
            words.append(value)
        elif named and equals:
            words.append(f"{flag}={value}")
        elif word.startswith(short) and not named:
            words.append(f"{short}{value}")
        else:
            words.append(word)
        follows = named and not equals and not follows
    return words


def take_local_rank(argv: list[str]) -> tuple[list[str], int | None]:
    """Remove ``--local-rank N`` (torch >= 2.0's launcher) or ``--local_rank N`` and return the rest and N.

    Without the option, N is torchrun's $LOCAL_RANK where that is set.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--local_rank", "--local-rank", default=os.environ.get("LOCAL_RANK"))
    known, rest = parser.parse_known_args(argv)
    rank = known.local_rank
    if rank is None:
        return rest, None
    if not rank.isdigit():
        raise EkdError(f"--local_rank {rank}: expected the number of a GPU")
    return rest, int(rank)


def hide_gpu(device: str) -> None:
    """Under ``--device cpu`` make torch see no GPU: where it sees one, reading random states starts CUDA on it.

    To be called before torch asks the driver for GPUs, which it does once.
    """
    if device.startswith("cpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def check_empty(args: Namespace, explicit: Iterable[str]) -> None:
    """Refuse ``-n ""``, as of a shell's variable that is not set: s3prl would run in the folder of all experiments.

    Raises:
        EkdError: an argument that was given is empty.
    """
    for name in sorted(explicit):
        if getattr(args, name) == "":
            raise EkdError(f"--{name}: is empty")


def expand_home(args: Namespace) -> None:
    """Put the user's home for ``~`` into paths that s3prl opens as they are; a shell leaves it in ``--expdir=~/x``."""
    for name in {"expdir", "past_exp", "init_ckpt"} & set(vars(args)):
        value = getattr(args, name)
        if value is not None:
            setattr(args, name, os.path.expanduser(value))


def check_seed(seed: object) -> None:
    """Refuse a seed that numpy's generator does not take: s3prl gives it one seed with Python's and torch's.

    Raises:
        EkdError: it is no whole number of 32 bits.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise EkdError(f"--seed {seed}: expected a whole number from 0 to {2**32 - 1}")


def check_override(text: str | None, args: Namespace, sections: Mapping[str, str] | None = None) -> None:
    """Check the form of ``-o "config.a.b=1,,args.c=2"``: s3prl itself drops or crashes on anything else.

    Args:
        text: what was given.
        args: the arguments that there are.
        sections: those of the configuration files, where they are known -> what keys of theirs begin with.

    Raises:
        EkdError: an item that would have no effect, or end in a traceback.
    """
    if text is None or text.lower() == "none":
        return
    sections = sections or {}
    prefixes = list(dict.fromkeys(["config", *sections.values(), "args"]))
    for item in override_items(text):
        key, equals, value = item.partition("=")
        first, *fields = key.strip().split(".")
        if not equals or item.count("=") > 1:
            raise EkdError(f"-o {item!r}: expected KEY=VALUE with a single '=', items separated by ',,'")
        _check_section(item, [first, *fields], sections)
        if first not in prefixes or not fields:
            begins = " or ".join(", ".join(f"{prefix}." for prefix in prefixes).rsplit(", ", 1))
            raise EkdError(f"-o {item!r}: the key must start with {begins}")
        if first == "args":
            _check_argument(item, ".".join(fields), args)
        check_override_value(f"-o {item!r}", value)


def overridden(text: str | None, prefix: str, s3prl: Path) -> dict[str, Any]:
    """What ``-o`` sets under ``args``, or another first word of its keys, nested, with the values that s3prl reads.

    s3prl's own function reads them, under the one prefix that it nests; out of its file, which imports torch.

    Args:
        text: what was given, as :func:`check_override` lets it through.
        prefix: the first word.
        s3prl: its package folder.

    Raises:
        EkdError: a key goes on behind the value of another one.
    """
    items = [item for item in override_items(text) if item.startswith(f"{prefix}.")]
    if not items:
        return {}
    # it prints each item, as it will when s3prl calls it
    silent = {"sys": SimpleNamespace(stderr=None), "print": lambda *words, **kwargs: None}
    override = function_of(s3prl / "utility/helper.py", "override", silent)
    found: dict[str, Any] = {}
    try:
        override(",,".join(f"config{item.removeprefix(prefix)}" for item in items), Namespace(), found)
    except (TypeError, AttributeError) as error:
        raise EkdError(f"-o {text!r}: a key of {prefix} goes on behind the value of another ({error})") from error
    return found


def override_items(text: str | None) -> list[str]:
    """The parts of ``-o``, ``KEY=VALUE`` each."""
    return [item.strip() for item in (text or "").split(",,")]


def override_keys(text: str | None) -> set[str]:
    """What ``-o`` sets: ``config.a.b``, ``args.c``."""
    return {item.partition("=")[0].strip() for item in override_items(text)}


def _check_section(item: str, words: list[str], sections: Mapping[str, str]) -> None:
    """Of a key in a known section, with another prefix than that section's or none, say how it is written."""
    bare = words[0] in sections and len(words) > 1
    inside = words if bare else words[1:]
    if words[0] == "args" or not inside or inside[0] not in sections:
        return
    right = [sections[inside[0]], *inside]
    if right != words:
        raise EkdError(f"-o {item!r}: write {'.'.join(right)}={item.partition('=')[2].strip()}")


def _check_argument(item: str, name: str, args: Namespace) -> None:
    """Arguments of one's own are for an expert to read; only one that looks like a known one is taken for a slip."""
    if name in ("expdir", "expname"):  # which folder it is, is decided before -o is applied
        raise EkdError(f"-o {item!r}: has no effect; name the folder with -n or -p")
    if name in _BEFORE_OVERRIDE:
        raise EkdError(f"-o {item!r}: has no effect, as it is read before -o; give {_BEFORE_OVERRIDE[name]} instead")
    if name in _HALF_BEFORE and "downstream" not in args:
        raise EkdError(f"-o {item!r}: comes too late for much of the run; give {_HALF_BEFORE[name]} instead")
    hint = "" if name in args else did_you_mean(name, vars(args), cutoff=0.8)
    if hint or "." in name:
        raise EkdError(f"-o {item!r}: there is no argument {name!r}{hint}")


def checked_override(override: Callable[..., None], quiet: bool = False) -> Callable[..., None]:
    """s3prl's ``override``, with one line for a key that goes on behind a value (``config.runner.log_step.x=1``).

    Args:
        quiet: without its lines ``[Override] - KEY = VALUE``, for ranks after the first.
    """

    def checked(text: str, args: Namespace, config: dict[str, Any]) -> None:
        try:
            with redirect_stderr(io.StringIO()) if quiet else nullcontext():
                override(text, args, config)
        except (TypeError, AttributeError) as error:
            raise EkdError(f"-o {text!r}: the configuration has no such key ({error})") from error

    return checked


def check_override_value(where: str, text: str) -> None:
    """Refuse a value that is YAML but no Python: s3prl evaluates it as Python and keeps what fails as a string.

    ``[false]`` would be a string whose every character is true.

    Args:
        where: begins the message: the option and what was given to it.
        text: the value as given.

    Raises:
        EkdError: it is such a value.
    """
    text = text.strip()
    try:
        names = [node for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)]
        bound = {node.id for node in names if isinstance(node.ctx, ast.Store)}  # of a comprehension
        if all(node.id in bound or hasattr(builtins, node.id) for node in names):
            return
    except (SyntaxError, ValueError):
        pass
    try:
        meant = yaml.safe_load(text) if text else ""
    except (yaml.YAMLError, ValueError):
        return
    if not isinstance(meant, str):
        raise EkdError(
            f"{where}: s3prl reads values as Python and would take this one as a string; write True, False and None "
            "with a capital letter, and put words in quotes: [False], ['dev', 'test']"
        )


def check_file(flag: str, value: str, what: str) -> str:
    """The absolute path of an existing file or folder given to ``flag``.

    Raises:
        EkdError: there is none.
    """
    path = expanded(value)
    if not path.exists():
        raise EkdError(f"{flag} {value}: no such {what}")
    return str(path.resolve())
