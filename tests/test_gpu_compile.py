"""The Triton kernels compiled, as they are called, for GPUs that need not be here: code that no interpreter makes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
pytestmark = pytest.mark.skipif(not (TOOLS / "ptxas").is_file(), reason="this Triton brings no assembler for NVIDIA")

SHARED = {75: 64, 80: 163, 89: 99, 90: 227, 120: 99}
"""KiB of shared memory that a block may have, by compute capability (CUDA C programming guide, table 28)."""


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int], list[Any]]]:
    """``compiled(capability)``: from here on launches compile for that GPU and launch nothing; the kernels so far."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")  # Triton's own from 3.10 on
    run, kernels, now = JITFunction.run, [], SimpleNamespace(capability=0)
    monkeypatch.setattr(
        driver,
        "active" if "active" in vars(driver) else "_active",  # Triton before 3.4 has no property of that name
        SimpleNamespace(
            get_current_device=lambda: now.capability,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", now.capability, 32),
        ),
    )

    def compile_only(self: Any, *args: Any, warmup: bool, **kwargs: Any) -> None:
        kernels.append(run(self, *args, warmup=True, **kwargs))

    monkeypatch.setattr(JITFunction, "run", compile_only)

    def set_capability(capability: int) -> list[Any]:
        now.capability = capability
        return kernels

    yield set_capability


def cuobjdump(option: str, kernel: Any, file: Path) -> str:
    file.write_bytes(kernel.asm["cubin"])
    command = [str(TOOLS / "cuobjdump"), option, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(kernel: Any, file: Path) -> dict[str, int]:
    """What ptxas gave a kernel: REG registers a thread; STACK and LOCAL bytes of spilled ones."""
    text = cuobjdump("--dump-resource-usage", kernel, file)
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def launch_all(dtype: torch.dtype, capability: int) -> None:
    """Every kernel by its own function, with shapes and layouts of a Base model; nothing is computed."""
    from s3prl_ekd.distill.triton_losses import FusedL1AndCosine
    from s3prl_ekd.model import triton_kernels
    from s3prl_ekd.model.triton_attention import gated_attention

    frames, width = 149, 768
    x = torch.zeros(2, frames, width, dtype=dtype)
    triton_kernels.add_layer_norm(x, x, torch.zeros(width), torch.zeros(width), 1e-5)
    matrix = torch.zeros(2, 10, 512, dtype=dtype)
    wave, mean, shift = torch.zeros(2, 48_000), torch.zeros(2, 10), torch.zeros(2, 512)
    triton_kernels.first_conv_gelu(wave, mean, matrix, shift, 9_599, 5)
    qkv = torch.zeros(2, frames, 3, 12, 64, dtype=dtype).permute(2, 0, 3, 1, 4)
    if dtype != torch.float32 and capability >= 80:  # arithmetic.gated_attention_kernel leaves the others to torch
        gated_attention(*qkv, torch.zeros(2, frames, 12, dtype=dtype).transpose(1, 2), torch.zeros(12, 2 * frames - 1))
    for columns in (width, 3 * width):  # a teacher's states, and three joined
        prediction = torch.zeros(3, 2, frames, columns, dtype=dtype).transpose(0, 1).requires_grad_()
        l1, cosine = FusedL1AndCosine.apply(prediction, torch.zeros(2, 3, frames, columns), 1e-8)
        (l1 + cosine).sum().backward()


@pytest.mark.parametrize("capability", SHARED)
def test_they_compile_fit_and_spill_nothing(
    capability: int, compiled: Callable[[int], list[Any]], tmp_path: Path
) -> None:
    kernels = compiled(capability)
    for dtype in (torch.float32, torch.bfloat16):
        launch_all(dtype, capability)
    names = [kernel.metadata.name for kernel in kernels]
    assert (len(kernels), len(set(names))) == ((13, 5) if capability >= 80 else (12, 4)), names
    for kernel in kernels:
        assert kernel.metadata.enable_fp_fusion
        used = resources(kernel, tmp_path / "kernel.cubin")
        assert kernel.metadata.shared <= SHARED[capability] * 1024, (kernel.metadata.name, kernel.metadata.shared)
        assert used["REG"] <= 255 and used["STACK"] == used["LOCAL"] == 0, (kernel.metadata.name, used)


def test_frames_are_read_sixteen_bytes_at_a_time(compiled: Callable[[int], list[Any]], tmp_path: Path) -> None:
    """What bounds these kernels is the memory: a layout that Triton can't see through would cost most of its speed."""
    kernels = compiled(90)
    launch_all(torch.bfloat16, 90)
    for kernel in kernels:
        if kernel.metadata.name in ("_add_layer_norm", "_terms", "_gradient"):
            loads = re.findall(r"\bLDG\S*", cuobjdump("-sass", kernel, tmp_path / "kernel.cubin"))
            wide = sum(load.endswith(".128") for load in loads)
            assert wide >= 3 and len(loads) - wide <= 2, (kernel.metadata.name, loads)  # the two: the terms' gradients
