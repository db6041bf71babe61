"""TF32 is switched where torch's own switches are, whichever of the two generations the program uses."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

PROGRAM = """
import torch
from s3prl_ekd.model.arithmetic import tf32, tf32_convolutions
from s3prl_ekd.teachers.ensemble import FrozenTeachers
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder

{set}
matmul = torch.backends.cuda.matmul
before, convolutions = matmul.fp32_precision, tf32_convolutions()
with tf32(True):
    print(matmul.fp32_precision, end=" ")
    with tf32(False):
        print(matmul.fp32_precision, end=" ")
assert matmul.fp32_precision in (before, before.replace("none", "ieee"))  # for the older switch both are False
FrozenTeachers({{"one": random_encoder(TINY, seed=0)}}, {{"one": [1]}})(torch.randn(1, 4000))
print(before, convolutions)
"""


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has the older switch only")
@pytest.mark.parametrize(("set", "printed"), [
    ("", "tf32 tf32 none True"),
    ("torch.backends.cuda.matmul.allow_tf32 = True; torch.backends.cudnn.allow_tf32 = False", "tf32 tf32 tf32 False"),
    ("torch.set_float32_matmul_precision('high')", "tf32 tf32 tf32 True"),
    ("torch.backends.fp32_precision = 'tf32'", "tf32 tf32 tf32 True"),
    ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", "tf32 tf32 tf32 True"),
    ("torch.backends.cuda.matmul.fp32_precision = 'ieee'; torch.backends.cudnn.conv.fp32_precision = 'ieee'",
     "tf32 tf32 ieee False"),
])  # fmt: skip
def test_both_of_torchs_switches(set: str, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(set=set)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == printed.split()
