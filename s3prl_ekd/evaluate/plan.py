"""The plan of an evaluation, down to the exact native commands: which runs, in which folder, with which overrides.

Nothing is executed here (see ``run.py``, ``schedule.py``), so a plan can be printed (``--dry-run``), compared, tested.
One :class:`Run` is one training of s3prl's runner, and its test where it is picked: a model, a task (or a fold of ER),
a seed and a learning rate.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from s3prl_ekd.bridge.taskdata import uses_language_model
from s3prl_ekd.checked import read_yaml, reads_as_text
from s3prl_ekd.corpora.folds_file import read_folds
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.devices import native_device
from s3prl_ekd.evaluate.marker import read_marker
from s3prl_ekd.evaluate.models import Upstream
from s3prl_ekd.evaluate.presets import Overrides, apply_overrides
from s3prl_ekd.evaluate.rates import LR_KEY
from s3prl_ekd.evaluate.tasks import Task
from s3prl_ekd.own_scripts import own_command
from s3prl_ekd.spelling import repeated

FOLD_KEY = "config.downstream_expert.datarc.test_fold"
CACHE_KEY = "config.runner.cache_states"


@dataclass(frozen=True)
class Run:
    """One native training and its test on the best-on-dev checkpoint, both in ``expdir``."""

    key: str  # names the run among all of a call, e.g. student/er-fold1-lr0.001-seed2
    group: str  # the same without fold and rate: the runs that share it compete (grid.py)
    task: Task
    expdir: Path
    config: Path  # DATA/<task>.yaml
    upstream: Upstream
    overrides: Overrides = field(default_factory=dict)
    fold: str | None = None
    rate: float | None = None  # of a grid; None: the configuration's own
    seed: int = 1337
    normalize: bool = False
    cache: Path | None = None  # folder of hidden states that are computed once (--cache-states)
    device: str = "cpu"  # which it is shows when it begins (schedule.py)

    def train_command(self) -> list[str]:
        """The native training command. ``-a`` continues where an earlier try of the same run stopped."""
        words = [*downstream_program(), "-m", "train", "-a", "-p", str(self.expdir)]
        words += [*self.upstream.arguments(), "-d", self.task.downstream, "-c", str(self.config)]
        words += ["--seed", str(self.seed), "--device", native_device(self.device)]
        if self.normalize:
            words.append("--upstream_feature_normalize")
        return words + _option({**self.overrides, **self._cache_item()})

    def evaluate_command(self, checkpoint: Path) -> list[str]:
        """The native test command for one of the run's checkpoints."""
        return test_command(self.task, checkpoint, self.device, self.overrides, self._cache_item())

    def _cache_item(self) -> Overrides:
        return {} if self.cache is None else {CACHE_KEY: str(self.cache)}

    def on(self, device: str) -> Run:
        """The same run on a device."""
        return replace(self, device=device)

    def settings(self) -> dict[str, Any]:
        """The settings that determine this run's numbers: two runs with equal settings are the same run.

        The device is none of them. Whether states are cached is one: clips are encoded alone then
        (bridge/cached_upstream.py). The cache's folder is not.
        """
        return {
            "upstream": self.upstream.arguments(),
            "task": self.task.name,
            "fold": self.fold,
            "config": str(self.config),
            "overrides": dict(self.overrides),
            "seed": self.seed,
            "normalize": self.normalize,
            **({"cache_states": True} if self.cache else {}),
        }

    def effective_config(self) -> dict[str, Any]:
        """The task's YAML with the overrides applied.

        Raises:
            EkdError: it cannot lead to a score.
        """
        config = apply_overrides(read_yaml(self.config), self.overrides)
        for name in ("runner", "optimizer", "downstream_expert"):
            if not isinstance(config.setdefault(name, {}), dict):
                raise EkdError(f"{self.config}: {name}: expected a section of keys, found {config[name]!r}")
        runner = config["runner"]
        total, evaluate = runner.get("total_steps"), runner.get("eval_step")
        if not all(isinstance(steps, int) and steps > 0 for steps in (total, evaluate)):
            raise EkdError(f"{self.config}: runner.total_steps, runner.eval_step: expected whole numbers above 0")
        if runner.get("cache_states") is not None and self.cache is None:
            raise EkdError(f"{self.config}: runner.cache_states: give --cache-states instead, which the scores name")
        if evaluate > total:
            raise EkdError(
                f"{self.config}: runner.eval_step: {evaluate} > total_steps {total}: no checkpoint would be chosen on "
                f'dev; add --override "{self.task.name}:config.runner.eval_step={total}"'
            )
        rate = config["optimizer"].get("lr")
        if rate is not None and not isinstance(rate, int | float):
            wrong = reads_as_text(rate) or f"{rate!r}: expected a number"
            raise EkdError(f"{self.config}: optimizer.lr: {wrong}")
        scored = runner.get("eval_dataloaders")
        if isinstance(scored, list) and self.task.dev_split not in scored:
            raise EkdError(
                f"{self.config}: runner.eval_dataloaders: {scored}: without {self.task.dev_split} no checkpoint would "
                "be chosen on dev"
            )
        if uses_language_model(config["downstream_expert"].get("datarc")):
            raise EkdError(
                f"{self.config}: downstream_expert.datarc.decoder_args.decoder_type: kenlm: the table's WER is without "
                "a language model; with one, test its checkpoint by run_downstream.py -m evaluate"
            )
        return config


@dataclass(frozen=True)
class ModelPlan:
    """One model's runs, at least one, and the folder that its scores go into."""

    out: Path
    runs: Sequence[Run]

    @property
    def upstream(self) -> Upstream:
        """The model that all runs share."""
        return self.runs[0].upstream


def make_plan(
    tasks: list[Task],
    data: Path,
    out: Path,
    upstream: Upstream,
    overrides: dict[str, Overrides],
    folds: list[str] | None = None,
    seeds: Sequence[int] = (1337,),
    rates: Mapping[str, Sequence[float]] | None = None,
    normalize: bool = False,
    prefix: str = "",
    cache: Path | None = None,
) -> list[Run]:
    """Plan all runs of one model for ``tasks``, checked before anything starts.

    Args:
        out: the model's folder; its runs are in ``out/runs``.
        rates: learning rates by task; a task without any is trained at its configuration's own.
        prefix: what begins the keys of this model's runs, where there are several models.
        cache: folder for hidden states, or None.

    Raises:
        EkdError: data that are not there, or settings that cannot lead to a score.
    """
    runs: list[Run] = []
    for task in tasks:
        config = data / f"{task.name}.yaml"
        if not config.is_file():
            raise EkdError(
                f"{config}: not found; prepare the {task.name} data first: s3prl-ekd prepare ... --out {data}"
            )
        task_rates: Sequence[float | None] = (rates or {}).get(task.name) or [None]
        for seed, rate, fold in itertools.product(seeds, task_rates, list(_task_folds(task, data, folds))):
            items = dict(overrides.get(task.name, {}))
            if FOLD_KEY in items:
                raise EkdError(f"--override {FOLD_KEY}={items[FOLD_KEY]}: give --folds instead; each fold has its run")
            if rate is not None:
                items[LR_KEY] = repr(rate)
            if fold is not None:
                items[FOLD_KEY] = repr(fold)
            base = task.name if fold is None else f"{task.name}-{fold}"
            names = _names(base, rate, seed, several_seeds=len(seeds) > 1)
            group = f"{prefix}{task.name}" + (f"-seed{seed}" if len(seeds) > 1 else "")
            run = Run(
                f"{prefix}{names[0]}", group, task, out / "runs" / names[0], config, upstream, items, fold, rate, seed,
                normalize, cache,
            )  # fmt: skip
            run.effective_config()
            runs.append(_in_earlier_folder(run, base, names))
    return runs


def _names(base: str, rate: float | None, seed: int, several_seeds: bool) -> list[str]:
    """Folder names of a run: its own, then those that another call (one seed, no grid) would have given it."""
    lr = "" if rate is None else f"-lr{rate!r}"
    own = base + lr + (f"-seed{seed}" if several_seeds else "")
    return list(dict.fromkeys([own, base + lr + f"-seed{seed}", base + lr, f"{base}-seed{seed}", base]))


def _in_earlier_folder(run: Run, base: str, names: list[str]) -> Run:
    """The run, in the folder of an earlier call's same run where there is one, which is kept then.

    Where another seed has the run's own folder, the run gets the one that names its seed.

    Args:
        base: the task and the fold, as folders name them.
    """
    root, rate = run.expdir.parent, run.effective_config()["optimizer"].get("lr")
    if run.rate is None and isinstance(rate, int | float):
        names = [*names, *_names(base, float(rate), run.seed, several_seeds=False)]
    for name in names:
        marker = read_marker(root / name)
        same = None if marker is None else _with_spelling(run, marker.settings)
        if same is not None:
            return replace(same, expdir=root / name)
    there = read_marker(run.expdir)
    if there is None or there.settings.get("seed") == run.seed:
        return run
    return replace(run, expdir=root / next(name for name in names if name.endswith(f"-seed{run.seed}")))


def _with_spelling(run: Run, settings: Mapping[str, Any]) -> Run | None:
    """The run with its rate written as in an earlier run's settings, where these are the same but for that; else None.

    A rate may come from a grid, an override or the task's YAML, as 1e-2 or 0.01.
    """
    items = {key: value for key, value in run.overrides.items() if key != LR_KEY}
    spelling = settings.get("overrides", {}).get(LR_KEY)
    same = replace(run, overrides=items if spelling is None else {**items, LR_KEY: spelling})
    if same.settings() != settings:
        return None
    before, now = (one.effective_config()["optimizer"].get("lr") for one in (same, run))
    return same if before == now else None


def downstream_program() -> list[str]:
    """The words that call our ``run_downstream.py``: its name when the PATH has it, else with this interpreter."""
    words, found = own_command(["run_downstream.py"]), shutil.which("run_downstream.py")
    if found and Path(found).resolve() == Path(words[0]).resolve():
        return ["run_downstream.py"]
    return words


def test_command(
    task: Task, checkpoint: Path, device: str, trained_with: Overrides, items: Overrides, folder: Path | None = None
) -> list[str]:
    """The native test command of a checkpoint.

    Args:
        trained_with: the overrides of its training.
        items: those of the test; the cache's folder too, else it is that which the checkpoint names.
        folder: for what it writes; None: the checkpoint's.
    """
    if task.workers_key in trained_with:
        # s3prl's ctc expert pops num_workers out of the configuration before it is saved, so that a checkpoint alone
        # would test with 12 worker processes (downstream/ctc/data.py: load_dataset).
        items = {task.workers_key: trained_with[task.workers_key], **items}
    words = [*downstream_program(), "-m", "evaluate", "-t", task.test_split, "-e", str(checkpoint)]
    words += ["--device", native_device(device)]
    return words + ([] if folder is None else ["-p", str(folder)]) + _option(items)


def _option(items: Overrides) -> list[str]:
    return ["-o", ",,".join(f"{key}={value}" for key, value in items.items())] if items else []


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The ``states-N.ckpt`` files of a folder, by N."""

    def number(path: Path) -> int:
        match = re.fullmatch(r"states-(\d+)\.ckpt", path.name)
        return int(match.group(1)) if match else -1

    return sorted((path for path in folder.glob("states-*.ckpt") if number(path) >= 0), key=number)


def _task_folds(task: Task, data: Path, wanted: list[str] | None) -> Iterable[str | None]:
    if not task.folded:
        return [None]
    listing = data / task.name / "folds.json"
    known, asked = read_folds(listing), wanted or []
    unknown = [fold for fold in asked if fold not in known]
    if unknown:
        raise EkdError(f"--folds: no fold {unknown[0]!r} in {listing}; expected some of {','.join(known)}")
    doubled = repeated(asked)
    if doubled is not None:
        raise EkdError(f"--folds: {doubled} is listed twice")
    return asked or known
