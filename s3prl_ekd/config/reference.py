"""docs/configuration.md, made from the configuration classes: ``python -m s3prl_ekd.config.reference``.

Every row is a field of a pydantic model: its key, type with limits, default, and docstring. Prose that the classes do
not hold (how files are found, ``base``, ``-o``) is the text at the top of the page.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from s3prl_ekd.config import ModelConfig, RunnerConfig

FILES: dict[str, type[BaseModel]] = {"config_model.yaml": ModelConfig, "config_runner.yaml": RunnerConfig}
HEADER = """\
# Configuration reference

<!-- Made by: python -m s3prl_ekd.config.reference > docs/configuration.md -->

A pretraining run reads the same two YAML files as in s3prl: `config_model.yaml` (`-g`: teachers, student, loss) and
`config_runner.yaml` (`-c`: steps, optimizer, data). Both are checked before anything is downloaded or trained. A wrong
key, type or value ends the command with one line that names the file and the key:

```
error: /home/me/my.yaml: ekd.teachers[1].layers: 14 > 12, the layers of wavlm_base_plus
```

- **Start from ours.** Begin your model file with `base: config_model.yaml` and write only what differs. Mappings are
  merged; lists and values are replaced. `base` may also name a file beside yours, or a packaged variant
  (`base: average.yaml`).
- **Relative paths.** `base` is relative to the YAML that names it. All other paths (a teacher's `source`, noise
  folders, the data) are relative to the folder in which the command is started.
- **`-g`** takes a file or the name of a packaged variant (`-g average`). So do `-g` of `run_downstream.py`,
  `s3prl-ekd targets` and `s3prl-ekd doctor`, `evaluate --untrained`, and `s3prl_ekd.load_model_config("average")` in
  Python.
- **`-c`** takes a file. `s3prl-ekd prepare` writes one with your paths filled in: `DATA/pretrain.yaml`.
- **Search order.** `-g`: the folder in which the command is started, then the packaged variants. `-c`: that folder,
  then s3prl's folders, then this package. So an `average.yaml` of yours comes before the packaged one. The ending
  `.yaml` of a bare name may be left out.
- **`-o`** overrides keys. Those of the runner file begin with `config.`, as in s3prl, and those of the model file with
  `upstream_config.`: the long names of `-c` and `-g`. Items are separated by `,,`:
  `-o "config.runner.total_steps=1000,,upstream_config.ekd.mode=layerwise_average,,upstream_config.student.layers=3"`.
  Values are Python (`None`, `False`, `[4, 8]`); what is no Python is text. Mappings are merged as with `base`. A list
  is given as a whole (`upstream_config.ekd.teachers=[{...}, {...}]`).
- **Numbers.** Write `2.0e-4`, not `2e-4`: YAML reads the latter as text, which is reported as an error.
- **Check only.** `s3prl-ekd doctor -c RUNNER.yaml -g MODEL.yaml` shows what is missing, without training.
- Downstream training uses s3prl's own configurations: [tasks.md](tasks.md).

In the tables below, "section" is a mapping with its own table. Default "required" means that the key must be given;
"absent" means that it may be left out or null.
"""


def reference() -> str:
    """The whole page, ending in a newline."""
    parts = [HEADER]
    for file, model in FILES.items():
        parts.append(f"## {file}\n")
        parts += _sections(model, "")
    return "\n".join(parts)


def _sections(model: type[BaseModel], path: str, about: str = "") -> Iterator[str]:
    """Markdown of a section with values of its own, then of each section below it; ``about`` goes above its table."""
    fields = model.model_fields
    nested = {name: section for name, field in fields.items() if (section := _section(field.annotation))}
    if path and len(nested) < len(fields):
        rows = [
            f"| `{name}` | {_type(field)} | {_default(field)} | {_meaning(field, name in nested, f'{path}.{name}')} |"
            for name, field in fields.items()
        ]
        about = " ".join(filter(None, (_about(model, path), about)))
        heading = [f"### `{path}`", ""] + ([about, ""] if about else [])
        yield "\n".join([*heading, "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])
    for name, field in fields.items():
        inside = f"{path}.{name}" if path else name
        if name in nested:
            listed = "[]" if get_origin(field.annotation) is list else ""
            yield from _sections(nested[name], inside + listed, _text(field.description) if not path else "")
        elif not path:
            kind, default = _type(field).capitalize(), _default(field)
            yield f"### `{name}`\n\n{kind}, default: {default}. {_text(field.description)}\n"


def _about(model: type[BaseModel], path: str) -> str:
    """What a class's docstring says, without the name of the section, which is the heading already."""
    text = re.sub(rf"^`{re.escape(path)}`( of config_runner.yaml)?[:;.] ?", "", _text(model.__doc__))
    return text if text.startswith("s3prl") else text[:1].upper() + text[1:]


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, by itself, in a list, or optionally; None for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for item in get_args(annotation) if (found := _section(item))), None)


def _meaning(field: FieldInfo, is_section: bool, path: str) -> str:
    text = _text(field.description)
    if not is_section:
        return text
    dots = "[]" if get_origin(field.annotation) is list else ""
    return f"{text} See `{path}{dots}` below.".strip()


def _type(field: FieldInfo) -> str:
    limits = _limits(field.metadata)
    return _name(field.annotation) + (f", {limits}" if limits else "")


def _name(annotation: Any) -> str:
    """A type as a reader of YAML says it."""
    origin, items = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = _limits(item for part in items[1:] for item in getattr(part, "metadata", [part]))
        return _name(items[0]) + (f" ({limits})" if limits else "")
    if origin is Literal:
        return " \\| ".join(f"`{item}`" for item in items)
    if origin in (Union, UnionType):
        return " or ".join(_name(item) for item in items if item is not type(None))
    if origin is list:
        return "list of sections" if _section(annotation) else f"list of {_plural(_name(items[0]))}"
    if origin is dict:
        return f"mapping of name to {_name(items[1])}"
    if _section(annotation):
        return "section"
    return {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "value"}[annotation]


def _plural(name: str) -> str:
    noun, bracket, rest = name.partition(" (")
    noun = noun.replace("list of", "lists of") if noun.startswith("list") else f"{noun}s"
    return noun + bracket + rest


def _limits(metadata: Iterable[Any]) -> str:
    """``>= 1`` and the like from a field's constraints."""
    signs = {annotated_types.Ge: (">=", "ge"), annotated_types.Gt: (">", "gt"),
             annotated_types.Le: ("<=", "le"), annotated_types.Lt: ("<", "lt")}  # fmt: skip
    words = []
    lengths: dict[str, int] = {}
    for item in metadata:
        if type(item) in signs:
            sign, attribute = signs[type(item)]
            words.append(f"{sign} {getattr(item, attribute):g}")
        elif isinstance(item, annotated_types.MinLen):
            lengths["min"] = item.min_length
        elif isinstance(item, annotated_types.MaxLen):
            lengths["max"] = item.max_length
    if lengths.get("min") == lengths.get("max") and lengths:
        words.append(f"{lengths['min']} of them")
    elif lengths.get("min"):
        words.append("not empty" if lengths["min"] == 1 else f"{lengths['min']} or more")
    return ", ".join(words)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "absent"
    if isinstance(value, BaseModel):
        return "as below"
    return f"`{json.dumps(value)}`"


def _text(docstring: str | None) -> str:
    """One line of Markdown from a docstring."""
    text = " ".join((docstring or "").replace("``", "`").split())
    text = text.replace("|", "\\|")
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text)


if __name__ == "__main__":
    sys.stdout.write(reference())
