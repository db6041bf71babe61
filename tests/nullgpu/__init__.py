"""The null GPU: builds ``null_gpu.c`` for the torch that is installed, and says how a process comes to see it.

Of what torch's libraries and Triton's driver take from NVIDIA's, whatever ``null_gpu.c`` does not define is made here:
a function that returns 0, the "success" of all those libraries. README.md says what a run on it shows.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("null_gpu.c")
SITE = Path(sysconfig.get_path("purelib"))
TORCH = SITE / "torch" / "lib"
TRITON = SITE / "triton" / "backends" / "nvidia"
OURS = re.compile(r"(?:__cuda|cuda|cublas|cufft|curand|cusolver|cusparse|cuFile|cu[A-Z]|nccl|nvml)\w*")
"""Names that are NVIDIA's, but for cuDNN (which torch is told not to use), and for what runs without a GPU."""


def why_not() -> str:
    """Why the null GPU cannot be had here; empty where it can."""
    from s3prl_ekd.device import shows_gpu

    if shows_gpu():
        return "there is a real GPU here"
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return "the null GPU needs Linux and glibc"
    missing = [tool for tool in ("cc", "nm") if shutil.which(tool) is None]
    if missing:
        return f"the null GPU needs a C compiler and binutils: no {missing[0]} on the PATH"
    if not (TORCH / "libtorch_cuda.so").is_file() or find_spec("triton") is None:
        return "this torch is built without CUDA, or has no Triton"
    if len(headers()) < 3:
        return "the headers of NVIDIA's wheels are not all installed"
    return ""


def headers() -> list[Path]:
    """Folders with the headers of CUDA, NCCL, and those that Triton brings (CUDA's wheels lack ``crt/``)."""
    found = [next(iter(SITE.glob(f"nvidia/*/include/{name}")), None) for name in ("cuda_runtime_api.h", "nccl.h")]
    return [file.parent for file in (*found, TRITON / "include" / "cuda.h") if file is not None and file.is_file()]


def imported() -> set[str]:
    """Functions of NVIDIA's libraries that torch's call, and Triton's driver."""
    libraries = [str(file) for file in sorted(TORCH.glob("lib*.so"))]
    listed = subprocess.run(["nm", "-D", "-u", *libraries], capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"^ +U (\w+)", listed, flags=re.MULTILINE))
    for file in (TRITON / "driver.c", TRITON / "driver.py", TORCH / "libc10_cuda.so"):  # by name, when they run
        names |= set(re.findall(r"\b(?:cu|nvml)[A-Z]\w+", file.read_text(errors="ignore")))
    return {name for name in names if OURS.fullmatch(name)}


def build(folder: Path) -> Path:
    """Make ``libcuda.so.1`` in ``folder``, in about a second, and return that file.

    Raises:
        RuntimeError: the compiler refuses it, in the compiler's words: this CUDA declares its functions otherwise.
    """
    stubs = folder / "stubs.c"
    rows = [f'int {name}(void) __attribute__((weak, alias("succeed")));' for name in sorted(imported())]
    stubs.write_text("\n".join(["static int succeed(void) { return 0; }", *rows, ""]))
    (folder / "nv").mkdir(exist_ok=True)
    (folder / "nv" / "target").touch()  # of another wheel; what cuda_fp16.h needs of it is for C++
    library = folder / "libcuda.so.1"
    includes = [word for path in (*headers(), folder) for word in ("-isystem", str(path))]
    words = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", *includes, str(SOURCE), str(stubs)]
    done = subprocess.run([*words, "-o", str(library), "-ldl", "-lpthread"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    (folder / "libnvidia-ml.so.1").symlink_to(library.name)  # one library by either name
    return library


def environment(library: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables of a process that is to see the null GPU; what it starts sees it too."""
    folder = str(library.parent)
    return {
        "TRITON_CACHE_DIR": str(library.parent / "triton"),  # kernels are compiled once for all that share the library
        **environ,
        "USE_PYTORCH_KERNEL_CACHE": "0",  # nothing made here may lie where a real GPU looks for it
        "LD_PRELOAD": joined(str(library), environ.get("LD_PRELOAD")),
        "LD_LIBRARY_PATH": joined(folder, environ.get("LD_LIBRARY_PATH")),  # for who opens libcuda.so.1 by its name
        "TRITON_LIBCUDA_PATH": folder,
    }


def joined(*paths: str | None) -> str:
    return ":".join(path for path in paths if path)
