"""What ``-d``, ``-u``, ``-k``, ``-g`` and ``-c`` of ``run_downstream.py`` may be, checked before s3prl acts on them.

s3prl meets a wrong one with a traceback, or goes on with something else; here each is one line. Paths become absolute.
"""

from __future__ import annotations

import importlib
import logging
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_ekd.audio import audio_info
from s3prl_ekd.bridge import arguments, checkpoints, ranks
from s3prl_ekd.bridge.taskdata_mixtures import has_mixtures
from s3prl_ekd.compat.hub import check_upstream_name
from s3prl_ekd.config_files import find_config
from s3prl_ekd.ensemble_file import ENSEMBLE, read_members
from s3prl_ekd.errors import EkdError
from s3prl_ekd.shipped import shipped
from s3prl_ekd.source_names import HF, is_pinned_form, split_hub_model
from s3prl_ekd.spelling import did_you_mean
from s3prl_ekd.task_names import CONFIGS, WITH_CONFIG
from s3prl_ekd.teachers import embedded
from s3prl_ekd.teachers.hub import HUB
from s3prl_ekd.teachers.names import model_path
from s3prl_ekd.variants import find_model_config

if TYPE_CHECKING:
    import torch

# Where s3prl's checkout keeps the same configs; the registry's wheel has none of them.
S3PRL_CONFIGS = {
    "downstream/ctc/libriphone.yaml": "pr.yaml",
    "downstream/sv_voxceleb1/configs/amsoftmax.yaml": "asv.yaml",
    "downstream/enhancement_stft/configs/cfg_voicebank.yaml": "se.yaml",
    "downstream/separation_stft/configs/cfg.yaml": "ss.yaml",
    **{f"downstream/{name}/config.yaml": f"{task}.yaml" for task, name in WITH_CONFIG.items() if task != "pr"},
}
# our extra -> the packages that it installs: SD's and QbE's, SE's and SS's
EXTRAS = {"superb": ("h5py", "dtw", "lxml"), "superb_sg": ("h5py", "asteroid")}
# What a run goes on with as its checkpoint has it, whatever the command says: argument of s3prl's -> its option.
KEPT = {
    "upstream": "-u",
    "downstream": "-d",
    "upstream_ckpt": "-k",
    "upstream_model_config": "-g",
    "downstream_variant": "-v",
    "upstream_feature_selection": "-s",
    "upstream_layer_selection": "-l",
    "upstream_trainable": "-f",
    "upstream_feature_normalize": "--upstream_feature_normalize",
    "seed": "--seed",
}
FILES = ("upstream_ckpt", "upstream_model_config")
log = logging.getLogger(__name__)


def check_same(args: Namespace, explicit: set[str], checkpoint: Path) -> None:
    """What the command names is what the checkpoint was made with, for s3prl goes on with that and says nothing."""
    saved: Namespace = checkpoints.read(checkpoint, mmap=True)["Args"]
    is_code = getattr(saved, "hub", "torch") != "torch" or getattr(saved, "from_hf_hub", False)
    if is_code and args.hub != "huggingface":  # --hub torch is not heard: s3prl takes this, too, from the file
        # s3prl would download what the file names, and run it
        raise EkdError(
            f"{checkpoint}: its upstream is code from the Hugging Face repository {saved.upstream}; "
            "if you trust that, say --hub huggingface"
        )
    for name, flag in KEPT.items():
        given, before = getattr(args, name, None), getattr(saved, name, None)
        if name not in explicit or given == before or name in FILES and _same_file(name, str(given), before):
            continue
        was = "without it" if before is None or before is False else f"with {flag} {before}"
        what = flag if given is True else f"{flag} {given}"
        raise EkdError(f"{what}: {checkpoint} was trained {was}; name another experiment (-n)")


def _same_file(name: str, given: str, before: str | None) -> bool:
    """Whether two values of -k or -g may be one thing: the same file, or a folder and the file in it that was taken."""
    if before is None:
        return name == "upstream_ckpt"  # an upstream that takes none
    if is_pinned_form(before, given) or _is_commit_of(given, before):
        return True
    if name == "upstream_model_config" and "/" not in given:  # perhaps a variant's name
        return Path(given).stem == Path(before).stem
    if name == "upstream_ckpt" and Path(before).exists() and _is_name(given):
        return False  # nothing has moved
    if not (Path(given).exists() and Path(before).exists()):
        # the upstream has moved (_correct_saved), was or will be downloaded; of two names each is another upstream's
        return Path(before).is_absolute() or model_path(given) is not None
    return Path(given).resolve() in (Path(before).resolve(), *Path(before).parents)


def _is_commit_of(given: str, before: str) -> bool:
    """Whether a branch or tag on the Hugging Face Hub still is at the commit that a run keeps."""
    if not (given.startswith(HF) and before.startswith(HF)):
        return False
    named, kept = split_hub_model(given), split_hub_model(before)
    if named.is_pinned or named._replace(revision=kept.revision) != kept:
        return False
    from s3prl_ekd.teachers.sources import describe

    return describe(given, "-k").pinned == before


def _is_name(given: str) -> bool:
    """Whether -k names a model by something else than the place of its files."""
    named = given in HUB or "://" in given or given.startswith((HF, embedded.PREFIX))
    return named and model_path(given) is None


def check_task(name: str, s3prl: Path) -> None:
    """``-d`` names a downstream task of the package folder ``s3prl``."""
    known = {path.parent.name for path in (s3prl / "downstream").glob("*/expert.py")}
    if name in known:
        return
    if name in WITH_CONFIG:
        raise EkdError(f"-d {name}: s3prl calls this task -d {WITH_CONFIG[name]}")
    raise EkdError(f"-d {name}: s3prl has no such downstream task{did_you_mean(name, known, count=3)}")


def import_expert(task: str, device: torch.device) -> None:
    """Import s3prl's code of ``-d``, to run on a device; it may ask for packages that s3prl does not bring along.

    Raises:
        EkdError: one that is not installed.
    """
    try:
        importlib.import_module(f"s3prl.downstream.{task}.expert")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == "s3prl":
            raise
        extra = "superb_sg" if has_mixtures(task) else "superb"
        install = f"'s3prl-ekd[{extra}]'" if package in EXTRAS[extra] else package
        raise EkdError(f"-d {task}: s3prl's code for it needs {package}: pip install {install}") from error
    for name in ("expert", "loss"):  # SE's and SS's take the first GPU, whichever --device says
        module: Any = sys.modules.get(f"s3prl.downstream.{task}.{name}")
        if isinstance(getattr(module, "device", None), type(device)):
            module.device = device


def check_upstream(args: Namespace) -> None:
    """The name is in s3prl's hub, and the files of -k and -g are there; their paths become absolute.

    What is read from a checkpoint, which imports torch, comes last.
    """
    if args.hub == "torch" and not getattr(args, "from_hf_hub", False):
        check_upstream_name(args.upstream, "-u")
    if args.upstream == "ekd_teacher":
        _check_teacher(args)
    elif args.upstream.startswith("ekd_student"):
        _check_student(args)
    elif args.upstream == ENSEMBLE:
        _check_ensemble(args)
    else:
        _check_theirs(args)


def _check_teacher(args: Namespace) -> None:
    if args.upstream_ckpt is None:
        raise EkdError("-u ekd_teacher: give a teacher with -k, as ekd.teachers[].source names it")
    from s3prl_ekd.teachers.sources import describe

    path = model_path(args.upstream_ckpt)
    if path is not None:
        args.upstream_ckpt = str(path.resolve())
    args.upstream_ckpt = describe(args.upstream_ckpt, "-k").pinned


def _check_student(args: Namespace) -> None:
    if args.upstream == "ekd_student" and args.upstream_ckpt is None and args.upstream_model_config is None:
        raise EkdError("-u ekd_student: give a checkpoint with -k, or an untrained student's config with -g")
    if args.upstream == "ekd_student_with_heads" and args.upstream_ckpt is None:
        raise EkdError("-u ekd_student_with_heads: give a checkpoint with -k")
    if (args.upstream_ckpt or "").startswith(HF):
        from s3prl_ekd.student_checkpoint import pinned_student

        args.upstream_ckpt = pinned_student(args.upstream_ckpt, "-k")
        return
    is_file = args.upstream != "ekd_student_url" and _make_absolute(args)
    if args.upstream_model_config is not None:
        args.upstream_model_config = str(find_model_config(args.upstream_model_config))
    if is_file:
        from s3prl_ekd.student_checkpoint import newest_checkpoint

        # what is newest now: a head is tested later on the student that it was trained on, not on a newer one
        args.upstream_ckpt = str(newest_checkpoint(args.upstream_ckpt))


def _check_ensemble(args: Namespace) -> None:
    if args.upstream_ckpt is None:
        raise EkdError(f"-u {ENSEMBLE}: give the list of its models with -k FILE.yaml")
    args.upstream_ckpt = arguments.check_file("-k", args.upstream_ckpt, "list of models")
    read_members(Path(args.upstream_ckpt))


def _make_absolute(args: Namespace) -> bool:
    """Make the path of -k absolute; False where it is none, but a URL."""
    is_file = args.upstream_ckpt is not None and "://" not in args.upstream_ckpt
    if is_file:
        args.upstream_ckpt = arguments.check_file("-k", args.upstream_ckpt, "checkpoint")
    return is_file


def _check_theirs(args: Namespace) -> None:
    """An upstream of s3prl's own; its -k is no student's."""
    if args.upstream.endswith("_local"):
        _make_absolute(args)
        if args.upstream_model_config is not None:
            args.upstream_model_config = arguments.check_file("-g", args.upstream_model_config, "config file")
    if args.upstream_ckpt is None or not Path(args.upstream_ckpt).exists():
        return
    from s3prl_ekd.student_checkpoint import is_student

    if is_student(args.upstream_ckpt):
        raise EkdError(f"-k {args.upstream_ckpt}: an EKD student, which -u {args.upstream} does not read; "
                       "use -u ekd_student")  # fmt: skip
    if args.upstream in HUB:
        log.warning("-u %s: downloads its own checkpoint, -k is not read", args.upstream)


def check_clip(args: Namespace) -> None:
    """What ``-m inference -t FILE`` transcribes: s3prl takes samples as they are, one channel behind the other."""
    clip = arguments.check_file("-t", args.evaluate_split, "audio file")
    if args.downstream == "asr":
        info = audio_info(clip)
        if not info.is_16k_mono:
            raise EkdError(f"-t {clip}: {info.rate} Hz, {info.channels} channels; expected 16 kHz mono")


def find_task_config(value: str | None, task: str, s3prl: Path) -> str:
    """An absolute path for -c, which may be what s3prl's checkout calls one of our files; without -c the task's own.

    Raises:
        EkdError: there is no such file.
    """
    folder = shipped("downstream_configs")
    name = str(Path(value or f"downstream/{task}/config.yaml"))
    if value is None and task in CONFIGS and not Path(name).is_file():
        return str(shipped(CONFIGS[task]))
    if name in S3PRL_CONFIGS and not any((place / name).is_file() for place in (Path(), s3prl)):
        return str(folder / S3PRL_CONFIGS[name])
    return str(find_config("-c", name, (s3prl, folder, folder.parent)))


def check_world(args: Namespace) -> None:
    """s3prl continues a distributed run only with as many processes; it says so with bare assertions."""
    if args.mode != "train":
        return
    state = checkpoints.read(args.init_ckpt, mmap=True)
    before = int(state.get("WorldSize", 1)) if state["Args"].local_rank is not None else 0
    now = ranks.downstream_size(args)
    if before != now:
        old, new = (f"on {count} processes" if count else "without torchrun" for count in (before, now))
        raise EkdError(f"{args.init_ckpt}: trained {old}, cannot continue {new}")
