"""How a configuration file is found that ``-c`` or ``-g`` names: every command looks in the same order.

1. The path as it is, from the current folder: what lies beside the user comes before everything that ships.
2. The same path below each folder of the option, in turn:

   ============================================  ==================================================================
   option                                        folders
   ============================================  ==================================================================
   ``-g`` of a student (``variants.py``)         our variants, our ``pretrain/ekd``, what holds our ``pretrain/``
   ``run_pretrain.py -c``, and ``-g`` of a task  s3prl, its ``pretrain/TASK``, what holds our ``pretrain/``, that, and
   of s3prl's (``pretrain_configs.py``)          our ``pretrain/TASK``
   ``run_downstream.py -c``                      s3prl, our ``downstream_configs``, what holds it
   (``downstream_arguments.py``)
   ============================================  ==================================================================

3. For a bare name, all of that with ``.yaml`` added.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from s3prl_ekd.errors import EkdError
from s3prl_ekd.user_paths import expanded


def find_config(flag: str, value: str, folders: Iterable[Path], hint: str = "") -> Path:
    """The absolute path of the file that a user means.

    Args:
        flag: the option, for the message.
        value: what was given to it.
        folders: where to look behind the current folder.
        hint: ends the message.

    Raises:
        EkdError: there is no such file.
    """
    places = [Path(), *folders]
    bare = "/" not in value and not value.endswith(".yaml")
    for name in [value, f"{value}.yaml"] if bare else [value]:
        for place in places:
            candidate = place / expanded(name)
            if candidate.is_file():
                return candidate.resolve()
    raise EkdError(f"{flag} {value}: no such config file{hint}")
