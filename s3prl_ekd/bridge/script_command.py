"""The command line of one of s3prl's scripts, checked before the script is loaded: the first half of a launch.

Which folder, which checkpoint to go on from, and what its command says that such a run does not read: all of it is
known, and a mistake said, before s3prl is imported, and mostly before torch is. What a command line may be by itself is
in ``arguments.py``, what s3prl then runs with in ``script_launch.py``.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from s3prl_ekd.bridge import arguments, checkpoints, kept_config
from s3prl_ekd.bridge.experiment_folder import ExperimentFolder, lock_run
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.compat.modules import s3prl_folder
from s3prl_ekd.device import find_device
from s3prl_ekd.errors import EkdError
from s3prl_ekd.whole_file import sweep

log = logging.getLogger(__name__)


class ScriptCommand(ABC):
    """What the command line of one of s3prl's scripts says; :meth:`_take` checks and completes it.

    Args:
        current: the command.
    """

    results: ClassVar[str]
    """Folder of the experiments that are named by ``-n``."""
    checkpoint_keys: ClassVar[tuple[str, ...]]
    """What a checkpoint of the script's runner holds."""
    runner_name: ClassVar[str]
    """The runner, for messages."""
    empty_folder_hint: ClassVar[str] = ""
    """Ends the message on ``-e FOLDER`` without a checkpoint."""

    def __init__(self, current: Run) -> None:
        self.current, self.world = current, current.world
        self.s3prl = s3prl_folder()
        self.folder: ExperimentFolder | None = None  # of a new run
        self.lock: BinaryIO | None = None  # of the folder that is trained in
        self.args = Namespace()
        self.explicit: set[str] = set()  # the arguments that the command line gave itself
        self.overridden: dict[str, Any] = {}  # those that its -o gave (args.NAME)

    @property
    def source(self) -> str:
        """The file that the configuration comes from, for messages."""
        return str(self.args.past_exp or self.args.config)

    @property
    def trains(self) -> bool:
        """Whether it is a training; the downstream script has other modes too."""
        return getattr(self.args, "mode", "train") == "train"

    @property
    def names_folder(self) -> bool:
        """Whether the command line says which folder its results go into (``-n``, ``-p``)."""
        return bool(self.explicit & {"expdir", "expname"})

    def _take(self, args: Namespace, explicit: set[str]) -> None:
        """Check and complete what s3prl's parser found, before s3prl uses it; what needs torch comes last.

        Raises:
            EkdError: s3prl would meet an argument with a traceback, or do something else.
        """
        self.args, self.explicit = args, explicit
        if not args.auto_resume:
            self.current.argv.append("-a")
        arguments.check_empty(args, explicit)
        arguments.expand_home(args)
        arguments.check_override(args.override, args, self._sections(args))
        self.overridden = arguments.overridden(args.override, "args", self.s3prl)
        args.device = str(self.overridden.get("device", args.device))
        arguments.hide_gpu(args.device)
        if args.expdir is None and args.expname is not None:
            args.expdir = f"{self.results}/{args.expname}"
        self._check_first(args)
        checkpoint = self._find_checkpoint(args)
        if checkpoint is not None:
            self._note_kept(checkpoint)
            if not self.trains:  # of a training that goes on it is asked whether a step is left first
                find_device(args.device)
                if self.names_folder:
                    self._make_folder()
            return
        self._check_new(args)
        if self.trains:
            checkpoints.check_unused(args.expdir)
        find_device(args.device)
        self._make_folder()

    def _sections(self, args: Namespace) -> Mapping[str, str]:
        """Sections of the configuration files, where they are known -> what the keys of ``-o`` for them begin with."""
        return {}

    @abstractmethod
    def _check_first(self, args: Namespace) -> None:
        """The arguments of any run, before a checkpoint is looked for."""

    @abstractmethod
    def _check_new(self, args: Namespace) -> None:
        """The arguments of a run without a checkpoint to go on from."""

    def _check_name(self, args: Namespace) -> None:
        """A new run has a name, or a folder."""
        if args.expdir is None:
            raise EkdError(f"-n NAME is missing: the experiment's name (its folder is {self.results}/NAME), or -p DIR")

    def _find_checkpoint(self, args: Namespace) -> Path | None:
        """The checkpoint that ``-a`` or ``-e`` means, put into ``args`` as the one to go on from; None for a new run.

        Raises:
            EkdError: there is none, it cannot be read, or it lies in another folder than the command names.
        """
        found = checkpoints.resume_from(
            args.expdir, args.auto_resume, args.past_exp, self._read_runner, self.empty_folder_hint
        )
        self.world.agree("checkpoint to continue from", "" if found is None else str(found))
        if found is None:
            return None
        if self.trains:
            if self.names_folder:
                checkpoints.check_folder(found, args.expdir, "-p" if "expdir" in self.explicit else "-n")
            if args.past_exp is not None and found == Path(args.past_exp):
                checkpoints.check_last(found, self._read_runner)
                # to be continued from what comes after it
                self.current.argv = arguments.with_value(self.current.argv, "-e", "--past_exp", str(found.parent))
        args.past_exp, args.auto_resume = str(found), False
        self._lock(found.parent)
        return found

    def _make_folder(self) -> None:
        """Make the folder of a new run, once its arguments were checked; one rank makes it, and takes it back."""
        if self.world.is_rank_zero:
            self.folder = ExperimentFolder(self.args.expdir)
            self.folder.make()
            try:
                self._lock(self.folder.path)
            except EkdError:
                self.folder = None  # of the run that has it
                raise

    def _lock(self, folder: Path) -> None:
        """Keep other trainings out of a folder as long as this one runs; what a killed one has left there goes."""
        if self.world.is_rank_zero and self.trains:
            self.lock = lock_run(folder)
            sweep(folder)

    def _read_runner(self, path: str | Path) -> dict[str, Any]:
        """A checkpoint of the script's runner, its tensors left on disk."""
        return checkpoints.read_runner(path, self.checkpoint_keys, self.runner_name)

    @abstractmethod
    def _find_config(self, args: Namespace) -> str:
        """The absolute path of what ``-c`` names.

        Raises:
            EkdError: there is no such file.
        """

    def _note_kept(self, checkpoint: Path) -> None:
        """Of a run that goes on, say where what ``-c`` names differs from the configuration that it goes on with."""
        if not self.explicit & {"config", "upstream_config", "seed"}:
            return
        differences = self._differences(self._read_runner(checkpoint))
        if differences:
            said = "%s: the configuration stored in it is used (-o config. can change that of -c); ignored: %s"
            log.info(said, checkpoint, ", ".join(differences))

    def _differences(self, state: dict[str, Any]) -> list[str]:
        """What :func:`kept_config.difference` says of each option that is not read beside the checkpoint ``state``."""
        if "config" not in self.explicit:
            return []

        def read() -> tuple[dict[str, Any], dict[str, Any]]:
            args = Namespace(**vars(state["Args"]) | {"config": self.args.config})
            return read_yaml(Path(self._find_config(args))), state["Config"]

        return kept_config.difference(f"-c {self.args.config}", read, self.args.override)
