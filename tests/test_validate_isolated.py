"""The organisers' assertions, each on an expert that breaks that one: for every key, for short clips, and for code that
ends the process. Experts of ours that pass, and the runner, are in test_export_superb.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from s3prl_ekd.cli import main
from s3prl_ekd.export import isolated
from s3prl_ekd.export.validate import run_isolated

HOP, WIDTH = 320, 4


class Expert(nn.Module):
    """One state, of a clip's sample values every 20 ms; ``break_`` changes what a forward pass gives."""

    def __init__(self, break_: Callable[[dict, list, bool], dict] | None = None) -> None:
        super().__init__()
        self.break_ = break_ or (lambda results, wavs, training: results)

    def get_downsample_rates(self, key: str) -> int:
        return HOP

    def forward(self, wavs: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        wave = nn.utils.rnn.pad_sequence(wavs, batch_first=True)
        state = wave[:, ::HOP].unsqueeze(-1).repeat(1, 1, WIDTH)
        return self.break_({"hidden_states": [state], "PR": [state]}, wavs, self.training)


def refusal(expert: Expert) -> tuple[str, str] | None:
    """(name of the check that refuses, what it says), of those that run the model; None where all pass."""
    state = {"expert": expert}
    for check in (isolated._forward, isolated._modes, isolated._short):
        try:
            check(None, state)
        except isolated.Refused as error:
            return check.__name__, str(error)
    return None


def test_a_good_expert_passes() -> None:
    assert refusal(Expert()) is None


def changed(key: str, change: Callable[[torch.Tensor], torch.Tensor], when: Callable[[list, bool], bool]) -> Expert:
    """An expert whose states under one key are changed at some calls."""

    def break_(results: dict, wavs: list, training: bool) -> dict:
        return {**results, key: [change(one) for one in results[key]]} if when(wavs, training) else results

    return Expert(break_)


def always(wavs: list, training: bool) -> bool:
    return True


def short(wavs: list, training: bool) -> bool:
    return max(map(len, wavs)) < 2_000


def one_short(wavs: list, training: bool) -> bool:
    return max(map(len, wavs)) == 1_600


def turned(wavs: list, training: bool) -> bool:
    return len(wavs) == 3 and len(wavs[0]) > len(wavs[2])


def evaluating(wavs: list, training: bool) -> bool:
    return not training and len(wavs) == 3


# what a key's states are -> when, how, and which check says what
BROKEN = {
    "5 frames too few": (always, lambda x: x[:, :-5], "_forward", "180 frames for 3 clips, the longest 59200 samples"),
    "NaN in train mode": (always, lambda x: x * float("nan"), "_forward", "hold NaN or infinity"),
    "a clip less": (always, lambda x: x[1:], "_forward", "2 x 185 frames for 3 clips"),
    "NaN in eval mode": (evaluating, lambda x: x * float("nan"), "_modes", "hold NaN or infinity"),
    "a frame less in eval mode": (evaluating, lambda x: x[:, 1:], "_modes", "in eval mode, or of other shapes"),
    "clips sorted": (turned, lambda x: x.flip(0), "_modes", "reversing the batch changes a clip's states by"),
    "another batch, another state": (turned, lambda x: x + 0.01, "_modes", "changes a clip's states by 0.01"),
    "NaN for short clips": (short, lambda x: x * float("nan"), "_short", "clips of [800] samples hold NaN"),
    "infinity for a short clip": (one_short, lambda x: x / 0, "_short", "clips of [1600] samples hold NaN"),
    "no frame for short clips": (short, lambda x: x[:, :0], "_short", "1 x 0 frames for a clip of 800 samples"),
    "30 frames for short clips": (short, lambda x: x[:, :1].repeat(1, 30, 1), "_short", "1 x 30 frames"),
}  # fmt: skip


@pytest.mark.parametrize("key", ["hidden_states", "PR"])
@pytest.mark.parametrize("name", list(BROKEN))
def test_every_keys_states_are_checked(key: str, name: str) -> None:
    when, change, check, message = BROKEN[name]
    found = refusal(changed(key, change, when))
    assert found is not None and found[0] == check and message in found[1] and found[1].startswith(f"{key}: "), found
    if name.startswith("5 frames"):
        assert refusal(changed(key, lambda x: x[:, :-4] if x.shape[1] > 9 else x, always)) is None


def test_keys() -> None:
    def without(results: dict, wavs: list, training: bool) -> dict:
        return {key: states for key, states in results.items() if key != "hidden_states"}

    missing = "forward gives no hidden_states"
    assert refusal(Expert(without)) == ("_forward", missing)
    every = Expert(lambda results, wavs, training: dict.fromkeys(isolated.TASKS, results["PR"]))
    assert refusal(every) == ("_forward", missing)  # the site reads it all the same
    only_trained = Expert(lambda results, wavs, training: results if training else without(results, wavs, training)
                          | dict.fromkeys(isolated.TASKS, results["PR"]))  # fmt: skip
    assert refusal(only_trained)[0] == "_modes"


CODE = """
import os, sys, torch

class UpstreamExpert(torch.nn.Module):
    def __init__(self, ckpt=None, **kwargs):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        # in __init__

    def get_downsample_rates(self, key):
        return 320

    def forward(self, wavs):
        # in forward
        wave = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
        return {"hidden_states": [(wave[:, ::320] + 1).unsqueeze(-1) * self.scale]}
"""


def submission(folder: Path, place: str = "", code: str = "") -> Path:
    (folder / "expert.py").write_text(CODE.replace(place, code, 1) if place else CODE)
    (folder / "requirements.txt").write_text("torch\n")
    torch.save({}, folder / "model.pt")
    return folder


# where -> what the folder's code does there, and what is said
ENDS = {
    "sys.exit at import": ("import os, sys, torch", "import os, sys, torch; sys.exit(0)", "SystemExit: 0"),
    "os._exit at import": ("import os, sys, torch", "import os; os._exit(0)", "status 0 after 2 checks that passed"),
    "SystemExit in forward": ("# in forward", "raise SystemExit", "SystemExit"),
    "os._exit for short clips": ("# in forward", "len(wavs[0]) > 800 or os._exit(0)", "status 0 after 5 checks"),
    "os._exit at the end": ("import os, sys, torch", "import os, sys, torch, atexit; atexit.register(os._exit, 3)",
                            "status 3 after 6 checks"),
    "rich's markup": ("import os, sys, torch", "raise ValueError('of [x] or [/tmp/y]')", "of [x] or [/tmp/y]"),
    "random weights": ("# in __init__", "self.scale.data.normal_()", "do not give the same hidden states"),
    "states by caller": ("# in __init__", "self.scale.data += os.path.isabs(ckpt)", "not give the same hidden states"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ENDS))
def test_code_that_ends_the_process_or_differs_by_caller(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, code, message = ENDS[name]
    assert main(["validate", str(submission(tmp_path, place, code)), "--skip-runner"]) == 1
    printed = capsys.readouterr().out
    assert message in printed and "not a valid submission" in printed


@pytest.mark.slow
def test_an_interpreter_may_be_older_than_ours(tmp_path: Path) -> None:
    folder = submission(tmp_path, "import os, sys, torch", "import os, sys, torch, colorsys")
    old = "import runpy, sys; del sys.stdlib_module_names; runpy.run_path(sys.argv[0], run_name='__main__')"
    code = f"import sys; sys.argv = {[isolated.__file__, str(folder)]!r}; {old}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert isolated.CLOSING in done.stdout and done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_code_that_prints_is_no_reason_to_refuse(tmp_path: Path) -> None:
    code = "sys.stdout.buffer.write(bytes([255])); sys.stdout.buffer.flush(); print('no newline', end='')"
    checks = run_isolated(submission(tmp_path, "# in forward", code))
    assert len(checks) == 6 and all(check.passed for check in checks), checks
