"""``run_pretrain.py``: s3prl's pretraining script and runner, from any folder, with ``-u ekd`` among its tasks.

s3prl's script expects to be started inside its own package folder (bare imports, ``os.listdir('pretrain/')``, default
configs relative to the current folder). Here that script is loaded as it is, its globals ``os``, ``torch`` and
``argparse`` are replaced by stand-ins, and its own ``main()`` runs. What downstream training needs too is in
``arguments.py``; what a configuration must hold, in ``pretrain_configs.py``.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import logging
import math
import os
import re
import shutil
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from s3prl_ekd.bridge import arguments, checkpoints, optimizers, pretrain_configs, ranks
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.compat.modules import ModuleProxy, ours, s3prl_folder
from s3prl_ekd.device import find_device, use_device
from s3prl_ekd.errors import EkdError

log = logging.getLogger(__name__)

KEYS = ("Optimizer", "Step", "Args", "Config")


def run(argv: list[str], current: Run) -> None:
    """Parse ``argv`` with s3prl's parser and train.

    Raises:
        EkdError: whatever the user can fix; see the messages.
    """
    argv, _ = arguments.take_local_rank(argv)  # `python -m torch.distributed.launch` adds it
    arguments.hide_gpu(argv)
    arguments.with_argv(argv)
    current.world.connect()
    _Pretraining(current).main()
    current.world.end()


class _Pretraining:
    """One run: the script module, its stand-ins, and what the command line asked for."""

    def __init__(self, current: Run) -> None:
        self.current, self.world = current, current.world
        self.s3prl = s3prl_folder()
        self.tasks = _tasks(self.s3prl / "pretrain")
        self.our_tasks = _tasks(ours("pretrain"))
        self.keeper = checkpoints.AtomicCheckpoints()
        self.args = Namespace()
        self.explicit: dict[str, Any] = {}
        self.source = "config_runner.yaml"  # where the runner config came from, for messages
        self.config: dict[str, Any] = {}
        self.before: dict[str, Any] | None = None  # the config of the checkpoint to go on from, without -o
        self.changed: dict[str, Any] = {}  # what -o changes of its optimizer

    @property
    def is_ours(self) -> bool:
        """Whether the task is one of this package."""
        return self.args.upstream in self.our_tasks

    def main(self) -> None:
        script = self._load()
        try:
            script.main()
        except yaml.YAMLError as error:
            raise EkdError(f"a config file is not valid YAML: {' '.join(str(error).split())}") from error
        except EkdError as error:
            # s3prl hands an expert one section of the runner config, so the expert cannot know the file's name
            named = re.sub(r"^config_runner\.yaml(?=:)", lambda _: self.source, str(error))
            raise EkdError(named) from error

    def _load(self) -> ModuleType:
        """Load s3prl's script and runner and put the stand-ins into their namespaces."""
        from s3prl_ekd.compat.shims import apply_shims

        apply_shims("core")
        warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp", category=FutureWarning)
        folder = str(self.s3prl)
        if sys.path[:1] != [folder]:
            sys.path.insert(0, folder)  # the script's bare imports: pretrain, upstream, utility, optimizers, schedulers
        spec = importlib.util.spec_from_file_location("s3prl_run_pretrain", self.s3prl / "run_pretrain.py")
        assert spec is not None and spec.loader is not None  # of a file that ends in .py
        script: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)

        import torch

        from s3prl_ekd.bridge.memory import SkipBatch
        from s3prl_ekd.bridge.scaler import TrackedGradScaler

        # as s3prl's run_downstream.py: file descriptors run out, and their server thread prints when workers are ended
        torch.multiprocessing.set_sharing_strategy("file_system")
        script.argparse = arguments.hooked_argparse(self._parsed)
        script.os = ModuleProxy(os, listdir=self._listdir)
        script.torch = ModuleProxy(torch, load=self._load_resumed)
        script.copyfile = self._copyfile
        script.override = arguments.checked_override(script.override)
        original = script.get_pretrain_args
        script.get_pretrain_args = lambda: self._checked(*original())

        runner: Any = importlib.import_module("pretrain.runner")
        amp = ModuleProxy(torch.cuda.amp, GradScaler=TrackedGradScaler)
        cuda = ModuleProxy(torch.cuda, amp=amp, empty_cache=SkipBatch(torch.cuda.empty_cache))
        runner.torch = ModuleProxy(torch, save=self.keeper.save, load=self._load_state, cuda=cuda)
        runner.math = ModuleProxy(math, isnan=self._no_step)
        runner.os = ModuleProxy(os, remove=self.keeper.remove)
        runner.get_optimizer = optimizers.with_clear_errors(runner.get_optimizer, "optimizer", lambda: self.source)
        runner.get_scheduler = optimizers.with_clear_errors(runner.get_scheduler, "scheduler", lambda: self.source)
        script.Runner = self._runner(runner.Runner)
        if self.world.distributed:
            self._for_ranks(runner)
        return script

    def _no_step(self, grad_norm: Any) -> bool:
        """Whether a gradient must not be stepped on: the runner asks for NaN only, and clipping makes NaN of infinity.

        Under fp16 infinity is how the loss scale is found: the scaler steps on none, and says nothing.
        """
        return math.isnan(grad_norm) if self.config["runner"].get("fp16") else not math.isfinite(grad_norm)

    def _runner(self, original: type) -> type:
        """s3prl's runner, which goes on at the right learning rate, and knows whether its epochs have enough steps."""
        launched = self

        class Runner(original):
            def __init__(self, *args: Any) -> None:
                with _closing_log(self):
                    super().__init__(*args)

            def _get_scheduler(self, optimizer: Any) -> Any:
                return optimizers.go_on(super()._get_scheduler(optimizer), optimizer)

            def _get_upstream(self) -> Any:
                if not launched.world.distributed:
                    return super()._get_upstream()
                with launched.world.local_rank_zero_first():
                    return super()._get_upstream()

            def train(self) -> None:
                with _closing_log(self):
                    if launched.is_ours:
                        batches = len(self.upstream.loader.dataset)
                        pretrain_configs.check_epochs(launched.config["runner"], batches, launched.source)
                    super().train()

        return Runner

    def _for_ranks(self, runner: ModuleType) -> None:
        """What the runner does in every rank, but only one may do, or none."""
        runner.torch.cuda.empty_cache = self._out_of_memory
        if not self.world.is_rank_zero:
            ranks.mute(runner)
            runner.torch.save = runner.os.remove = lambda *args, **kwargs: None

    @staticmethod
    def _out_of_memory() -> None:
        """The runner empties the cache and goes on with the next batch, which its peers would wait for in vain."""
        from s3prl_ekd.bridge.memory import PRETRAINING

        raise EkdError(f"out of GPU memory; {PRETRAINING}, or take more ranks")

    def _listdir(self, path: str = ".") -> list[str]:
        if path == "pretrain/":
            return sorted({*self.tasks, *self.our_tasks})
        return os.listdir(path)

    def _copyfile(self, source: str, target: str) -> None:
        # `-g EXPDIR/config_model.yaml -p EXPDIR` copies a file onto itself
        if not self.world.is_rank_zero or Path(source).resolve() == Path(target).resolve():
            return
        if not self.is_ours:
            shutil.copyfile(source, target)
        elif Path(target).name == "config_model.yaml":  # the runner's is written when -o is merged in
            pretrain_configs.write_model_as_run(Path(source), Path(target))

    # ------------------------------------------------------------------------------------------------- arguments

    def _parsed(self, args: Namespace, explicit: set[str]) -> None:
        """Between s3prl's parser and s3prl's use of what it parsed."""
        self.args = args
        self.explicit = {name: getattr(args, name) for name in explicit}
        arguments.check_override(args.override)
        if args.expname is None and args.expdir is not None:
            args.expname = Path(args.expdir).name  # s3prl insists on a name even where -p gives the folder
        if args.expdir is None and args.expname is not None:
            args.expdir = f"result/pretrain/{args.expname}"
        checkpoint = self._resume_from(args)
        self.world.agree("checkpoint to continue from", "" if checkpoint is None else str(checkpoint))
        if checkpoint is not None:
            checkpoints.check_folder(checkpoint, args.expdir, "-p" if "expdir" in explicit else "-n", explicit)
            if "config" in explicit or "upstream_config" in explicit:
                log.warning("continuing %s: its own configs are used, -c and -g are not read", checkpoint)
            args.past_exp, args.auto_resume = str(checkpoint), False
            return
        if args.expname is None:
            raise EkdError("-n NAME is missing: the experiment's name (its folder is result/pretrain/NAME), or -p DIR")
        if args.upstream is None:
            raise EkdError(f"-u TASK is missing: one of {', '.join(self._listdir('pretrain/'))}")
        find = partial(pretrain_configs.find, task=args.upstream, s3prl=self.s3prl, is_ours=self.is_ours)
        args.config = find("-c", args.config, "config_runner.yaml")
        if self.is_ours:
            read_yaml(Path(args.config))  # s3prl reads it next, and meets what is no mapping with a traceback
        args.upstream_config = find("-g", args.upstream_config, "config_model.yaml")
        find_device(args.device)
        checkpoints.check_unused(args.expdir)
        arguments.make_folder(args.expdir)
        self._prepare(args.upstream)

    def _resume_from(self, args: Namespace) -> Path | None:
        """The checkpoint that -a or -e means; None for a new experiment."""
        check = partial(self._readable, upstream=args.upstream)
        found = checkpoints.resume_from(args.expdir, args.auto_resume, args.past_exp, check)
        if found is not None and args.past_exp is not None and found == Path(args.past_exp):
            checkpoints.check_last(found, check)
        return found

    @staticmethod
    def _readable(path: Path, upstream: str | None) -> dict[str, Any]:
        state = checkpoints.read_runner(path, KEYS, "s3prl's pretraining runner", mmap=True)
        made_by = getattr(state["Args"], "upstream", None)
        if upstream is not None and made_by != upstream:
            raise checkpoints.CheckpointError(f"{path}: a checkpoint of -u {made_by}, not of -u {upstream}")
        return state

    def _load_resumed(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """What the script reads on resuming; the script then lets every argument of the checkpoint win.

        Three must not come from there: where the run lies now, the device, and a new -o.
        """
        state = checkpoints.read(path)
        self.before = copy.deepcopy(state["Config"])
        saved: Namespace = state["Args"]
        saved.expdir = str(Path(path).parent)
        saved.auto_resume, saved.past_exp = False, str(path)
        for name in ("device", "override", "multi_gpu"):
            if name in self.explicit:
                setattr(saved, name, self.explicit[name])
        return state

    def _load_state(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """What the runner reads on resuming.

        The optimizers' schedules hold the number of steps that they were made for, and come back from the checkpoint
        with it: a run made longer with ``-o config.runner.total_steps=N`` would go on at a learning rate of zero.
        """
        state = checkpoints.read(path)
        for group in state["Optimizer"].get("param_groups", []):
            schedule = group.get("schedule")
            if getattr(schedule, "t_total", -1) > 0:
                schedule.t_total = float(self.config["runner"]["total_steps"])
        optimizers.apply_changes(state, self.changed)
        return state

    def _prepare(self, task: str) -> None:
        """Make ``pretrain.<task>.pretrain_expert`` importable, as the runner will ask for it."""
        if task in self.our_tasks:
            import pretrain  # s3prl's package: its folder is the first on sys.path

            name = f"s3prl_ekd.pretrain.{task}"
            # The same module objects under both names, so that classes compare equal wherever they come from.
            sys.modules[f"pretrain.{task}"] = importlib.import_module(name)
            sys.modules[f"pretrain.{task}.pretrain_expert"] = importlib.import_module(f"{name}.pretrain_expert")
            setattr(pretrain, task, sys.modules[f"pretrain.{task}"])
        else:
            from s3prl_ekd.compat.shims import apply_shims

            apply_shims("pretrain")

    # --------------------------------------------------------------------------------------------------- configs

    def _checked(self, args: Namespace, config: dict[str, Any]) -> tuple[Namespace, dict[str, Any]]:
        """After s3prl has merged arguments, configs and -o: check what it would meet with a bare assertion."""
        self.args, self.config = args, config
        self.current.expdir = Path(args.expdir)
        self.source = source = str(args.init_ckpt or args.config)
        if args.init_ckpt is not None:
            find_device(args.device)
            self._prepare(args.upstream)
        if self.world.distributed and not self.is_ours:
            raise EkdError(f"-u {args.upstream}: this task of s3prl trains in one process; start it without torchrun")
        if args.multi_gpu and self.is_ours:
            raise EkdError(f"--multi_gpu would cut waveforms along time; use {ranks.TORCHRUN} (docs/scale_out.md)")
        self.world.start(args.device)
        use_device(args.device)
        if isinstance(config, dict) and (config.get("runner") or {}).get("fp16") and args.device.startswith("cpu"):
            raise EkdError(f"{source}: runner.fp16: true needs a GPU, and this is --device {args.device}; use false")
        if self.before is not None and isinstance(config, dict):
            sections = (one.get("optimizer") or {} for one in (self.before, config))
            self.changed = optimizers.changes(*sections)
        if self.is_ours:
            pretrain_configs.check_ours(config, source)
            if self.world.is_rank_zero:
                pretrain_configs.write_as_run(config, Path(args.expdir, "config_runner.yaml"))
            if self.before is not None:
                pretrain_configs.warn_of_other_batches(self.before, config)
        else:
            pretrain_configs.check_theirs(config, source)
        return args, config


@contextmanager
def _closing_log(runner: Any) -> Iterator[None]:
    """Close the runner's tensorboard file where an error ends the run.

    tensorboardX closes it when Python ends, by a thread that it starts for that, which Python 3.12 refuses: a traceback
    would follow the line that says what was wrong.
    """
    try:
        yield
    except BaseException:
        if getattr(runner, "logger", None) is not None:
            runner.logger.close()
        raise


def _tasks(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/pretrain_expert.py")}
