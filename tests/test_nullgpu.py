"""What only a GPU runs, on a stand-in that computes nothing (tests/nullgpu/README.md): control flow, never a number.

Each command is a process of its own, forked from one that has imported what they need.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nullgpu
import pytest
import trouble_lab
import yaml
from bridge_corpora import overrides, voxceleb
from command_server import RUN_DOWNSTREAM, RUN_PRETRAIN, S3PRL_EKD, Done, Server
from pretrain_lab import hold_out
from target_cache_lab import write_model

from s3prl_ekd.torch_file import read_torch_file

REASON = nullgpu.why_not()
pytestmark = [pytest.mark.skipif(bool(REASON), reason=REASON), pytest.mark.slow]

TEACHERS = {"_add_layer_norm", "_first_conv_gelu"}
LOSS = {"_terms", "_gradient"}
ATTENTION = {"_gated_attention"}
DRIVER = "triton.backends.nvidia.driver"
IN_RANKS = "nullgpu.checks:pretrain_in_ranks"
OURS = TEACHERS | LOSS | ATTENTION  # torch has Triton kernels of its own, from 2.15 on in a step too


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    library, imported = nullgpu.build(tmp_path_factory.mktemp("library")), ("s3prl_ekd.model.triton_kernels", DRIVER)
    server = Server(nullgpu.environment(library), tmp_path_factory.mktemp("jobs"), imported)
    yield server
    server.close()


def words(
    lab: Path, folder: Path, name: str = "x", precision: str = "fp32", device: str = "cuda", **runner: object
) -> list[str]:
    """Arguments for a run of eight steps in one precision, without data workers."""
    model = trouble_lab.configure(lab, folder, precision)
    runner |= {"fp16": precision == "fp16", "log_step": runner.get("log_step", 1)}
    found = trouble_lab.arguments(lab, model, name, device, **runner)
    found[-1] += ",,config.pretrain_expert.datarc.num_workers=0"
    return found


def succeed(done: Done) -> Done:
    assert done.status == 0, done.err[-3000:]
    return done


def error_of(done: Done) -> str:
    """The line that a command has ended with."""
    assert done.status == 2 and "Traceback" not in done.err, done.err[-3000:]
    (line,) = (line for line in done.err.splitlines() if line.startswith("error: "))
    return line


def test_it_is_what_it_says(gpu: Server, tmp_path: Path) -> None:
    env = {"NULLGPU_DEVICES": 2, "NULLGPU_GIB": 2, "NULLGPU_CAPABILITY": 75, "CUDA_VISIBLE_DEVICES": "1"}
    assert succeed(gpu.run("nullgpu.checks:it_is_what_it_says", cwd=tmp_path, **env)).gpus == {1}


# ------------------------------------------------------------------------------------------------------- pretraining


@pytest.mark.parametrize(
    ("precision", "capability", "kernels"),
    [
        ("fp32", 90, TEACHERS | LOSS),
        ("fp16", 90, TEACHERS | LOSS),  # teachers are fp32 under the runner's fp16
        ("bf16", 90, TEACHERS | LOSS | ATTENTION),
        ("bf16", 120, TEACHERS | LOSS | ATTENTION),
        ("bf16", 75, TEACHERS | LOSS),  # a T4: torch emulates bf16, the attention has too few registers
    ],
)
def test_a_run_is_killed_and_goes_on(
    gpu: Server, lab: Path, tmp_path: Path, precision: str, capability: int, kernels: set[str]
) -> None:
    arguments = words(lab, tmp_path, precision=precision)
    killed = gpu.run(
        "trouble_lab:main", tmp_path / "log", "5:kill", *arguments, cwd=tmp_path, NULLGPU_CAPABILITY=capability
    )
    assert killed.status == -9 and killed.kernels & OURS == kernels, killed.err[-3000:]
    succeed(gpu.run(RUN_PRETRAIN, *arguments, "-a", cwd=tmp_path, NULLGPU_CAPABILITY=capability))
    steps = [json.loads(line)["step"] for line in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))
    assert read_torch_file(next((tmp_path / "x").glob("states-epoch-*.ckpt")))["Step"] == 8


def test_without_a_compiler_for_kernels_torchs_operators_do(gpu: Server, lab: Path, tmp_path: Path) -> None:
    """Triton builds its launchers with a C compiler when it runs."""
    env = {"PATH": tmp_path, "TRITON_CACHE_DIR": tmp_path / "triton", "CC": ""}
    done = succeed(gpu.run(RUN_PRETRAIN, *words(lab, tmp_path, total_steps=2, save_step=1), cwd=tmp_path, **env))
    assert not done.kernels & OURS
    assert "no fused kernels, some per cent slower" in done.err and "no kernels for the loss" in done.err


def test_a_step_waits_for_nothing(gpu: Server, lab: Path, tmp_path: Path) -> None:
    succeed(gpu.run("nullgpu.checks:a_step_waits_for_nothing", lab, cwd=tmp_path))


def test_a_batch_that_does_not_fit_is_left_out(gpu: Server, lab: Path, tmp_path: Path) -> None:
    """Under gradient accumulation; of the batches that were dropped with it no loss is left (each is 1 here)."""
    steps = tmp_path / "steps.jsonl"
    arguments = words(lab, tmp_path, gradient_accumulate_steps=2)
    check = "nullgpu.checks:trouble_with_losses_of_one"
    done = succeed(gpu.run(check, steps, "3:forward:2,5:backward:2", *arguments, cwd=tmp_path))
    for step in (3, 5):
        assert f"CUDA out of memory at step {step}\n" in done.out
        assert f"step {step}: a batch of " in done.err
    batches = trouble_lab.lines(steps, "batch")
    assert Counter(line["batch"] for line in batches) == {step: 4 if step in (3, 5) else 2 for step in range(1, 9)}
    assert all(line["graphs"] == 0 for line in batches)
    assert {line["loss"] for line in trouble_lab.lines(steps, "step")} == {2.0}


# ---------------------------------------------------------------------------------------- full GPUs, and other GPUs


@pytest.mark.parametrize(
    ("who", "error"),
    [
        ("torch", "CUDA out of memory. Tried to allocate 2.00 MiB; make room on this GPU, or set a smaller batch"),
        # met in a step, which leaves the batch out
        ("cublas", "out of GPU memory at step 1: 10 batches in a row do not fit; set a smaller"),
        ("triton", "out of GPU memory at step 1: 10 batches in a row do not fit; set a smaller"),
    ],
)
def test_a_full_gpu_is_one_line(gpu: Server, lab: Path, tmp_path: Path, who: str, error: str) -> None:
    full = {"NULLGPU_FULL": 0, "NULLGPU_FULL_FOR": who}
    assert error in error_of(gpu.run(RUN_PRETRAIN, *words(lab, tmp_path), cwd=tmp_path, **full))
    done = gpu.run(S3PRL_EKD, "teachers", "embedded:tiny_hubert", "--device", "cuda", cwd=tmp_path, **full)
    assert error_of(done).endswith(" (docs/faq.md, Out of memory)")


def test_a_gpu_that_is_full_for_a_moment_decides_nothing_about_kernels(gpu: Server, lab: Path, tmp_path: Path) -> None:
    """Triton's own words for it turned the kernels off for as long as the process lived."""
    full = {"NULLGPU_FULL": 0, "NULLGPU_FULL_FOR": "triton", "NULLGPU_FULL_TIMES": 1}
    done = succeed(gpu.run(RUN_PRETRAIN, *words(lab, tmp_path, total_steps=2, save_step=1), cwd=tmp_path, **full))
    assert "step 1: a batch of 4 clips" in done.err and "slower" not in done.err
    assert done.kernels & OURS == TEACHERS | LOSS


@pytest.mark.parametrize(
    ("who", "reason"), [("cublas", "CUBLAS_STATUS_ALLOC_FAILED"), ("triton", "[CUDA]: out of memory")]
)
def test_a_full_gpu_costs_a_validation_and_not_the_run(
    gpu: Server, validated: Path, tmp_path: Path, who: str, reason: str
) -> None:
    full = {"NULLGPU_FULL": 0, "NULLGPU_FULL_FOR": who}
    done = succeed(gpu.run("nullgpu.checks:validation_is_given_up", validated, tmp_path, cwd=tmp_path, **full))
    assert "no validation loss: " in done.err and reason in done.err


@pytest.fixture(scope="module")
def validated(lab: Path) -> Path:
    return hold_out(lab)


def test_the_second_gpu_leaves_the_first_alone(gpu: Server, lab: Path, tmp_path: Path) -> None:
    """No context there, which others would miss the memory of; and it may be full."""
    second = {"NULLGPU_DEVICES": 2, "NULLGPU_FULL": 0}
    model = write_model(lab, tmp_path / "model.yaml", tmp_path / "cache")
    targets = ["targets", "-g", str(model), "-c", str(lab / "runner.yaml"), "--device", "cuda:1"]
    for function, arguments in (
        (RUN_PRETRAIN, words(lab, tmp_path, device="cuda:1", total_steps=2, save_step=1)),
        (S3PRL_EKD, ["teachers", "embedded:tiny_wavlm", "--device", "cuda:1"]),
        (S3PRL_EKD, targets),
        (RUN_DOWNSTREAM, downstream(tmp_path, "cuda:1")),
    ):
        done = gpu.run(function, *arguments, cwd=tmp_path, **second)
        assert done.gpus == {1} and done.kernels >= TEACHERS, done.err[-3000:]
        if arguments is targets:  # asks whether its numbers are finite, which is not computed either
            assert done.status == 0 or "ekd.cache_precision" in error_of(done)
        else:
            succeed(done)


def test_evaluates_runs_are_forks_that_see_their_gpu_alone(gpu: Server, tmp_path: Path) -> None:
    check, arguments = "nullgpu.checks:a_run_of_evaluate", downstream(tmp_path, "cuda")
    env = {"NULLGPU_DEVICES": 2, "NULLGPU_FULL": 0}
    assert succeed(gpu.run(check, "cuda:1", *arguments, cwd=tmp_path, **env)).gpus == {1}
    assert list((tmp_path / "run").glob("states-*.ckpt"))


def downstream(folder: Path, device: str) -> list[str]:
    """Four steps of speaker identification on a small teacher's states."""
    corpus = folder / "vox"
    rules = overrides("voxceleb1", voxceleb(corpus)) if not corpus.exists() else ""
    more = ",,config.runner.total_steps=4,,config.downstream_expert.datarc.num_workers=0"
    return ["-m", "train", "-p", str(folder / "run"), "-u", "ekd_teacher", "-k", "embedded:tiny_hubert", "-d",
            "voxceleb1", "--device", device, "-o", rules + more]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ several GPUs


@pytest.mark.parametrize(
    "options", [{}, {"balance": {}, "teacher_dropping": {}, "targets": {"normalise": "standardise"}}]
)
def test_two_ranks_exchange_the_same(gpu: Server, lab: Path, tmp_path: Path, options: dict) -> None:
    """Each collective over nccl in one order, of the same size and type: else two GPUs would wait for ever."""
    arguments = words(lab, tmp_path, precision="bf16" if options else "fp16", total_steps=4, save_step=2)
    file = Path(arguments[arguments.index("-g") + 1])
    model = yaml.safe_load(file.read_text())
    model["ekd"] |= options
    file.write_text(yaml.safe_dump(model))
    ranks = gpu.run_all([(IN_RANKS, arguments, {**launch, "NULLGPU_DEVICES": 2}) for launch in launched(2)], tmp_path)
    assert [succeed(rank).gpus for rank in ranks] == [{0}, {1}]
    first, second = (rank.of("collective") for rank in ranks)
    assert first == second and len(first) > 4 * 2


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_ranks_that_are_shown_one_gpu_each_take_it(gpu: Server, lab: Path, tmp_path: Path, device: str) -> None:
    """As job schedulers may show them (srun --gpus-per-task=1)."""
    arguments = words(lab, tmp_path, device=device, total_steps=2, save_step=1)
    envs = [{**launch, "NULLGPU_DEVICES": 2, "CUDA_VISIBLE_DEVICES": launch["RANK"]} for launch in launched(2)]
    ranks = gpu.run_all([(IN_RANKS, arguments, env) for env in envs], tmp_path)
    assert [succeed(rank).gpus for rank in ranks] == [{0}, {1}]


def test_two_ranks_on_one_gpu_are_refused(gpu: Server, lab: Path, tmp_path: Path) -> None:
    """nccl would wait for ever, or say so in many lines."""
    ranks = gpu.run_all([(IN_RANKS, words(lab, tmp_path), launch) for launch in launched(2)], tmp_path)
    assert [rank.status for rank in ranks] == [2, 2]
    error = "error: --nproc_per_node: another rank has taken the only GPU that this one sees, no more ranks fit"
    assert sum(error in rank.err for rank in ranks) == 1


def test_ranks_of_a_downstream_run_take_the_gpus_that_they_are_shown(gpu: Server, tmp_path: Path) -> None:
    arguments = downstream(tmp_path, "cuda")
    envs = [{**launch, "NULLGPU_DEVICES": 2, "CUDA_VISIBLE_DEVICES": launch["RANK"]} for launch in launched(2)]
    ranks = gpu.run_all([("nullgpu.checks:downstream_in_ranks", arguments, env) for env in envs], tmp_path)
    assert [succeed(rank).gpus for rank in ranks] == [{0}, {1}]


def launched(ranks: int) -> list[dict[str, object]]:
    """What torchrun tells each of its processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [{"RANK": rank, "LOCAL_RANK": rank, **shared} for rank in range(ranks)]


# ------------------------------------------------------------------------------------------------------- benchmarks


def test_a_step_in_two_precisions_has_no_ceiling(gpu: Server, tmp_path: Path) -> None:
    done = succeed(gpu.run("nullgpu.checks:bench_step", cwd=tmp_path))
    assert "'ours_s'" in done.out and "matmul" not in done.out
