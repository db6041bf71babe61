"""``run_downstream.py``: s3prl's downstream script and runner, from any folder, with our upstreams and task configs.

The script is imported as it is; stand-ins in its namespace and in its runner's see to checkpoints, devices and paths,
then its own ``main()`` runs. What its arguments may be is checked in ``downstream_arguments.py``, what the four tasks'
configs must hold in ``taskdata.py`` and ``taskkeys.py``.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from s3prl_ekd.bridge import arguments, checkpoints, downstream_arguments, optimizers, ranks
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.compat.modules import ModuleProxy, s3prl_folder
from s3prl_ekd.device import find_device, use_device
from s3prl_ekd.errors import EkdError

log = logging.getLogger(__name__)
KEYS = ("Args", "Config", "Featurizer", "Downstream")


def run(argv: list[str], current: Run) -> None:
    """Parse ``argv`` with s3prl's parser, then train, evaluate or infer.

    Raises:
        EkdError: whatever the user can fix; see the messages.
    """
    if "--multi_gpu" in argv:
        raise EkdError("--multi_gpu is not an option of s3prl's downstream script; use " + ranks.TORCHRUN_DOWNSTREAM)
    argv, rank = arguments.take_local_rank(argv)
    if rank is not None:
        argv += ["--local_rank", str(rank)]
    arguments.hide_gpu(argv)
    arguments.with_argv(argv)
    current.world.connect()
    _Downstream(current).main()
    current.world.end()


class _Downstream:
    """One run: the script module, its stand-ins, and what the command line asked for."""

    def __init__(self, current: Run) -> None:
        self.current = current
        self.s3prl = s3prl_folder()
        self.keeper = checkpoints.AtomicCheckpoints()
        self.args = Namespace()
        self.before: dict[str, Any] = {}  # the config of the checkpoint to go on from, without -o
        self.changed: dict[str, Any] = {}  # what -o changes of the optimizer of a run that goes on

    def main(self) -> None:
        from s3prl_ekd.compat.hub import register

        register()
        warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp", category=FutureWarning)

        import torch
        from s3prl import run_downstream as script
        from s3prl.downstream import runner

        from s3prl_ekd.bridge.memory import DOWNSTREAM, SkipBatch

        cuda = ModuleProxy(torch.cuda, set_device=self._set_device)
        script.argparse = arguments.hooked_argparse(self._parsed)
        join = partial(self.current.world.join, timeout=ranks.EVALUATION)
        distributed = ModuleProxy(torch.distributed, init_process_group=join)
        script.torch = ModuleProxy(torch, load=self._load_resumed, cuda=cuda, distributed=distributed)
        original = script.get_downstream_args
        script.override = arguments.checked_override(script.override)
        script.get_downstream_args = lambda: self._checked(*original())
        empty_cache = SkipBatch(torch.cuda.empty_cache, DOWNSTREAM)
        runner.torch = ModuleProxy(
            torch,
            save=self.keeper.save,
            load=self._load_state,
            cuda=ModuleProxy(torch.cuda, empty_cache=empty_cache, device=_on_device),
        )
        runner.os = ModuleProxy(os, remove=self.keeper.remove)
        runner.DDP = _ddp(runner.DDP)
        runner.get_optimizer = optimizers.with_clear_errors(runner.get_optimizer, "optimizer", self._source)
        runner.get_scheduler = optimizers.with_clear_errors(runner.get_scheduler, "scheduler", self._source)
        runner.Featurizer = _featurizer(runner.Featurizer)
        script.Runner = _runner(runner.Runner)
        _count_steps(runner)
        try:
            script.main()
        except yaml.YAMLError as error:
            raise EkdError(f"-c {self.args.config}: not valid YAML: {' '.join(str(error).split())}") from error

    def _source(self) -> str:
        """The file that the configuration comes from, for messages."""
        return str(self.args.init_ckpt if self.args.past_exp else self.args.config)

    def _set_device(self, device: Any) -> None:
        """Distributed training picks its GPU by rank; on the CPU (``--device cpu --backend gloo``) there is none."""
        import torch

        if str(self.args.device).startswith("cuda"):
            if int(device) >= torch.cuda.device_count():
                raise EkdError(f"--local_rank {device}: this machine has {torch.cuda.device_count()} GPUs")
            torch.cuda.set_device(device)

    # ------------------------------------------------------------------------------------------------- arguments

    def _parsed(self, args: Namespace, explicit: set[str]) -> None:
        """Between s3prl's parser and s3prl's use of what it parsed."""
        self.args = args
        self.current.resumable = args.mode == "train"
        if self.current.world.distributed and args.mode != "train":
            raise EkdError(f"-m {args.mode}: runs in one process; start it without torchrun")
        arguments.check_override(args.override)
        if args.init_ckpt is not None:
            checkpoints.read_runner(args.init_ckpt, KEYS, "s3prl's downstream runner", mmap=True)
        checkpoint = self._resume_from(args)
        self.current.world.agree("checkpoint to continue from", "" if checkpoint is None else str(checkpoint))
        if checkpoint is not None:
            find_device(args.device)
            expdir = args.expdir or (f"result/downstream/{args.expname}" if args.expname else None)
            checkpoints.check_folder(checkpoint, expdir, "-p" if "expdir" in explicit else "-n", explicit)
            downstream_arguments.check_same(args, explicit, checkpoint)
            args.past_exp, args.auto_resume = str(checkpoint), False
            return
        if args.downstream is None:
            raise EkdError("-d TASK is missing: ctc (PR), voxceleb1 (SID), emotion (ER), asr, or another task of s3prl")
        downstream_arguments.check_task(args.downstream, self.s3prl)
        if args.mode == "inference" and args.downstream in set(downstream_arguments.CONFIGS) - {"asr"}:
            raise EkdError(f"-m inference: s3prl's {args.downstream} has none, only asr of these tasks (-t FILE.wav)")
        if args.mode == "evaluate" and args.downstream in downstream_arguments.CONFIGS and args.init_ckpt is None:
            raise EkdError(f"-m evaluate -d {args.downstream}: no trained model; give its checkpoint with -e")
        if args.expname is None and args.expdir is None:
            raise EkdError(
                "-n NAME is missing: the experiment's name (its folder is result/downstream/NAME), or -p DIR"
            )
        if args.upstream is None:
            raise EkdError("-u UPSTREAM is missing, e.g. -u ekd_student -k CHECKPOINT, or -u fbank")
        downstream_arguments.check_upstream(args)
        args.config = downstream_arguments.find_task_config(args.config, args.downstream, self.s3prl)
        find_device(args.device)
        expdir = args.expdir or f"result/downstream/{args.expname}"
        if args.mode == "train":
            checkpoints.check_unused(expdir)
        arguments.make_folder(expdir)

    def _resume_from(self, args: Namespace) -> Path | None:
        """The checkpoint that -a or -e means; None for a new experiment."""
        check = partial(checkpoints.read_runner, keys=KEYS, what="s3prl's downstream runner", mmap=True)
        expdir = args.expdir or (f"result/downstream/{args.expname}" if args.expname else None)
        return checkpoints.resume_from(
            expdir, args.auto_resume, args.past_exp, check, " (a best checkpoint is to be named itself)"
        )

    def _load_resumed(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """What the script reads on resuming: the experiment folder is where the checkpoint lies now."""
        state = checkpoints.read(path)
        saved: Namespace = state["Args"]
        self.before = copy.deepcopy(state["Config"])
        saved.expdir = str(Path(path).parent)
        stored = getattr(saved, "upstream_ckpt", None)
        if self.args.upstream_ckpt is not None and stored is not None and not Path(stored).exists():
            saved.upstream_ckpt = self.args.upstream_ckpt  # the upstream has moved, and the user says where to
        return state

    def _load_state(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """What the runner reads on resuming: the checkpoint, with what ``-o`` changes of its optimizer."""
        state = checkpoints.read(path)
        optimizers.apply_changes(state, self.changed)
        return state

    # --------------------------------------------------------------------------------------------------- configs

    def _checked(
        self, args: Namespace, config: dict[str, Any], backup: list[str]
    ) -> tuple[Namespace, dict[str, Any], list[str]]:
        """After s3prl has merged arguments, config and -o: fill in what ships with us, check what it trips over."""
        from s3prl_ekd.bridge import taskdata, taskkeys

        self.args = args
        self.current.expdir = Path(args.expdir)
        source = self._source()
        if args.past_exp:
            downstream_arguments.check_task(args.downstream, self.s3prl)
            downstream_arguments.check_upstream(args)
            downstream_arguments.check_world(args)
        if not isinstance(config, dict):
            raise EkdError(f"{source}: expected a YAML file with the sections runner, optimizer, downstream_expert")
        if args.past_exp and args.mode == "train" and isinstance(config.get("optimizer"), dict):
            self.changed = optimizers.changes(self.before["optimizer"], config["optimizer"])
        if args.downstream in downstream_arguments.CONFIGS:
            taskkeys.check_spelling(config, downstream_arguments.CONFIGS[args.downstream], str(source))
            taskkeys.check_kinds(config, args.downstream, downstream_arguments.CONFIGS[args.downstream], str(source))
        use_device(args.device)
        taskdata.complete(args, config, source=str(source), s3prl=self.s3prl)
        taskkeys.check_cache(config, args.upstream_trainable, str(source))
        if args.mode == "train":
            taskkeys.check_runner(config, str(source), taskdata.splits(args.downstream, config))
        return args, config, backup


def _on_device(device: Any) -> Any:
    """``torch.cuda.device``, which the runner enters around ``empty_cache``: a context of nothing for the CPU."""
    import torch

    return torch.cuda.device(device) if str(device).startswith("cuda") else nullcontext()


def _runner(original: type) -> type:
    """s3prl's runner, whose frozen upstream may keep the states that it has computed (``runner.cache_states``)."""

    class Runner(original):
        def _get_scheduler(self, optimizer: Any) -> Any:
            return optimizers.go_on(super()._get_scheduler(optimizer), optimizer)

        def _get_upstream(self) -> Any:
            try:
                entry = super()._get_upstream()
            except OSError as error:  # which the downloaders of urllib, requests and huggingface_hub raise
                if type(error).__module__ == "builtins":
                    raise
                reason = " ".join(str(error).split())[:200]
                raise EkdError(
                    f"-u {self.args.upstream}: its checkpoint could not be downloaded ({reason}); without a network: "
                    "docs/faq.md"
                ) from error
            folder = self.config["runner"].get("cache_states")
            if folder:
                from s3prl_ekd.bridge.cached_upstream import CachedUpstream

                config = self.args.upstream_model_config
                text = Path(config).read_text() if config and Path(config).is_file() else str(config)
                entry.model = CachedUpstream(entry.model, Path(folder), (self.args.upstream, text))
                entry.model.to(self.args.device)
            return entry

    return Runner


def _featurizer(original: type) -> type:
    """s3prl's featurizer, which answers ``-l`` beyond the upstream's states with a bare IndexError.

    It chooses what of the upstream's output is read, so it tells an upstream with a cache what is worth keeping.
    """

    class Featurizer(original):
        def __init__(self, upstream: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(upstream, *args, **kwargs)
            if hasattr(upstream, "begin"):
                upstream.begin(self.feature_selection, self.layer_selection, self.downsample_rate, self._select_feature)

        def _select_feature(self, features: dict[str, Any]) -> Any:
            states, layer = features.get(self.feature_selection, ()), self.layer_selection
            several = isinstance(states, (list, tuple)) and len(states) > 1  # of a single one s3prl ignores -l
            if layer is not None and several and not -len(states) <= layer < len(states):
                last = len(states) - 1
                raise EkdError(f"-l {layer}: the upstream's {self.feature_selection} are numbered 0 to {last}")
            return super()._select_feature(features)

    return Featurizer


def _count_steps(runner: Any) -> None:
    """Let every rank of a distributed run stop at total_steps.

    s3prl's runner counts steps in its progress bar, and only rank 0 moves it: the others train on until their peer is
    gone, and fail. Here their bar moves with ``optimizer.zero_grad``, which the runner calls once a step.
    """
    bars: list[Any] = []
    make_bar, make_optimizer = runner.tqdm, runner.get_optimizer

    def tqdm(*args: Any, **kwargs: Any) -> Any:
        bar = make_bar(*args, **kwargs)
        if kwargs.get("desc") == "overall":
            bars[:] = [bar]
        return bar

    def get_optimizer(*args: Any, **kwargs: Any) -> Any:
        optimizer = make_optimizer(*args, **kwargs)
        if not runner.is_leader_process():
            zero_grad = optimizer.zero_grad

            def counted(*args: Any, **kwargs: Any) -> None:
                zero_grad(*args, **kwargs)
                bars[0].update(1)

            optimizer.zero_grad = counted
        return optimizer

    tqdm.write = make_bar.write  # type: ignore[attr-defined]
    runner.tqdm, runner.get_optimizer = tqdm, get_optimizer


def _ddp(original: Any) -> Any:
    """DistributedDataParallel as s3prl's runner needs it.

    ``device_ids=[local_rank]`` is passed for models on the CPU too, where it is an error. And rank 0 evaluates alone
    with the wrapped model, so its forward must not exchange buffers (s3prl's hold the best score, which is rank 0's).
    """

    def build(model: Any, device_ids: Any = None, **kwargs: Any) -> Any:
        on_gpu = all(parameter.is_cuda for parameter in model.parameters())
        return original(model, device_ids=device_ids if on_gpu else None, broadcast_buffers=False, **kwargs)

    return build
