"""What tests of the null GPU look at from the inside; each function is a job of ``command_server.py``."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import torch


def it_is_what_it_says() -> None:
    """NULLGPU_DEVICES=2, NULLGPU_GIB=2, NULLGPU_CAPABILITY=75; of the two the second is visible."""
    assert (torch.cuda.is_available(), torch.cuda.device_count()) == (True, 1)
    assert torch.cuda.get_device_name() == "null GPU"
    assert torch.cuda.get_device_capability() == (7, 5)
    assert not torch.cuda.is_bf16_supported(including_emulation=False)
    shared = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    assert shared == 64 * 1024
    assert torch.cuda.mem_get_info()[1] == torch.cuda.get_device_properties(0).total_memory == 2 * 2**30
    assert not torch.backends.cudnn.enabled and not torch.backends.cuda.cudnn_sdp_enabled()

    wave = torch.arange(5.0)
    assert wave.cuda().cpu().tolist() == wave.tolist()  # copies are real ...
    assert wave.cuda().clone().add_(1).cpu().tolist() == wave.tolist()  # ... and kernels are not
    assert wave.pin_memory().is_pinned() and not wave.is_pinned()
    assert (torch.ones(3, 4, device="cuda") @ torch.ones(4, 5, device="cuda")).shape == (3, 5)
    assert torch.fft.rfft(torch.ones(2, 400, device="cuda")).shape == (2, 201)

    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    block = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    assert torch.cuda.mem_get_info()[0] == free - 2**30
    for size in (free - 2**30 + 1, 2 * 2**30):
        try:
            torch.empty(size, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError as error:
            assert "CUDA out of memory" in str(error) and "total capacity of 2.00 GiB" in str(error)
        else:
            raise AssertionError("there was more memory than there is")
    del block
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info()[0] == free


def a_step_waits_for_nothing() -> None:
    """A step of each kind, which must not wait for the GPU: folder of the lab, fp16 by the runner or not."""
    from pretrain_lab import make_expert
    from s3prl.optimizers import get_optimizer
    from test_device_sync import OPTIONS

    from s3prl_ekd.bridge.adamw import step_at_once
    from s3prl_ekd.config import MaskConfig
    from s3prl_ekd.data.batches import Batch
    from s3prl_ekd.model.masking import SpanMask

    torch.linalg.eigh = lambda matrix: Namespace(eigenvectors=matrix)  # solvers report on what was not computed
    for name, changes in OPTIONS.items():
        for fp16 in (False, True):
            expert = make_expert(Path(sys.argv[1]), **changes).train()
            expert.model.mask = SpanMask(expert.model.encoder.shape.width, MaskConfig())
            expert.device = "cuda"
            expert.to("cuda")
            scaler = torch.amp.GradScaler("cuda", enabled=fp16)
            optimizer = get_optimizer([expert.model], 10, {"name": "AdamW_with_schedule", "lr": 1e-4})
            assert step_at_once(optimizer)
            batch = Batch(torch.randn(2, 8_000).pin_memory(), epoch=0, index=0)
            try:
                for step in (1, 2, 3, 4):  # phi_s computes its rotation in the second, and may wait in it
                    if step == 4:
                        torch.cuda.set_sync_debug_mode("error")
                    with torch.autocast("cuda", torch.float16, enabled=fp16):
                        loss, _ = expert(batch, records={}, global_step=step, log_step=10)
                    scaler.scale(loss).backward()
                    if not fp16:  # a scaler asks whether a gradient is infinite
                        optimizer.step()
            except Exception as error:
                error.add_note(f"option {name}, fp16 {fp16}")
                raise
            finally:
                torch.cuda.set_sync_debug_mode("default")


def pretrain_in_ranks() -> int:
    """run_pretrain.py, one of several ranks."""
    from s3prl_ekd.bridge.launch import run_pretrain

    _compare_no_shapes()
    return run_pretrain()


def downstream_in_ranks() -> int:
    """run_downstream.py, one of several ranks."""
    from s3prl_ekd.bridge.launch import run_downstream

    _compare_no_shapes()
    return run_downstream()


def _compare_no_shapes() -> None:
    """DDP compares them among ranks, and torch 2.15 copies the answer by a kernel."""
    from torch.nn.parallel import distributed

    distributed._verify_param_shape_across_processes = lambda *args: None


def trouble_with_losses_of_one() -> int:
    """trouble_lab.py where every loss is read as 1, so that what the runner adds up of them can be told."""
    import trouble_lab

    item = torch.Tensor.item
    torch.Tensor.item = lambda x: 1.0 if x.is_cuda and x.is_floating_point() else item(x)
    return trouble_lab.main()


def validation_is_given_up() -> None:
    """A checkpoint is saved where the GPU is full for whoever comes to need memory; words: lab, folder."""
    from pretrain_lab import make_expert

    lab, folder = map(Path, sys.argv[1:])
    expert = make_expert(lab, held_out=True).train()
    expert.device = "cuda"
    expert.to("cuda")
    expert.add_state_to_save({"Step": 3, "Args": Namespace(expdir=str(folder))})
    assert not (folder / "validation.jsonl").exists()


def a_run_of_evaluate() -> None:
    """run_downstream.py as evaluate runs it on one of several GPUs: device, the command's arguments."""
    from test_evaluate_fork_server import start

    from s3prl_ekd.evaluate.devices import gpu_environment
    from s3prl_ekd.evaluate.fork_server import ForkServer

    device, *arguments = sys.argv[1:]
    server = ForkServer({"OMP_NUM_THREADS": "1"}, "cuda")
    try:
        said = start(server, Path.cwd(), *arguments, **gpu_environment(device))
    finally:
        server.close()
    assert "own process" not in said


def bench_step() -> None:
    """The benchmark of a step in two precisions; prints what it found."""
    from types import SimpleNamespace

    from benchmarks import step

    found = step.run(SimpleNamespace(device="cuda", size="tiny", batch=1, clip_seconds=1.0, precision="fp32",
                                     student_precision="bf16", pairs=1))  # fmt: skip
    print(sorted(found))
