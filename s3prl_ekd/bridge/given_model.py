"""The model that a pretraining's command names: the file of ``-g``, with the keys that ``-o`` gives in it.

s3prl's ``-o`` knows ``config.``, the long name of ``-c``; ``upstream_config.`` is that of ``-g``. Such keys are merged
into the file as those of a file on top of it. A run that goes on keeps the model of its checkpoint. Of what its command
names it reads the places of files that have moved; all else that differs is told (of the file) or refused (of ``-o``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3prl_ekd.bridge import arguments, kept_config, pretrain_configs
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.compat.modules import s3prl_folder
from s3prl_ekd.config import MODEL, ModelConfig, load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.spelling import listed


@dataclass(frozen=True)
class GivenModel:
    """What ``-g`` and ``-o`` say; of a command that has neither, nothing."""

    file: str | None = None
    """What was given to ``-g``."""
    override: str | None = None
    """What was given to ``-o``."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """The keys of the model file in it, nested as there."""

    @classmethod
    def of(cls, file: str | None, override: str | None) -> GivenModel:
        """What a command gives to both options, ``-o`` in a form that :func:`arguments.check_override` lets through.

        Raises:
            EkdError: ``-o`` names an element of a list, or a key behind the value of another one.
        """
        for item in arguments.override_items(override):
            if re.match(rf"{MODEL}\.[^=]*(\[|\.\d+[ .=])", item):
                raise EkdError(f"-o {item!r}: -o reaches no element of a list; give the whole list, or a file with -g")
        return cls(file, override, arguments.overridden(override, MODEL, s3prl_folder()))

    def load(self, file: str | Path) -> ModelConfig:
        """The model of ``file``, with ``-o``; raises as :func:`load_model_config`."""
        return load_model_config(file, changes=self.changes)

    def named(self, message: str, file: str) -> str:
        """An error's message about the model file, with ``-o`` in its place where the key is one that it gives.

        Args:
            message: ``FILE: KEY: what is wrong``; any other one is left as it is.
            file: the model file, or the checkpoint that has its keys.
        """
        said = message.removeprefix(f"{file}: ")
        if not self.changes or said == message:
            return message
        key, _, reason = said.partition(": ")
        inside = self._given_in(key) if reason.startswith("unknown key") else ()  # a section that -o made
        return f"-o {MODEL}.{said}" if self._gives(key) or inside else f"{file} (with -o): {said}"

    @property
    def _keys(self) -> set[str]:
        keys = arguments.override_keys(self.override)
        return {key.removeprefix(f"{MODEL}.") for key in keys if key.startswith(f"{MODEL}.")}

    def _gives(self, key: str) -> bool:
        """Whether ``-o`` gives this key, or a section or list that it is in."""
        return any(key == one or key.startswith((f"{one}.", f"{one}[")) for one in self._keys)

    def _given_in(self, section: str) -> list[str]:
        """The keys in a section that ``-o`` gives."""
        return [key for key in self._keys if key.startswith(f"{section}.")]

    # ------------------------------------------------------------------------------------------- a run that goes on

    def check_kept(self, kept: Mapping[str, Any], checkpoint: str) -> None:
        """Refuse what ``-o`` changes of the model's configuration in a checkpoint, but for the places of files.

        Raises:
            EkdError: there is such a change; or it is wrong by itself.
        """
        given = load_model_config(kept, checkpoint, self.changes)
        pretrain_configs.keep_commits(given, kept)
        followed = load_model_config(pretrain_configs.follow_files(kept, given), checkpoint)
        other = kept_config.differing(given.model_dump(mode="json"), followed.model_dump(mode="json"))
        # a path of its own may lead elsewhere by now
        keys = [key for key in other if self._gives(key) or self._given_in(key)]
        if keys:
            raise EkdError(
                f"-o {MODEL}: {listed(keys)}: not as in {checkpoint}, and a run that goes on keeps its model; "
                "name another experiment (-n)"
            )

    def differences(self, task: str, kept: Any, is_ours: bool) -> list[str]:
        """What :func:`kept_config.difference` says of the file.

        Args:
            task: ``-u`` of the run.
            kept: the model in its checkpoint.
            is_ours: whether the task is one of this package.
        """

        def read() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
            file = pretrain_configs.find("-g", self.file, task)
            if not is_ours:
                return read_yaml(file), kept if isinstance(kept, dict) else {}
            given = self.load(file)
            pretrain_configs.keep_commits(given, kept)
            pretrain_configs.keep_seed(given, kept)
            return given.model_dump(mode="json"), pretrain_configs.follow_files(kept, given)

        return kept_config.difference(f"-g {self.file}", read)

    def follow(self, kept: Mapping[str, Any], checkpoint: str, task: str) -> Mapping[str, Any]:
        """The model in a checkpoint, files that have moved at the places that the command names.

        Args:
            kept: the model.
            checkpoint: its path, for messages.
            task: ``-u`` of the run.

        Raises:
            EkdError: a file has moved, and nothing says where to.
        """
        gone = pretrain_configs.gone_files(kept)
        if gone and (self.file is not None or self.changes):
            source = kept if self.file is None else pretrain_configs.find("-g", self.file, task)
            kept = pretrain_configs.follow_files(kept, load_model_config(source, checkpoint, self.changes))
            gone = pretrain_configs.gone_files(kept)
        gone.pop(pretrain_configs.CACHE, None)  # filled anew
        if gone:
            key, file = next(iter(gone.items()))
            raise EkdError(
                f"{checkpoint}: {key}: no such file or folder: {file}; if it has moved, give -g a file with the new "
                "place"
            )
        return kept
