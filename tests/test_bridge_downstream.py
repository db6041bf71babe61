"""run_downstream.py without a run: whose word counts where a run goes on, and what -u, -k and -g may be."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from export_student import write_student

from s3prl_ekd.bridge import checkpoints, downstream_arguments, downstream_launch, downstream_runner, ranks
from s3prl_ekd.bridge.evaluation_memory import EvaluationMemory
from s3prl_ekd.bridge.interrupts import Run
from s3prl_ekd.bridge.upstream_weights import UpstreamWeights
from s3prl_ekd.errors import EkdError


@pytest.mark.parametrize(
    ("stored", "given", "expected"),
    [
        ("gone.ckpt", "here.ckpt", "here.ckpt"),  # it has moved
        ("here.ckpt", "other.ckpt", "here.ckpt"),
        ("gone.ckpt", None, "gone.ckpt"),
        (None, "here.ckpt", None),
    ],
)
def test_an_upstream_that_has_moved_is_taken_from_where_the_command_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str | None, given: str | None, expected: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.ckpt").touch()
    Path("other.ckpt").touch()
    launch = downstream_launch.DownstreamLaunch(Run([]))
    launch.args = Namespace(upstream_ckpt=given)
    saved = Namespace(upstream_ckpt=stored)
    launch._correct_saved(saved)
    assert saved.upstream_ckpt == expected


@pytest.mark.parametrize("before", [None, 2, 3])
@pytest.mark.parametrize("now", [None, 2, 3])
def test_a_training_goes_on_with_as_many_processes(
    monkeypatch: pytest.MonkeyPatch, before: int | None, now: int | None
) -> None:
    """s3prl says so with a bare assertion."""
    state = {"Args": Namespace(local_rank=None if before is None else 0)} | ({"WorldSize": before} if before else {})
    monkeypatch.setattr(checkpoints, "read", lambda path, mmap: state)
    monkeypatch.setenv("WORLD_SIZE", str(now or 1))
    args = Namespace(mode="train", init_ckpt="x.ckpt", local_rank=None if now is None else 1)
    words = {None: "without torchrun", 2: "on 2 processes", 3: "on 3 processes"}
    if before == now:
        downstream_arguments.check_world(args)
    else:
        with pytest.raises(EkdError, match=f"^x.ckpt: trained {words[before]}, cannot continue {words[now]}$"):
            downstream_arguments.check_world(args)
    args.mode = "evaluate"  # in one process, whatever trained it
    downstream_arguments.check_world(args)


def test_ranks_without_a_gpu_are_told_of_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    """s3prl's default is nccl, at which torch fails with a traceback on every rank, when the corpus was looked at."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    launch = downstream_launch.DownstreamLaunch(Run([]))
    args = Namespace(mode="train", device="cpu", backend="nccl", init_ckpt=None)
    with pytest.raises(EkdError, match="^--backend nccl: is for GPUs, and this is --device cpu; use --backend gloo$"):
        launch._check_first(args)
    launch._check_first(Namespace(**vars(args) | {"backend": "gloo"}))
    launch._check_first(Namespace(**vars(args) | {"device": "cuda"}))


def test_a_device_of_an_override_is_looked_at_before_an_expert_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SE's and SS's modules are given it (stand-ins: the real ones ask for asteroid)."""
    expert: Any = ModuleType("expert")
    expert.device = torch.device("cpu")
    monkeypatch.setitem(sys.modules, "s3prl.downstream.separation_stft.expert", expert)
    launch = downstream_launch.DownstreamLaunch(Run([]))
    args = launch.args = Namespace(
        downstream="separation_stft", mode="evaluate", past_exp=None, expdir=tmp_path, device="cdua", config="ss.yaml"
    )
    with pytest.raises(EkdError, match="^--device cdua: is no device"):
        launch._checked(args, {"runner": {}, "optimizer": {}, "downstream_expert": {}})


def test_the_config_of_a_student_is_the_one_that_its_head_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-g: a file, the folder's file or a variant's name; s3prl goes on with the checkpoint's and says nothing."""
    one, other = tmp_path / "average.yaml", tmp_path / "other.yaml"
    for file in (one, other):
        file.touch()
    saved = Namespace(upstream_model_config=str(one), upstream_ckpt=None)
    monkeypatch.setattr(checkpoints, "read", lambda path, mmap: {"Args": saved})

    def check(given: str, name: str = "upstream_model_config") -> None:
        downstream_arguments.check_same(Namespace(**{name: given}), {name}, Path("states-8.ckpt"))

    check(str(one))
    check("average")
    check(str(tmp_path / "moved.yaml"))
    check("any.ckpt", "upstream_ckpt")  # of an upstream that took none
    saved.upstream_ckpt = str(tmp_path / "gone.ckpt")
    check(str(one), "upstream_ckpt")  # which has moved
    for given in (str(other), "concat"):
        with pytest.raises(EkdError, match=re.escape(f"-g {given}: states-8.ckpt was trained with -g {one}; name")):
            check(given)
    saved.upstream_model_config = None
    with pytest.raises(EkdError, match="-g average: states-8.ckpt was trained without it"):
        check("average")


@pytest.mark.parametrize(
    ("before", "given", "same"),
    [
        ("embedded:tiny_hubert", "embedded:tiny_wavlm", False),
        ("hubert_base", "wavlm_base", False),  # results lie in folders that are called after their teacher
        ("https://example.org/a.ckpt", "https://example.org/b.ckpt", False),
        ("hubert_base", "hubert.pt", True),  # downloaded
        ("/gone/hubert.pt", "hubert_base", True),
    ],
)
def test_another_name_is_another_upstream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, given: str, same: bool
) -> None:
    """A file may have moved; what is named by a name is what it always was, and a head goes on with its own."""
    monkeypatch.chdir(tmp_path)
    Path("wavlm_base").mkdir()
    Path("hubert.pt").touch()
    monkeypatch.setattr(checkpoints, "read", lambda path, mmap: {"Args": Namespace(upstream_ckpt=before)})
    args = Namespace(upstream_ckpt=given)
    if same:
        downstream_arguments.check_same(args, {"upstream_ckpt"}, Path("states-8.ckpt"))
    else:
        with pytest.raises(EkdError, match=re.escape(f"-k {given}: states-8.ckpt was trained with -k {before}; name")):
            downstream_arguments.check_same(args, {"upstream_ckpt"}, Path("states-8.ckpt"))


def test_an_argument_by_o_is_as_its_option_where_a_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Namespace(seed=5, upstream_layer_selection=None, verbose=False)
    monkeypatch.setattr(checkpoints, "read", lambda path, mmap: {"Args": saved})
    launch = downstream_launch.DownstreamLaunch(Run([]))
    launch.args = Namespace(hub="torch", seed=1337, upstream_layer_selection=None, verbose=False)
    for same in ({}, {"seed": 5}, {"verbose": True, "mine": 3}):
        launch.overridden = same
        launch._note_kept(Path("x.ckpt"))
    for other, said in (({"seed": 7}, "--seed 7: x.ckpt was trained with --seed 5; name another"),
                        ({"init_ckpt": "y.ckpt"}, "-o args.init_ckpt: the checkpoint is x.ckpt already; name another"),
                        ({"upstream_layer_selection": 3}, "-l 3: x.ckpt was trained without it; name")):  # fmt: skip
        launch.overridden = other
        with pytest.raises(EkdError, match=f"^{said}"):
            launch._note_kept(Path("x.ckpt"))


@pytest.mark.parametrize("given", [set(), {"hub"}], ids=["default", "--hub torch"])
@pytest.mark.parametrize("saved", [{"hub": "huggingface"}, {"hub": "torch", "from_hf_hub": True}])
def test_code_from_a_repository_that_a_checkpoint_names_is_not_run_unasked(
    monkeypatch: pytest.MonkeyPatch, saved: dict[str, object], given: set[str]
) -> None:
    """s3prl downloads the repository and imports its expert.py, whatever --hub says beside -e."""
    monkeypatch.setattr(checkpoints, "read", lambda path, mmap: {"Args": Namespace(upstream="a/b", **saved)})
    with pytest.raises(
        EkdError, match="^x.ckpt: its upstream is code from the Hugging Face repository a/b; if you trust"
    ):
        downstream_arguments.check_same(Namespace(hub="torch"), given, Path("x.ckpt"))
    downstream_arguments.check_same(Namespace(hub="huggingface"), {"hub"}, Path("x.ckpt"))


def test_what_an_upstream_reads_is_named_by_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes into the checkpoint, which is tested from anywhere."""
    monkeypatch.chdir(tmp_path)
    write_student(tmp_path / "states-1.ckpt")
    torch.save({"model_weight": {}}, "theirs.pt")
    Path("model.yaml").write_text("")

    def check(upstream: str, ckpt: str | None = None, config: str | None = None) -> Namespace:
        args = Namespace(hub="huggingface", upstream=upstream, upstream_ckpt=ckpt, upstream_model_config=config)
        downstream_arguments.check_upstream(args)
        return args

    here = str(tmp_path)
    assert check("ekd_student", "states-1.ckpt", "average").upstream_ckpt == f"{here}/states-1.ckpt"
    untrained = check("ekd_student", None, "average").upstream_model_config
    assert Path(untrained).is_absolute() and untrained.endswith("variants/average.yaml")
    found = check("tera_local", "theirs.pt", "model.yaml")
    assert (found.upstream_ckpt, found.upstream_model_config) == (f"{here}/theirs.pt", f"{here}/model.yaml")
    address = "https://example.org/a.ckpt"
    assert check("ekd_student_url", address).upstream_ckpt == address
    assert check("ekd_teacher", "embedded:tiny_hubert").upstream_ckpt == "embedded:tiny_hubert"
    for words, message in (
        (("ekd_student",), "-u ekd_student: give a checkpoint with -k, or an untrained student's config with -g"),
        (("ekd_student", "none.ckpt"), "-k none.ckpt: no such checkpoint"),
        (("tera_local", "theirs.pt", "none.yaml"), "-g none.yaml: no such config file"),
        (("ekd_teacher", "none.pt"), "-k: no such file or folder: "),
    ):
        with pytest.raises(EkdError, match=re.escape(message)):
            check(*words)


def test_configs_under_the_names_of_s3prls_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry's wheel has none of them. A file of the user's or of a checkout counts before ours."""
    monkeypatch.chdir(tmp_path)
    s3prl = tmp_path / "s3prl"
    names = {
        "ctc": ("downstream/ctc/libriphone.yaml", "pr.yaml"),
        "voxceleb1": ("downstream/voxceleb1/config.yaml", "sid.yaml"),
        "emotion": ("downstream/emotion/config.yaml", "er.yaml"),
        "asr": ("downstream/asr/config.yaml", "asr.yaml"),
    }
    for task, (name, ours) in names.items():
        found = downstream_arguments.find_task_config(name, task, s3prl)
        assert found == downstream_arguments.find_task_config(None, task, s3prl)
        assert Path(found).is_file() and Path(found).parts[-2:] == ("downstream_configs", ours)
        for place in (s3prl, tmp_path):
            (place / name).parent.mkdir(parents=True)
            (place / name).touch()
            assert downstream_arguments.find_task_config(name, task, s3prl) == str(place / name)


def test_of_an_experiment_without_a_checkpoint_the_best_is_to_be_named(tmp_path: Path) -> None:
    launch = downstream_launch.DownstreamLaunch(Run([]))
    args = Namespace(expdir=None, auto_resume=False, past_exp=str(tmp_path))
    with pytest.raises(EkdError, match=r"the folder holds no states-\*.ckpt \(to use a \*-best.ckpt, name the file"):
        launch._find_checkpoint(args)


def test_what_is_no_head_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """-i and -e; and a test on a device that is not there. A training first asks whether a step is left."""
    saved = Namespace(upstream="fbank", downstream="ctc")
    file, other = tmp_path / "states-1.ckpt", tmp_path / "other.ckpt"
    torch.save({"Args": saved, "Config": {}, "Featurizer": {}, "Downstream": {}, "Step": 1}, file)
    torch.save({"Args": saved, "Config": {}}, other)

    def start(mode: str, past: Path | None, init: Path | None = None) -> None:
        launch = downstream_launch.DownstreamLaunch(Run([]))
        args = Namespace(mode=mode, expdir=None, expname=None, auto_resume=False, device="cuda:99", override=None)
        args.past_exp, args.init_ckpt = past and str(past), init and str(init)
        launch._take(args, set())
        assert launch.current.resumable and args.past_exp == str(file)
        assert launch.lock is not None
        launch.lock.close()

    wrong = "other.ckpt: not a checkpoint of s3prl's downstream runner: it has no 'Featurizer'"
    for mode in ("train", "evaluate"):
        for past, init in ((other, None), (None, other)):
            with pytest.raises(EkdError, match=wrong):
                start(mode, past, init)
    start("train", file)
    with pytest.raises(EkdError, match="--device cuda:99"):
        start("evaluate", file)


def test_ranks_wait_for_an_evaluation_and_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 evaluates alone, for longer than an exchange may take otherwise."""
    launch = downstream_launch.DownstreamLaunch(Run([]))
    joined: list[tuple[str, timedelta]] = []
    monkeypatch.setattr(launch.world, "join", lambda backend, timeout: joined.append((backend, timeout)))
    script = SimpleNamespace(override=None, get_downstream_args=None)
    launch._change_script(script)
    script.torch.distributed.init_process_group("gloo")
    assert joined == [("gloo", ranks.EVALUATION)] and ranks.EVALUATION > ranks.PATIENCE
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for device, rank in (("cpu", 0), ("cpu", 7), ("cuda", 1)):
        launch.args = Namespace(device=device)
        script.torch.cuda.set_device(rank)
    assert taken == [1]
    with pytest.raises(EkdError, match="--local_rank 2: this machine has 2 GPUs"):
        script.torch.cuda.set_device(2)


@pytest.mark.parametrize("name", ["Downstream", "Optimizer"])
def test_weights_that_do_not_fit_are_one_line(name: str) -> None:
    """With -i of another task's head, or of one that was trained without -f."""
    from s3prl.downstream.runner import Runner

    build = downstream_runner.runner_class(
        Runner, UpstreamWeights(torch.save), EvaluationMemory(torch.save), lambda: None
    )
    runner, head, other = build.__new__(build), torch.nn.Linear(2, 3), torch.nn.Linear(2, 3, bias=False)
    runner.args = Namespace(init_ckpt="old/states-6.ckpt")
    parts, others = (
        {"Downstream": model, "Optimizer": torch.optim.Adam(model.parameters())} for model in (head, other)
    )
    runner.init_ckpt = {part: its.state_dict() for part, its in others.items()}
    with pytest.raises(EkdError, match=f"^old/states-6.ckpt: its {name} does not fit this run") as found:
        runner._load_weight(parts[name], name)
    assert "\n" not in str(found.value)
