"""What both launchers do with one of s3prl's scripts: stand-ins put into its namespace, then its own ``main()``.

s3prl's scripts read ``os``, ``torch`` and ``argparse`` as globals of their own modules, and so do its runners: what is
put there changes these calls alone. What only one of the scripts needs is in ``pretrain_launch.py`` and
``downstream_launch.py``; what comes before, the check of the command line, in ``script_command.py``.
"""

from __future__ import annotations

import copy
import glob
import importlib.util
import logging
import os
import sys
import warnings
from abc import abstractmethod
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import yaml

from s3prl_ekd.bridge import arguments, checkpoints, optimizers
from s3prl_ekd.bridge.event_files import EventFiles
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.bridge.script_command import ScriptCommand
from s3prl_ekd.compat.modules import ModuleProxy
from s3prl_ekd.compat.optimizers_start import start_without_dynamo
from s3prl_ekd.device import find_device
from s3prl_ekd.errors import EkdError, one_line

log = logging.getLogger(__name__)


class Finished(Exception):
    """The run that was to go on has made all its steps."""


class ScriptLaunch(ScriptCommand):
    """One run of a script of s3prl's.

    The script's parser goes first, by itself, and :meth:`_take` checks what it found: a mistake is said before torch
    and s3prl are imported. Then ``main()`` runs and calls back, in this order: :meth:`_load_resumed` for the checkpoint
    of a run that goes on, :meth:`_checked` with arguments and configuration, and from its runner :meth:`_load_state`.

    Args:
        current: the command.
    """

    script: ClassVar[str]
    """Its name in s3prl's folder."""
    get_arguments: ClassVar[str]
    """The script's function that parses the arguments and reads the configuration."""

    def __init__(self, current: Run) -> None:
        super().__init__(current)
        self.keeper = checkpoints.AtomicCheckpoints()
        self.before: dict[str, Any] | None = None  # the config of the checkpoint to go on from, without -o
        self.changed: dict[str, Any] = {}  # what -o changes of its optimizer
        self.step = 0  # of that checkpoint, after which s3prl counts on; of what -i names too
        self.events = EventFiles()

    def run(self, argv: list[str]) -> None:
        """Run the script with these arguments.

        Raises:
            EkdError: whatever the user can fix; see the messages.
        """
        sys.argv = [sys.argv[0], *argv]  # which the parser reads
        self.world.connect()
        self.main()
        self.world.end()

    def main(self) -> None:
        """Parse the arguments, load the script, and call its ``main()``; a start that fails leaves no folder behind."""
        try:
            self._take(*self._parse())
            self._call_main()
        except BaseException:
            self.events.close(interrupted=bool(self.current.signals.number))
            if self.folder is not None:
                self.folder.take_back()
            raise

    def _call_main(self) -> None:
        warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp", category=FutureWarning)
        script, runner = self._load()
        self._change_script(script)
        self._change_runner(runner)
        script.Runner = self._runner_class(runner.Runner)
        start_without_dynamo()
        try:
            script.main()
        except Finished as finished:
            if self.world.is_rank_zero:
                log.info("%s", finished)
        except yaml.YAMLError as error:  # its text names the file
            raise EkdError(f"a config file is not valid YAML: {one_line(error)}") from error

    def _parse(self) -> tuple[Namespace, set[str]]:
        """The arguments by the script's parser, and which of them were given."""
        file, names = self.s3prl / self.script, self._parser_needs()
        try:
            return arguments.parse_ahead(file, self.get_arguments, names)
        except NameError:  # a checkout whose owner has changed the parser
            return arguments.parse_ahead(file, self.get_arguments, {**vars(self._load()[0]), **names})

    @abstractmethod
    def _parser_needs(self) -> dict[str, Any]:
        """What the options of the script's parser are made of, name by name."""

    # --------------------------------------------------------------------------------------------------- stand-ins

    @abstractmethod
    def _load(self) -> tuple[Any, Any]:
        """The modules of the script and of its runner, s3prl patched for the installed stack."""

    def _load_script(self) -> Any:
        """A module of the script's own, whatever else in this process has imported it."""
        name = f"s3prl_{Path(self.script).stem}"
        spec = importlib.util.spec_from_file_location(name, self.s3prl / self.script)
        assert spec is not None and spec.loader is not None  # of a file that ends in .py
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        return script

    def _change_script(self, script: Any) -> None:
        """Put the stand-ins into the script's namespace."""
        import torch

        script.argparse = arguments.answering_argparse(self.args)
        script.open = partial(open, encoding="utf-8")  # configurations are, whatever the terminal's encoding
        script.os = ModuleProxy(os)
        if not self.world.is_rank_zero:
            script.os.makedirs = lambda *args, **kwargs: None
        script.torch = ModuleProxy(torch, load=self._load_resumed)
        script.override = arguments.checked_override(script.override, quiet=not self.world.is_rank_zero)
        original = getattr(script, self.get_arguments)

        def get_arguments() -> tuple[Any, ...]:
            args, *rest = original()
            arguments.check_seed(args.seed)
            return self._checked(args, *rest)

        setattr(script, self.get_arguments, get_arguments)

    def _change_runner(self, runner: Any) -> None:
        """Put the stand-ins into the namespace of the runner's module."""
        import torch

        from s3prl_ekd.bridge.memory import words
        from s3prl_ekd.bridge.scaler import TrackedGradScaler

        runner.str = words
        cuda = ModuleProxy(torch.cuda, amp=ModuleProxy(torch.cuda.amp, GradScaler=TrackedGradScaler))
        runner.torch = ModuleProxy(torch, cuda=cuda, save=self.keeper.save, load=self._load_state)
        runner.os = ModuleProxy(os, remove=self.keeper.remove)
        runner.glob = ModuleProxy(glob, glob=self.keeper.glob)
        runner.SummaryWriter = self.events.noted(runner.SummaryWriter)
        runner.get_optimizer = optimizers.with_clear_errors(runner.get_optimizer, "optimizer", lambda: self.source)
        runner.get_scheduler = optimizers.with_clear_errors(runner.get_scheduler, "scheduler", lambda: self.source)

    @abstractmethod
    def _runner_class(self, original: type) -> type:
        """s3prl's runner, with what it lacks."""

    # ------------------------------------------------------------------------------------------- a run that goes on

    def _load_resumed(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """What the script reads on resuming; the script then lets nearly every argument of the checkpoint win."""
        state = checkpoints.read(path, mmap=True)
        self.before, self.step = copy.deepcopy(state["Config"]), int(state.get("Step") or 0)
        saved: Namespace = state["Args"]
        # where the run lies now; a test writes its predictions into the folder that it names
        saved.expdir = self.args.expdir if self.names_folder and not self.trains else str(Path(path).parent)
        saved.past_exp, saved.auto_resume = self.args.past_exp, self.args.auto_resume
        self._correct_saved(saved)
        # no more than the script uses of it: it keeps them as long as it trains
        return {key: state[key] for key in ("Args", "Config", "WorldSize") if key in state}

    @abstractmethod
    def _correct_saved(self, saved: Namespace) -> None:
        """Set, in the arguments of a checkpoint, what must not come from there."""

    def _load_state(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """What the runner reads on resuming: the checkpoint, with what ``-o`` changes of its optimizer."""
        state = checkpoints.read(path)
        optimizers.apply_changes(state, self.changed)
        return state

    def _finished(self, steps: int, key: str) -> Finished:
        """What ends a run that has made all its ``steps``, before anything is loaded; ``key`` would give it more."""
        return Finished(
            f"{self.source}: finished at step {steps}; nothing to do (more steps: -o config.runner.{key}=...)"
        )

    # ----------------------------------------------------------------------------------------------- configuration

    def _check_going_on(self, config: dict[str, Any]) -> None:
        """Of a training that goes on: whether a step is left, and only then whether there is a device to make it on.

        Raises:
            EkdError: ``-o`` changes what such a run keeps of its optimizer, or there is no such device.
            Finished: no step is left.
        """
        if self.before is None or not self.trains:
            return
        self.changed = optimizers.changes(self.before, config)
        self._check_unfinished(config)
        find_device(self.args.device)

    @abstractmethod
    def _check_unfinished(self, config: dict[str, Any]) -> None:
        """Raise :class:`Finished` where the checkpoint leaves no step of this configuration, ``-o`` merged in."""

    @abstractmethod
    def _checked(self, args: Namespace, config: dict[str, Any], *rest: Any) -> tuple[Any, ...]:
        """After s3prl has merged arguments, configuration and ``-o``: check what it would trip over.

        Returns:
            What the script's function returns.

        Raises:
            EkdError: a value is missing, unknown or not possible.
            Finished: there is no step to be made.
        """
