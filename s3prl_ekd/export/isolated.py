"""The organisers' checks of a submission folder, run alone in a process of its own: ``python -I isolated.py FOLDER``.

It imports nothing of the package: this script must run where neither s3prl-ekd nor s3prl can be reached, so it uses
PyTorch and the standard library only, refuses both packages, and refuses the network. It prints one JSON line a check,
exits with 1 at the first that fails, and prints :data:`CLOSING` after the last: a folder's code may end the process,
with any status, before all checks are made. ``validate.py`` starts it and shows what it says.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

BLOCKED = ("s3prl", "s3prl_ekd")
# The keys that the organisers' validator asks for (superb-submission template, cli.py)
TASKS = ("PR", "SID", "ER", "ASR", "QbE", "ASV", "SD", "ST", "SE", "SS", "secret")
RATE = 16_000
SECONDS = (2.0, 1.8, 3.7)  # the template's cli.py: three clips, not sorted, on the CPU, in train mode
TOLERANCE = 5  # the template's cli.py: frames may be fewer than this away from samples / rate
CLOSING = '{"closing": "all checks are made"}'
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "socket.sendto")


class Refused(Exception):
    """A check that the folder does not pass; its text says what was expected."""


class _Blocker:
    """A finder that comes first and finds nothing: importing a blocked package fails, wherever it is installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not available to a submission")
        return None


def _no_network(event, args):
    if event in NETWORK:
        raise PermissionError(f"a submission may not use the network ({event})")


def main(argv: list[str]) -> int:
    """argv: the folder, then folders to import PyTorch from where the interpreter was started without any."""
    folder, sites = argv[0], argv[1:]
    sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))] + sites
    sys.meta_path.insert(0, _Blocker())
    sys.addaudithook(_no_network)
    state: dict[str, object] = {}
    checks: tuple[tuple[str, Callable[..., str | None]], ...] = (
        ("files are there", _files),
        ("model.pt holds tensors and plain values only", _plain_values),
        ("the three callers build the same model", _callers),
        ("every task gets a list of 3-D tensors of one shape, in step with the audio", _forward),
        ("train and eval mode agree; the order of clips is kept", _modes),
        ("clips from 50 ms up pass", _short),
    )
    for title, check in checks:
        try:
            detail = check(folder, state) or ""
        except BaseException as error:  # whatever the folder's own code raises, sys.exit() too, is the answer to report
            text = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
            _say(json.dumps({"check": title, "passed": False, "detail": text}))
            return 1
        _say(json.dumps({"check": title, "passed": True, "detail": detail}))
    _say(CLOSING)
    return 0


def _say(line):
    """Print on a line of its own, whatever the folder's code has printed before."""
    print(f"\n{line}", flush=True)  # noqa: T201


def _files(folder, state):
    for name in ("expert.py", "model.pt", "requirements.txt"):
        if not os.path.isfile(os.path.join(folder, name)):
            raise Refused(f"{name} is missing")
    missing = [name for name in ("README.md", "LICENSE") if not os.path.isfile(os.path.join(folder, name))]
    return f"no {', '.join(missing)} (optional)" if missing else ""


def _plain_values(folder, state):
    import torch

    path = os.path.join(folder, "model.pt")
    torch.load(path, map_location="cpu", weights_only=True)
    return f"{os.path.getsize(path) / 2**20:.1f} MiB"


def _callers(folder, state):
    import torch

    os.chdir(folder)
    sys.path.append(os.getcwd())  # the runner appends the snapshot and imports `expert` as a top-level module
    before = set(sys.modules)
    from expert import UpstreamExpert

    path = os.path.join(os.getcwd(), "model.pt")
    experts = [
        UpstreamExpert(ckpt="model.pt"),  # the template's cli.py
        UpstreamExpert(path),  # the MACs profiler
        UpstreamExpert(ckpt=path, model_config=None, refresh=False).to("cpu"),  # s3prl's runner
    ]
    if not isinstance(experts[0], torch.nn.Module):
        raise Refused("UpstreamExpert is not a torch.nn.Module")
    imported = {name.split(".")[0] for name in set(sys.modules) - before} - {"expert"}
    known = getattr(sys, "stdlib_module_names", imported)  # Python 3.9, which --python may be, has no such list
    foreign = sorted(name for name in imported if name not in known and not name.startswith("_"))
    state["expert"] = experts[0]
    wavs = [torch.zeros(RATE)]
    with torch.no_grad():
        first, *others = [_answers(expert.eval()(wavs)) for expert in experts]
    _finite(first, [RATE])  # NaN equals nothing, itself included
    for other in others:
        if _shapes(other) != _shapes(first) or not all(
            torch.equal(a, b)
            for key, states in first.items()
            for a, b in zip(states, other[key])  # noqa: B905
        ):
            raise Refused("they do not give the same hidden states")
    parameters = sum(parameter.numel() for parameter in experts[0].parameters())
    return f"{parameters:,} parameters" + (f"; expert.py imports {', '.join(foreign)}" if foreign else "")


def _answers(results):
    """Key -> list of states of all that the site may ask for: ``hidden_states``, and each task by its own name."""
    import torch

    if not isinstance(results, dict):
        raise Refused(f"forward gives a {type(results).__name__}, not a dict")
    if "hidden_states" not in results:  # the site reads it first, also where a task has states of its own
        raise Refused("forward gives no hidden_states")
    answers = {key: results[key] for key in ("hidden_states", *TASKS) if key in results}
    for key, states in answers.items():
        if not isinstance(states, list) or not states:
            raise Refused(f"{key}: {type(states).__name__} instead of a list of hidden states")
        if any(not isinstance(one, torch.Tensor) or one.dim() != 3 or one.shape != states[0].shape for one in states):
            raise Refused(f"{key}: the hidden states are not all 3-D tensors of one shape")
    return answers


def _shapes(answers):
    return {key: (len(states), *states[0].shape) for key, states in answers.items()}


def _checked(expert, wavs):
    """:func:`_answers` for clips, each list of which must fit their number and the longest, and be finite."""
    answers = _answers(expert(wavs))
    samples = [len(wav) for wav in wavs]
    for key, states in answers.items():
        batch, frames, _ = states[0].shape
        for task in TASKS if key == "hidden_states" else (key,):
            rate = expert.get_downsample_rates(task)
            if not isinstance(rate, int):
                raise Refused(f"{task}: get_downsample_rates gives a {type(rate).__name__}, not an int")
            if batch != len(samples) or frames < 1 or abs(round(max(samples) / rate) - frames) >= TOLERANCE:
                clips = "a clip of" if len(samples) == 1 else f"{len(samples)} clips, the longest"
                expected = f"expected {len(samples)} x {round(max(samples) / rate)}, at a downsample rate of {rate}"
                raise Refused(f"{key}: {batch} x {frames} frames for {clips} {max(samples)} samples; {expected}")
    _finite(answers, samples)
    return answers


def _finite(answers, samples):
    import torch

    for key, states in answers.items():
        if not all(bool(torch.isfinite(one).all()) for one in states):
            raise Refused(f"{key}: hidden states of clips of {samples} samples hold NaN or infinity")


def _forward(folder, state):
    import torch

    expert = state["expert"].train()  # the validator never calls eval()
    torch.manual_seed(0)
    state["wavs"] = [torch.rand(round(seconds * RATE)) for seconds in SECONDS]
    shapes = set(_shapes(_checked(expert, state["wavs"])).values())
    return "; ".join(
        f"{count} states of {batch} x {frames} x {width}" for count, batch, frames, width in sorted(shapes)
    )


def _modes(folder, state):
    import torch

    expert, wavs = state["expert"], state["wavs"]
    with torch.no_grad():
        trained = _checked(expert.train(), wavs)
        kept = _checked(expert.eval(), wavs)
        turned = _checked(expert, wavs[::-1])
    if _shapes(trained) != _shapes(kept):
        key = next(key for key in {**trained, **kept} if _shapes(trained).get(key) != _shapes(kept).get(key))
        counts = [len(answers.get(key, ())) for answers in (trained, kept)]
        raise Refused(f"{key}: {counts[0]} hidden states in train mode, {counts[1]} in eval mode, or of other shapes")
    if _shapes(turned) != _shapes(kept):
        raise Refused("reversing the batch changes the shape of the answer")
    dropout = 0.0
    for key, states in kept.items():
        change = max(float((a - b.flip(0)).abs().max()) for a, b in zip(states, turned[key]))  # noqa: B905
        if change > 1e-3:
            raise Refused(f"{key}: reversing the batch changes a clip's states by {change:.2g}")
        dropout = max(dropout, *(float((a - b).abs().max()) for a, b in zip(trained[key], states)))  # noqa: B905
    return f"train mode differs by {dropout:.2g} (dropout)" if dropout > 1e-3 else ""


def _short(folder, state):
    import torch

    expert = state["expert"].eval()
    with torch.no_grad():
        for count in (800, 1600):
            _checked(expert, [torch.rand(count)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
