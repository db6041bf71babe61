"""``run_pretrain.py``: s3prl's pretraining script and runner, from any folder, with ``-u ekd`` among its tasks.

s3prl's script expects to be started inside its own package folder (bare imports, ``os.listdir('pretrain/')``, default
configs relative to the current folder); stand-ins in its namespace answer as if it were. What downstream training does
so too is ``script_launch.py``'s; what a configuration must hold, ``pretrain_configs.py``'s.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_ekd.bridge import arguments, pretrain_configs, pretrain_runner, ranks
from s3prl_ekd.bridge.given_model import GivenModel
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.bridge.script_launch import ScriptLaunch
from s3prl_ekd.bridge.stopped_training import StoppedTraining
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.compat.modules import ModuleProxy
from s3prl_ekd.compat.shims import apply_shims
from s3prl_ekd.config import MODEL, OVERRIDES
from s3prl_ekd.device import use_device
from s3prl_ekd.errors import EkdError
from s3prl_ekd.shipped import shipped

if TYPE_CHECKING:
    from s3prl_ekd.distill.objective import Objective

log = logging.getLogger(__name__)


def run(argv: list[str], current: Run, objective: type[Objective] | None = None) -> None:
    """Parse ``argv`` with s3prl's parser and train, with a loss of the caller's own where it has one.

    Raises:
        EkdError: whatever the user can fix; see the messages.
    """
    argv, _ = arguments.take_local_rank(argv)  # `python -m torch.distributed.launch` adds it
    PretrainLaunch(current, objective).run(argv)


class PretrainLaunch(ScriptLaunch):
    """One run of s3prl's ``run_pretrain.py``."""

    script, get_arguments = "run_pretrain.py", "get_pretrain_args"
    results = "result/pretrain"
    checkpoint_keys = ("Optimizer", "Step", "Args", "Config")
    runner_name = "s3prl's pretraining runner"

    def __init__(self, current: Run, objective: type[Objective] | None = None) -> None:
        super().__init__(current)
        self.objective = objective  # a script's own
        self.tasks = _tasks(self.s3prl / "pretrain")
        self.our_tasks = _tasks(shipped("pretrain"))
        self.config: dict[str, Any] = {}
        self.model = GivenModel()  # of the command
        self.stopped = StoppedTraining(current.signals, self.keeper)
        self.followed = False  # a file has moved to the place that the command names

    @property
    def is_ours(self) -> bool:
        """Whether the task is one of this package."""
        return self.args.upstream in self.our_tasks

    @property
    def seed(self) -> int | None:
        """What a new run's command line gives as ``--seed``; None where it gives none, or a checkpoint's counts."""
        given = "seed" in self.explicit or "args.seed" in arguments.override_keys(self.args.override)
        return self.args.seed if given and self.before is None else None

    def main(self) -> None:
        """As every script; an expert knows neither the runner's file, of which it gets one section, nor ``-o``."""
        try:
            super().main()
        except EkdError as error:
            named = re.sub(r"^config_runner\.yaml(?=:)", lambda _: self.source, str(error))
            if self.model.changes:
                named = self.model.named(named, self.source if self.args.past_exp else self.args.upstream_config)
            if named == str(error):
                raise
            raise EkdError(named) from error

    def _parser_needs(self) -> dict[str, Any]:
        return {"os": ModuleProxy(os, listdir=self._listdir)}

    # --------------------------------------------------------------------------------------------------- stand-ins

    def _load(self) -> tuple[Any, Any]:
        apply_shims("core")
        folder = str(self.s3prl)
        if sys.path[:1] != [folder]:
            sys.path.insert(0, folder)  # the script's bare imports: pretrain, upstream, utility, optimizers, schedulers
        return self._load_script(), importlib.import_module("pretrain.runner")

    def _change_script(self, script: Any) -> None:
        import torch

        # as s3prl's run_downstream.py: file descriptors run out, and their server thread prints when workers are ended
        torch.multiprocessing.set_sharing_strategy("file_system")
        super()._change_script(script)
        script.os.listdir = self._listdir
        script.copyfile = self._copyfile

    def _change_runner(self, runner: Any) -> None:
        import torch

        from s3prl_ekd.bridge.memory import SkipBatch

        super()._change_runner(runner)
        runner.torch.cuda.empty_cache = SkipBatch(torch.cuda.empty_cache)
        runner.math = ModuleProxy(math, isnan=self._no_step)
        if self.world.distributed:
            pretrain_runner.share_work(runner, self.world)

    def _runner_class(self, original: type) -> type:
        return pretrain_runner.runner_class(original, self.world, self._begin, self.stopped)

    def _begin(self, runner: Any) -> None:
        """Called right before training, once the runner has built the task's expert."""
        if not self.is_ours:
            return
        expert = runner.upstream
        # the expert has checked that files which have moved are the same ones
        if self.world.is_rank_zero and (self.before is None or self.followed):
            pretrain_configs.write_found(Path(self.args.expdir, "config_model.yaml"), expert.config)
        pretrain_configs.check_epochs(self.config, len(expert.loader.dataset), self.source)
        module, validation = sys.modules["pretrain.runner"], expert.checkpoint_validation
        if validation is not None:
            resumed_at = None if self.before is None else self.step
            validation.on_train_begin(runner.args, runner.logger, resumed_at, self._is_regular(resumed_at))
            pretrain_runner.tell_of_saving(module, validation.on_saved)
        self.stopped.follow(runner, module)

    def _is_regular(self, step: int | None) -> bool:
        """Whether the checkpoint of ``step`` is one that an uninterrupted run has too: not that of a stop."""
        rules = self.config["runner"]
        is_last = Path(self.source).name.startswith("states-epoch-") or step == rules["total_steps"]
        return step is not None and (is_last or step % rules["save_step"] == 0)

    def _no_step(self, grad_norm: Any) -> bool:
        """Whether a gradient must not be stepped on: the runner asks for NaN only, and clipping makes NaN of infinity.

        Under fp16 infinity is how the loss scale is found: the scaler steps on none, and says nothing.
        """
        return math.isnan(grad_norm) if self.config["runner"].get("fp16") else not math.isfinite(grad_norm)

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
            pretrain_configs.write_model_as_run(Path(source), Path(target), self.model.changes)

    # --------------------------------------------------------------------------------------------------- arguments

    def _sections(self, args: Namespace) -> Mapping[str, str]:
        return OVERRIDES if args.upstream is None or args.upstream in self.our_tasks else {}

    def _check_first(self, args: Namespace) -> None:
        if args.expname is None and args.expdir is not None:
            args.expname = Path(args.expdir).name  # s3prl insists on a name even where -p gives the folder
        if "upstream_config" in self.overridden:  # -g by another way
            self.explicit.add("upstream_config")
            args.upstream_config = _text(self.overridden["upstream_config"])
        self.model = GivenModel.of(args.upstream_config, args.override)

    def _check_new(self, args: Namespace) -> None:
        self._check_name(args)
        if args.upstream is None:
            raise EkdError(f"-u TASK is missing: one of {', '.join(self._listdir('pretrain/'))}")
        args.config = self._find_config(args)
        if self.is_ours:
            read_yaml(Path(args.config))  # s3prl reads it next, and meets what is no mapping with a traceback
        args.upstream_config = str(pretrain_configs.find("-g", args.upstream_config, args.upstream))

    def _find_config(self, args: Namespace) -> str:
        return str(pretrain_configs.find("-c", args.config, args.upstream))

    def _note_kept(self, checkpoint: Path) -> None:
        if self.overridden or self.model.changes:
            self._check_kept(self._read_runner(checkpoint), checkpoint)
        super()._note_kept(checkpoint)

    def _check_kept(self, state: dict[str, Any], checkpoint: Path) -> None:
        """Refuse another seed or model by ``-o``: s3prl would take some of it, and keep it with the run."""
        saved: Namespace = state["Args"]
        if saved.upstream not in self.our_tasks:  # s3prl's own begin anew with the seed
            if self.model.changes:
                raise EkdError(f"-o {MODEL}.: is for -u ekd; {checkpoint} is of -u {saved.upstream}")
            return
        if (seed := self.overridden.get("seed", saved.seed)) != saved.seed:
            raise EkdError(
                f"-o args.seed={seed}: {checkpoint} was trained with {saved.seed}, and a run that goes on keeps its "
                "seed; name another experiment (-n)"
            )
        if self.model.changes:
            self.model.check_kept(state["Upstream_Config"], str(checkpoint))

    def _differences(self, state: dict[str, Any]) -> list[str]:
        said, seed = super()._differences(state), getattr(state["Args"], "seed", None)
        if "seed" in self.explicit and self.args.seed != seed:
            said.append(f"--seed {self.args.seed} (was {seed})")
        if "upstream_config" not in self.explicit:
            return said
        task = state["Args"].upstream
        return said + self.model.differences(task, state.get("Upstream_Config"), task in self.our_tasks)

    def _read_runner(self, path: str | Path) -> dict[str, Any]:
        state = super()._read_runner(path)
        made_by = getattr(state["Args"], "upstream", None)
        if self.args.upstream is not None and made_by != self.args.upstream:
            raise EkdError(f"{path}: a checkpoint of -u {made_by}, not of -u {self.args.upstream}")
        return state

    def _correct_saved(self, saved: Namespace) -> None:
        saved.override = self.args.override  # what it was is in the configuration; s3prl would run it as code
        for name in {"device", "multi_gpu"} & self.explicit:
            setattr(saved, name, getattr(self.args, name))

    def _load_state(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """As for every runner, with another length of the schedule, and files at the places that the command names.

        The optimizers' schedules hold the number of steps that they were made for, and come back from the checkpoint
        with it: a run made longer with ``-o config.runner.total_steps=N`` would go on at a learning rate of zero.

        Raises:
            EkdError: a file has moved, and nothing says where to.
        """
        state = super()._load_state(path)
        if self.is_ours:
            kept = state["Upstream_Config"]
            state["Upstream_Config"] = self.model.follow(kept, path, state["Args"].upstream)
            self.followed = state["Upstream_Config"] != kept
        for group in state["Optimizer"].get("param_groups", []):
            schedule = group.get("schedule")
            if getattr(schedule, "t_total", -1) > 0:
                schedule.t_total = float(self.config["runner"]["total_steps"])
        return state

    def _make_importable(self, task: str) -> None:
        """Make ``pretrain.<task>.pretrain_expert`` importable, as the runner will ask for it."""
        if task in self.our_tasks:
            import pretrain  # s3prl's package: its folder is the first on sys.path

            name = f"s3prl_ekd.pretrain.{task}"
            # The same module objects under both names, so that classes compare equal wherever they come from.
            sys.modules[f"pretrain.{task}"] = importlib.import_module(name)
            sys.modules[f"pretrain.{task}.pretrain_expert"] = importlib.import_module(f"{name}.pretrain_expert")
            setattr(pretrain, task, sys.modules[f"pretrain.{task}"])
            self._prepare(sys.modules[f"pretrain.{task}.pretrain_expert"].UpstreamPretrainExpert)
        elif self.objective is not None:
            raise EkdError(f"-u {task}: run_pretrain(objective=...) is for -u ekd")
        elif task not in self.tasks:  # the parser has not seen what a checkpoint names
            raise EkdError(f"{self.source}: -u {task}: s3prl has no such pretraining task")
        else:
            from s3prl_ekd.compat.guarded_eval import guard_s3prl

            apply_shims("pretrain")
            importlib.import_module(f"pretrain.{task}.pretrain_expert")
            guard_s3prl()

    def _prepare(self, expert: Any) -> None:
        """Give the expert's class what s3prl's runner has no argument for."""
        from s3prl_ekd.distill.objective import Objective

        expert.seed, expert.objective_class = self.seed, self.objective or Objective
        expert.model_changes = self.model.changes if self.before is None else {}
        if self.objective is not None:
            log.info("[ekd] loss: %s of %s", self.objective.__name__, sys.argv[0])

    # ----------------------------------------------------------------------------------------------- configuration

    def _checked(self, args: Namespace, config: dict[str, Any], *rest: Any) -> tuple[Any, ...]:
        self.args, self.config = args, config
        self.current.expdir = Path(args.expdir)
        if self.is_ours and self.before is None:  # by -o it is the name again
            args.upstream_config = str(pretrain_configs.find("-g", _text(args.upstream_config), args.upstream))
        self._check_config(config)
        self._check_going_on(config)
        self._check_processes(args)
        if config["runner"].get("fp16") and args.device.startswith("cpu"):
            raise EkdError(
                f"{self.source}: runner.fp16: true needs a GPU, and this is --device {args.device}; use false"
            )
        self.world.start(args.device)
        use_device(args.device)
        self._make_importable(args.upstream)
        if self.is_ours:
            self._note_config(args, config)
        return args, config, *rest

    def _check_config(self, config: dict[str, Any]) -> None:
        if self.is_ours:
            pretrain_configs.check_ours(config, self.source, self.seed)
        else:
            pretrain_configs.check_theirs(config, self.source)

    def _check_unfinished(self, config: dict[str, Any]) -> None:
        """End here where nothing is left to do: no step, and no validation loss that the last checkpoint lacks.

        s3prl's runner saves its progress bar, which is one behind; ours (``add_state_to_save``) corrects that. How many
        steps ``n_epochs`` are is known only with the data: the last checkpoint has their number in its name.
        """
        rules, steps = config["runner"], self.step + (not self.is_ours)
        if self.is_ours and pretrain_configs.owes_validation(config, Path(self.source).parent, steps):
            return
        if rules["n_epochs"] <= 0:
            if steps >= rules["total_steps"]:
                raise self._finished(steps, "total_steps")
            return
        is_last = Path(self.source).name == f"states-epoch-{rules['n_epochs']}.ckpt"
        if is_last and self.before is not None and pretrain_configs.same_epochs(self.before, config):
            raise self._finished(steps, "n_epochs")

    def _check_processes(self, args: Namespace) -> None:
        if self.world.distributed and not self.is_ours:
            raise EkdError(f"-u {args.upstream}: this task of s3prl trains in one process; start it without torchrun")
        if args.multi_gpu and self.is_ours:
            raise EkdError(f"--multi_gpu would cut waveforms along time; use {ranks.TORCHRUN} (docs/scale_out.md)")

    def _note_config(self, args: Namespace, config: dict[str, Any]) -> None:
        """Write the configuration of one of this package's tasks into the folder as it is run."""
        if self.world.is_rank_zero:
            pretrain_configs.write_as_run(config, Path(args.expdir, "config_runner.yaml"))
        if self.before is not None:
            pretrain_configs.warn_of_other_batches(self.before, config)


def _text(value: Any) -> str | None:
    """What ``-o`` gives for an option: None leaves it out."""
    return None if value is None else str(value)


def _tasks(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/pretrain_expert.py")}
