"""One run: trained natively, and tested natively; an unfinished one continues, a finished one is kept.

``expdir/run.json`` (``marker.py``) remembers how far the run came. Commands come from ``plan.py``, scores from
``score.py``, which run is when from ``schedule.py``; what the user sees is in ``progress.py``.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.conditions import NOT_SET
from s3prl_ekd.evaluate.devices import gpu_environment
from s3prl_ekd.evaluate.folder_lock import LOCK
from s3prl_ekd.evaluate.inputs import changed_input, inputs
from s3prl_ekd.evaluate.marker import MARKER, Marker, Result, Trained, read_marker, write_marker
from s3prl_ekd.evaluate.plan import Run, downstream_program, numbered_checkpoints
from s3prl_ekd.evaluate.process import Children, run_logged
from s3prl_ekd.evaluate.progress import Board
from s3prl_ekd.evaluate.provenance import deciding_versions
from s3prl_ekd.evaluate.score import agrees, best, rescore, runner_scores
from s3prl_ekd.evaluate.tasks import Task
from s3prl_ekd.writable import empty_folder

LOGS = {"train": "train.log", "test": "evaluate.log"}
"""Phase -> the file in the run's folder that gets the output of its native command."""
log = logging.getLogger(__name__)


def check_marker(run: Run) -> None:
    """Refuse a folder that keeps a run of other settings, or one that read other things.

    Raises:
        EkdError: names what is different.
    """
    marker = read_marker(run.expdir)
    unlike = marker and _unlike(run, marker)
    if marker is None or unlike is None or (marker.state == "started" and not numbered_checkpoints(run.expdir)):
        return  # the last: a mistake that ended before there was anything to keep
    raise EkdError(
        f"{run.expdir / MARKER}: an earlier run here {unlike}; choose another --out, or --overwrite to do it again"
    )


def clear_other(run: Run) -> None:
    """Empty the folder of a run where an earlier one there is another, but for its lock, which the caller holds."""
    marker = read_marker(run.expdir)
    if marker is not None and _unlike(run, marker) is not None:
        empty_folder(run.expdir, keep=LOCK)


def _unlike(run: Run, marker: Marker) -> str | None:
    if marker.settings == run.settings():
        changed = changed_input(marker.inputs)
        return None if changed is None else f"was made before {changed} changed"
    before, now = _by_name(marker.settings), _by_name(run.settings())
    key = next((key for key in {**now, **before} if before.get(key) != now.get(key)), "setting")
    was, is_now = (NOT_SET if value is None else value for value in (before.get(key), now.get(key)))
    return f"had another {key} ({was}, now {is_now})"


def _by_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings as a message names them: each override by its own key, the upstream as one text."""
    others = {key: value for key, value in settings.items() if key not in ("upstream", "overrides")}
    return {"upstream": " ".join(map(str, settings.get("upstream", ()))), **others, **settings.get("overrides", {})}


def do_train(run: Run, board: Board, children: Children | None = None) -> Trained:
    """Train one run, unless that is done; returns what a learning rate is picked by, of a tested run its result."""
    marker = read_marker(run.expdir) or Marker(run.settings(), inputs(run))
    if marker.state == "started":
        run.expdir.mkdir(parents=True, exist_ok=True)
        write_marker(run.expdir, marker)
        output = _native(run, marker, "train", run.train_command(), board, children)
        _warn_of_batches_left_out(run, output)
        marker.state = "trained"
        write_marker(run.expdir, marker)
    else:
        board.kept(run.key, tested=marker.state == "finished")
    return marker.result or _trained(run, marker.seconds)


def _native(run: Run, marker: Marker, phase: str, command: list[str], board: Board, children: Children | None) -> str:
    """Carry out a command of a run; its output. Its time counts, also that of a try which is stopped or fails."""
    started = time.monotonic()
    try:
        with board.phase(run.key, phase) as watch:
            place, program = gpu_environment(run.device), len(downstream_program())
            output, seconds = run_logged(command, run.expdir / LOGS[phase], watch, place, children, program)
    except EkdError:
        marker.seconds += time.monotonic() - started
        write_marker(run.expdir, marker)
        raise
    marker.seconds += seconds
    return output


def _warn_of_batches_left_out(run: Run, output: str) -> None:
    """Warn of batches that s3prl's runner skipped because they did not fit into the GPU.

    Beside other runs, which ones is chance.
    """
    count = output.count("[Runner] - CUDA out of memory")
    if count:
        log.warning(
            "%s: %d batches did not fit into the GPU's memory and were skipped in training (%s); run fewer side by "
            "side (--jobs), or set a smaller batch size", run.key, count, run.expdir / LOGS["train"],
        )  # fmt: skip


def do_test(run: Run, board: Board, children: Children) -> Result:
    """Test a trained run on its best checkpoint and score it, unless that is done; returns its result.

    Raises:
        EkdError: the run is not trained, or its test fails.
    """
    marker = read_marker(run.expdir)
    if marker is None or marker.state == "started":
        raise EkdError(f"{run.expdir}: cannot be tested before it is trained")
    if marker.result is not None:
        return marker.result
    checkpoint = chosen_checkpoint(run)
    output = _native(run, marker, "test", run.evaluate_command(checkpoint), board, children)
    marker.result = _result(run, checkpoint, output, marker.seconds)
    marker.state = "finished"
    write_marker(run.expdir, marker)
    board.finished(run.key, marker.result)
    return marker.result


def chosen_checkpoint(run: Run) -> Path:
    """The best-on-dev checkpoint, else the last one.

    The runner keeps a best one only when ASR's dev word error rate fell below 100 %, or SID's and ER's dev accuracy
    rose above 0; without it the last ``states-N.ckpt`` is what there is to test.
    """
    chosen = run.expdir / run.task.best_checkpoint
    if chosen.is_file():
        return chosen
    numbered = numbered_checkpoints(run.expdir)
    if not numbered:
        raise EkdError(
            f"{run.expdir}: no checkpoint to test: it was deleted since (delete this folder to train again), or "
            "training left none, as where runner.save_step is larger than total_steps"
        )
    log.warning("%s: no %s (dev score never good enough for one): testing %s", run.key, chosen.name, numbered[-1].name)
    return numbered[-1]


def _result(run: Run, checkpoint: Path, output: str, seconds: float) -> Result:
    score, again = scored(run.key, run.task, output, run.expdir, run.fold)
    state = load_downstream_checkpoint(checkpoint)
    return {
        run.task.metric: score,  # type: ignore[misc]  # one of the three keys
        "rescored": again,
        **_trained(run, seconds),
        "checkpoint_step": None if state.get("Step") is None else int(state["Step"]),
        "layer_weights": layer_weights(state),
        "n_utterances": int(again["n_utterances"]),
        "checkpoint": str(checkpoint),
        "commands": [shlex.join(run.train_command()), shlex.join(run.evaluate_command(checkpoint))],
        "versions": deciding_versions(),
    }


def scored(key: str, task: Task, output: str, folder: Path, fold: str | None) -> tuple[float, dict[str, float]]:
    """The score that a native test printed and, from its prediction files in ``folder``, ours: ``rescored``.

    Args:
        key: the run's name, for the warning where the two disagree.
        output: what the test printed.

    Raises:
        EkdError: it printed no score, or its files cannot be scored.
    """
    printed = runner_scores(task, output, task.test_split)
    if not printed:
        raise EkdError(f"{folder / LOGS['test']}: the runner printed no {task.test_split} {task.metric}")
    again = rescore(task, folder, fold)
    same = agrees(float(again[task.metric]), printed[-1])
    if not same:
        log.warning(
            "%s: the runner says %s %.2f, its prediction files %.2f", key, task.metric, printed[-1], again[task.metric]
        )
    return printed[-1], {**again, "agrees": same}


def _trained(run: Run, seconds: float) -> Trained:
    config = run.effective_config()
    train_log = run.expdir / LOGS["train"]
    if not train_log.is_file():
        raise EkdError(f"{train_log}: not found: the dev score is in it; delete {run.expdir} to train again")
    dev = runner_scores(run.task, train_log.read_text(encoding="utf-8", errors="replace"), run.task.dev_split)
    return {
        "dev": best(run.task, dev),
        "seconds": round(seconds, 1),
        "steps": config["runner"]["total_steps"],
        "lr": config["optimizer"].get("lr"),
    }


def load_downstream_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of s3prl's downstream runner (it pickles one class: the Namespace of its arguments).

    Raises:
        EkdError: not such a file.
    """
    from s3prl_ekd.torch_file import read_torch_file  # here: a plan and a table need no torch

    state = read_torch_file(path)
    if "Featurizer" not in state:
        raise EkdError(f"{path}: not a checkpoint of s3prl's downstream runner: no key 'Featurizer'")
    return state


def layer_weights(state: Mapping[str, Any]) -> list[float]:
    """Softmax weight of each hidden state in a downstream checkpoint's content; empty where there is a single state."""
    weights = state["Featurizer"].get("weights")
    return [] if weights is None else weights.float().softmax(-1).tolist()
