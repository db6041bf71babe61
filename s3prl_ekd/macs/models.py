"""What the model of ``s3prl-ekd macs MODEL`` is, and its cost; the counting is in ``counting.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from s3prl_ekd.ensemble_file import read_members
from s3prl_ekd.errors import EkdError, reading
from s3prl_ekd.macs.counting import FBANK, HUB_SHAPES, LENGTHS, Cost, cost
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.source_names import S3PRL
from s3prl_ekd.student_checkpoint import is_student, newest_checkpoint, read_checkpoint
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.names import model_path
from s3prl_ekd.torch_file import read_torch_file
from s3prl_ekd.user_paths import expanded

EXPERT = Path(__file__).parents[1] / "export" / "superb_expert.py"
"""The code that ``s3prl-ekd export superb`` puts into every folder."""


def model_cost(model: str, heads: bool = False) -> Cost:
    """Cost of whatever ``model`` names; of a submission folder it runs the code.

    No weights are downloaded, but a checkpoint file of the Hugging Face Hub (``hf:OWNER/NAME/FILE``) is.

    Raises:
        EkdError: nothing of that name, or nothing whose arithmetic is known.
    """
    path = expanded(model)
    if path.is_dir() and (path / "expert.py").is_file():
        if heads:
            raise EkdError(f"--heads: {model} is a submission folder, all of which is counted: heads too if it has any")
        return submission_cost(path)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        if heads:
            raise EkdError(f"--heads: {model} is a list of models, whose heads are not part of it")
        return ensemble_cost(path)
    return _known_cost(model, path, heads)


def ensemble_cost(file: Path) -> Cost:
    """Cost of the models that a file lists for ``-u ekd_ensemble``, all of which run.

    Raises:
        EkdError: no such list, or a model that is not readable.
    """
    costs = [_known_cost(member.source, Path(member.source)) for member in read_members(file)]
    buckets = {name: sum(cost.buckets[name] for cost in costs) for name in costs[0].buckets}
    return Cost(sum(cost.params for cost in costs), buckets)


def checkpoint_cost(path: Path, heads: bool = False) -> Cost:
    """Cost of a checkpoint, of the newest of a folder, or of a transformers folder, whatever code lies in it.

    Raises:
        EkdError: there is none, or it is not readable.
    """
    return _known_cost(str(path), path, heads)


def _known_cost(model: str, path: Path, heads: bool = False) -> Cost:
    named = model in HUB_SHAPES and model_path(model) is None
    if path.is_dir() and not (path / "config.json").is_file() and not named:
        path = newest_checkpoint(path)
    if is_student(path):
        part = read_checkpoint(path)
        sets = [(len(one["labels"]), one["width"]) for one in part["head_sets"]] if heads else []
        return cost(EncoderShape.from_dict(part["shape"]), sets)
    if heads:
        raise EkdError(f"--heads: {model} is no student checkpoint")
    if named:
        return HUB_SHAPES[model].cost()
    if not path.exists() and model == "fbank":
        return FBANK
    if not path.exists() and model.startswith(S3PRL):
        raise EkdError(
            f"macs: {model!r}: s3prl's own experts cannot be counted; give a hub name of the wav2vec2 family, fbank, a "
            "student, a checkpoint file, a transformers folder or a submission folder"
        )
    return cost(sources.describe(str(path) if path.exists() else model, "macs").encoder_shape)


def submission_cost(folder: Path) -> Cost:
    """Cost of a submission folder: from the shape in model.pt where its code is ours, else by running its expert.py."""
    known = _own_cost(folder)
    if known is not None:
        return known
    script = str(Path(__file__).with_name("folder.py"))
    # -P: their `import models` must not find ours beside the script
    command = [sys.executable, "-P", "-B", script, str(folder.resolve()), json.dumps(LENGTHS)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"params"')]  # the rest is their own
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise EkdError(f"{folder}: its expert.py cannot be run: {reason}")
    counted = json.loads(lines[-1])
    return Cost(counted["params"], counted["buckets"])


def _own_cost(folder: Path) -> Cost | None:
    if (folder / "expert.py").read_bytes() != EXPERT.read_bytes():
        return None  # edited, or another version's: what it computes is seen when it runs
    try:
        with reading("model.pt"):
            saved = read_torch_file(folder / "model.pt")
            shape = EncoderShape.from_dict(saved["shape"])
            return cost(shape, [(len(reads), shape.width) for _, reads in saved["head_sets"]])
    except EkdError:
        return None  # somebody else's file; whether it can be read shows when their code is run
