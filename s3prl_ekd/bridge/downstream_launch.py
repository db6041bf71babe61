"""``run_downstream.py``: s3prl's downstream script and runner, from any folder, with our upstreams in its hub.

Stand-ins in the script's namespace and in its runner's see to checkpoints, devices and paths; what pretraining does so
too is ``script_launch.py``'s. What arguments may be is checked in ``downstream_arguments.py``, what the four tasks'
configs must hold in ``taskdata.py`` and ``taskkeys.py``.
"""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from s3prl_ekd.bridge import arguments, downstream_arguments, downstream_runner, ranks
from s3prl_ekd.bridge.evaluation_memory import EvaluationMemory
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.bridge.script_launch import ScriptLaunch
from s3prl_ekd.bridge.taskdata_superb import UNTRAINED
from s3prl_ekd.bridge.training_place import TrainingPlace
from s3prl_ekd.bridge.upstream_weights import UpstreamWeights
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.compat.hub import register, upstream_names
from s3prl_ekd.compat.modules import ModuleProxy
from s3prl_ekd.device import use_device
from s3prl_ekd.errors import EkdError
from s3prl_ekd.source_names import HF
from s3prl_ekd.task_names import CONFIGS

if TYPE_CHECKING:
    from s3prl_ekd.bridge.distorted_test import DistortedAudio


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
    DownstreamLaunch(current).run(argv)


class DownstreamLaunch(ScriptLaunch):
    """One run of s3prl's ``run_downstream.py``."""

    script, get_arguments = "run_downstream.py", "get_downstream_args"
    results = "result/downstream"
    checkpoint_keys = ("Args", "Config", "Featurizer", "Downstream")
    runner_name = "s3prl's downstream runner"
    empty_folder_hint = " (to use a *-best.ckpt, name the file itself)"

    def __init__(self, current: Run) -> None:
        super().__init__(current)
        self.place = TrainingPlace(self.keeper.save)
        self.weights = UpstreamWeights(self.place.save)
        self.memory = EvaluationMemory(self.weights.save)
        self.distorted: DistortedAudio | None = None  # what the upstream hears in a test on distorted audio

    @property
    def is_ours(self) -> bool:
        """Whether a config of the task ships with this package."""
        return self.args.downstream in CONFIGS

    def _parser_needs(self) -> dict[str, Any]:
        return {"hub": SimpleNamespace(**dict.fromkeys(sorted(upstream_names())))}  # -h lists them

    # --------------------------------------------------------------------------------------------------- stand-ins

    def _load(self) -> tuple[Any, Any]:
        register()

        from s3prl.downstream import runner

        return self._load_script(), runner

    def _change_script(self, script: Any) -> None:
        import torch

        super()._change_script(script)
        join = partial(self.world.join, timeout=ranks.EVALUATION)
        script.torch.cuda = ModuleProxy(torch.cuda, set_device=self._set_device)
        script.torch.distributed = ModuleProxy(torch.distributed, init_process_group=join)

    def _change_runner(self, runner: Any) -> None:
        import torch

        from s3prl_ekd.bridge.memory import DOWNSTREAM, SkipBatch

        super()._change_runner(runner)
        runner.torch.save = self.memory.save
        runner.torch.cuda.empty_cache = SkipBatch(torch.cuda.empty_cache, DOWNSTREAM)
        runner.torch.cuda.device = downstream_runner.on_device
        runner.DDP = downstream_runner.data_parallel(runner.DDP)
        runner.Featurizer = downstream_runner.featurizer_class(runner.Featurizer, begins=self.args.past_exp is None)
        downstream_runner.count_steps(runner)

    def _runner_class(self, original: type) -> type:
        place = None if self.world.distributed else self.place
        return downstream_runner.runner_class(original, self.weights, self.memory, lambda: self.distorted, place)

    def _set_device(self, device: Any) -> None:
        """Distributed training picks its GPU by rank; on the CPU (``--device cpu --backend gloo``) there is none."""
        if self.args.device.startswith("cuda"):
            self.world.take_gpu(self.args.device, int(device), f"--local_rank {device}")

    # --------------------------------------------------------------------------------------------------- arguments

    def _check_first(self, args: Namespace) -> None:
        self.current.resumable = self.trains
        if self.world.distributed and not self.trains:
            raise EkdError(f"-m {args.mode}: runs in one process; start it without torchrun")
        if self.world.distributed and args.device.startswith("cpu") and args.backend == "nccl":  # s3prl's default
            raise EkdError(f"--backend nccl: is for GPUs, and this is --device {args.device}; use --backend gloo")
        if args.init_ckpt is not None:
            self.step = int(self._read_runner(args.init_ckpt).get("Step") or 0)

    def _note_kept(self, checkpoint: Path) -> None:
        if "init_ckpt" in self.overridden:
            raise EkdError(f"-o args.init_ckpt: the checkpoint is {checkpoint} already; name another one with -e")
        given = Namespace(**vars(self.args) | self.overridden)
        downstream_arguments.check_same(given, self.explicit | self.overridden.keys(), checkpoint)
        super()._note_kept(checkpoint)

    def _check_new(self, args: Namespace) -> None:
        if args.downstream is None:
            raise EkdError("-d TASK is missing: ctc (PR), voxceleb1 (SID), emotion (ER), asr, or another task of s3prl")
        downstream_arguments.check_task(args.downstream, self.s3prl)
        if args.mode == "inference" and self.is_ours and args.downstream != "asr":
            raise EkdError(
                f"-m inference: s3prl's {args.downstream} has no such mode, of these tasks only asr (-t FILE.wav)"
            )
        if args.downstream in UNTRAINED:
            if self.trains:
                raise EkdError(f"-m train -d {args.downstream}: nothing is trained; use -m evaluate -t dev -l LAYER")
        elif not self.trains and self.is_ours and args.init_ckpt is None:
            raise EkdError(f"-m {args.mode} -d {args.downstream}: no trained model; give its checkpoint with -e")
        self._check_name(args)
        if args.upstream is None:
            raise EkdError("-u UPSTREAM is missing, e.g. -u ekd_student -k CHECKPOINT, or -u fbank")
        args.config = self._find_config(args)
        if self.is_ours:
            read_yaml(Path(args.config))  # s3prl reads it next, and of a key that stands there twice takes the last
        downstream_arguments.check_upstream(args)

    def _find_config(self, args: Namespace) -> str:
        return downstream_arguments.find_task_config(args.config, args.downstream, self.s3prl)

    def _correct_saved(self, saved: Namespace) -> None:
        stored, given = getattr(saved, "upstream_ckpt", None), self.args.upstream_ckpt
        if given is None or stored is None:
            return
        is_kept = stored.startswith(HF) and given.startswith(HF)  # the same model's, else check_same would have refused
        if not (is_kept or Path(stored).exists()):
            saved.upstream_ckpt = given  # the upstream has moved, and the user says where to

    # ----------------------------------------------------------------------------------------------- configuration

    def _checked(self, args: Namespace, config: dict[str, Any], *rest: Any) -> tuple[Any, ...]:
        """Besides, what ships with us is filled in; ``rest``: the files that s3prl copies into the folder."""
        from s3prl_ekd.bridge import taskdata, taskkeys
        from s3prl_ekd.bridge.distorted_test import distorted_audio
        from s3prl_ekd.compat.guarded_eval import guard_s3prl

        self.args = args
        self.current.expdir = Path(args.expdir)
        taskdata.check_sections(config, args.downstream, self.source)
        self._check_going_on(config)
        if args.mode == "inference":
            downstream_arguments.check_clip(args)
        if args.past_exp:
            downstream_arguments.check_task(args.downstream, self.s3prl)
            downstream_arguments.check_upstream(args)
            downstream_arguments.check_world(args)
        downstream_arguments.import_expert(args.downstream, use_device(args.device))
        guard_s3prl()
        if self.is_ours:
            taskkeys.check_ours(config, args.downstream, self.source)
        taskdata.complete(args, config, source=self.source, s3prl=self.s3prl)
        taskkeys.check_cache(config, args.upstream_trainable, self.source)
        beside = args.past_exp is not None and Path(args.past_exp).parent.resolve() == Path(args.expdir).resolve()
        self.distorted = distorted_audio(config, args.downstream, self.trains, beside, self.source)
        if self.trains:
            begin = 0 if args.past_exp else self.step  # of -i; one that goes on has steps left
            taskkeys.check_runner(config, self.source, taskdata.splits(args.downstream, config), begin)
            taskkeys.check_specaug(config, self.source)
        return args, config, *rest

    def _check_unfinished(self, config: dict[str, Any]) -> None:
        """End here where no step is left; what is no number of steps is found later."""
        total = config["runner"].get("total_steps")
        if isinstance(total, int) and self.step >= total:
            raise self._finished(self.step, "total_steps")
