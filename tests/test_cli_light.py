"""What a command says of itself, and of mistakes in its arguments, comes before torch and s3prl are imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from s3prl_ekd.cli import COMMANDS

LIGHT = """
import contextlib, io, sys
from s3prl_ekd import cli

status, *lines = sys.argv[1:]
for line in lines:
    try:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            found = cli.main(line.split())
    except SystemExit as left:
        found = left.code
    assert found == int(status), (line, found)
    assert found or said.getvalue(), line
    heavy = {"torch", "transformers", "s3prl", "pandas", "scipy", "librosa", "matplotlib"} & set(sys.modules)
    assert not heavy, (line, heavy)
"""


def lightly(status: int, lines: list[str], folder: Path) -> str:
    """Run the command lines in one process that must not import anything heavy; what they wrote to stderr."""
    command = [sys.executable, "-c", LIGHT, str(status), *lines]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_neither_torch_nor_s3prl(command: str, tmp_path: Path) -> None:
    kinds = ("superb", "hf", "onnx", "public") if command == "export" else ()
    assert lightly(0, [f"{command} --help", *(f"export {kind} --help" for kind in kinds)], tmp_path) == ""


def test_without_a_command_they_are_listed(tmp_path: Path) -> None:
    listed = lightly(2, [""], tmp_path)
    assert [name for name in COMMANDS if re.search(rf"\n    {name}[ \n]", listed) is None] == []


def test_so_do_mistakes_in_arguments(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text("base: config_model.yaml\nekd: {cache_targets: here}\n")
    (tmp_path / "wrong.yaml").write_text("runner: 3\n")
    (tmp_path / "a.ckpt").write_text("")
    mistakes = {
        "teachers --audio x.wav": "--audio and --precision need a teacher",
        "teachers hubert_base --audio none.wav": "none.wav",
        "teachers hubert_base --precision fp8": "invalid choice: 'fp8'",
        "teachers hubert_bsae": "'hubert_bsae' is no s3prl hub name of the wav2vec2 family, checkpoint file or",
        "teachers fbank": "another upstream of s3prl's is 's3prl:fbank'",
        "teachers embedded:tiny": "'embedded:tiny' is no embedded teacher (there are ",
        "teachers random:": "'random:': the name is missing; `s3prl-ekd teachers` lists what can be named",
        "teachers s3prl:": "'s3prl:': the name is missing",
        "teachers random:none.pt": "teachers: no such file or folder: ",
        "teachers random:s3prl:fbank": "random weights are not available for s3prl's own upstreams",
        "teachers s3prl:fbnak": "teachers: fbnak: s3prl's hub has no such upstream; did you mean fbank",
        "teachers s3prl:hubert_local": "hubert_local needs a checkpoint: s3prl:hubert_local:FILE",
        "targets -g nono -c wrong.yaml": "-g nono: no such config file",
        "targets -g model.yaml -c none.yaml": "-c none.yaml: no such config file",
        "targets -g average -c wrong.yaml": "ekd.cache_targets: null; name the folder",
        "targets -g model.yaml -c wrong.yaml": "wrong.yaml: runner: input should be",
        "targets -g model.yaml -c wrong.yaml -o runner=1": "-o 'runner=1': the key must start with config.",
        "targets -g model.yaml -c wrong.yaml -o ekd.x=1": "-o 'ekd.x=1': write upstream_config.ekd.x=1",
        "targets -c wrong.yaml": "required: -g",
        "merge a.ckpt --out x.ckpt": "merge: expected two checkpoints or more",
        "merge a.ckpt a.ckpt --weights 1 --out x.ckpt": "--weights: expected 2 numbers",
        "merge a.ckpt none.ckpt --out x.ckpt": "none.ckpt: no such checkpoint",
        "evaluate --out x --data none --upstream fbank": "--data none: no such folder; s3prl-ekd prepare",
        "evaluate --out x --data . --upstream fbank": "pr.yaml: not found; prepare the pr data first",
        "evaluate --out x --data . --teacher hubert_bsae": "--teacher: 'hubert_bsae' is no s3prl hub name",
        "evaluate --out x --data . --untrained nono": "--untrained nono: no such config file",
        "evaluate --out x --data . --ckpt none.ckpt": "--ckpt none.ckpt: not found; expected a states-N.ckpt file",
        "evaluate --out x --data . --upstream fbank --devices gpu": "--devices: unknown device 'gpu'",
        "macs": "macs: give either a model or --shape",
        "macs --shape distilhubert --heads": "--heads: --shape distilhubert is no student checkpoint",
        "macs hubert_bsae": "macs: 'hubert_bsae' is no s3prl hub name",
        "macs --shape big": "invalid choice: 'big'",
    }
    said = lightly(2, list(mistakes), tmp_path)
    for line, expected in mistakes.items():
        assert expected in said, line


def test_the_list_of_teachers_needs_no_torch(tmp_path: Path) -> None:
    assert lightly(0, ["teachers"], tmp_path) == ""
