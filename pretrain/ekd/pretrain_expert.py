"""Ensemble knowledge distillation as an s3prl pretrain task (``run_pretrain.py -u ekd``).

It puts the library's parts together and adapts them to s3prl's contract (pretrain/runner.py).
audio -> batch -> (distort) -> student -> heads -> predictions; audio -> teachers -> targets;
predictions, targets -> loss
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from s3prl_ekd.bridge.pretrain_configs import seed_distortion
from s3prl_ekd.bridge.ranks import TORCHRUN
from s3prl_ekd.bridge.scaler import load_state_on_create, scaler_state
from s3prl_ekd.config import DataConfig, check_data_config, load_model_config
from s3prl_ekd.crops import heard_in_words
from s3prl_ekd.data.batches import Batch, make_loader
from s3prl_ekd.data.lengths import read_held_out, read_lengths, tell_of_crops
from s3prl_ekd.data.shards import ShardedPlan
from s3prl_ekd.data.target_cache import TargetCache
from s3prl_ekd.distill.objective import Objective
from s3prl_ekd.distributed import Ranks, Share
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.encoder import count_parameters
from s3prl_ekd.model.student import Student, initialise_heads, initialise_student
from s3prl_ekd.pretrain.ekd.checkpoint_validation import CheckpointValidation
from s3prl_ekd.pretrain.ekd.step_log import StepLog
from s3prl_ekd.pretrain.ekd.validation import Validation
from s3prl_ekd.random_state import random_state, set_random_state
from s3prl_ekd.student_part import CHECKPOINT_KEY, student_state
from s3prl_ekd.teachers.adapter import drop_upstreams
from s3prl_ekd.teachers.build import (
    CheckedModel,
    TeacherPlan,
    check_model,
    freeze,
    load_initialiser,
    load_teachers,
    pinned,
)
from s3prl_ekd.teachers.cached import CachedTeachers, open_caches
from s3prl_ekd.teachers.ensemble import FrozenTeachers
from s3prl_ekd.teachers.own_files import check_same, own_files

logger = logging.getLogger(__name__)

SILENT_LIMIT = 10  # batches in a row of which nothing could be read, after which the data is gone


class UpstreamPretrainExpert(nn.Module):
    """What s3prl's pretraining runner drives.

    ``.model`` is the student with its heads: the runner clips, optimises and saves everything under it. The teachers
    are a submodule beside it, so that they follow ``.to(device)`` and nothing else.

    Args:
        datarc: ``pretrain_expert.datarc`` of config_runner.yaml.
        upstream_config: path of config_model.yaml, or its dictionary from the checkpoint that :meth:`load_model` takes.
        device: where the runner puts everything.
        multi_gpu: refused: it is DataParallel, which cuts waveforms along time.

    Raises:
        EkdError: any mistake in configuration, data or teachers; before a teacher is loaded where it can be seen then.
    """

    objective_class: type[Objective] = Objective
    """The launcher's to change: a user's own (docs/extending.md)."""
    seed: int | None = None
    """The launcher's to change: of ``--seed`` where a new run's command gives it, for a distortion without its own."""
    model_changes: Mapping[str, Any] = {}
    """The launcher's to change: the keys of config_model.yaml that a new run's ``-o`` gives."""
    parallel: nn.Module
    valid_teachers: FrozenTeachers | CachedTeachers

    def __init__(
        self,
        datarc: Mapping[str, Any],
        upstream_config: str | Mapping[str, Any],
        device: str = "cuda",
        multi_gpu: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if multi_gpu:
            raise EkdError(f"--multi_gpu is torch's DataParallel, which cuts waveforms along time; use {TORCHRUN}")
        self.ranks = Ranks.current()
        self.config = load_model_config(upstream_config, changes=self.model_changes)
        data = check_data_config(datarc)
        file = upstream_config if isinstance(upstream_config, str) else "config_model.yaml"
        goes_on = isinstance(upstream_config, Mapping)  # load_model will bring the student's weights
        if not goes_on:
            seed_distortion(self.config, self.seed)
        checked = check_model(self.config, file, starts=not goes_on, objective=self.objective_class)
        self.plan, self.objective = checked.plan, checked.objective
        self.config = pinned(self.plan)
        if data.batch_seconds is None and data.train_batch_size < self.ranks.size:
            raise EkdError(
                f"config_runner.yaml: pretrain_expert.datarc.train_batch_size: {data.train_batch_size} clips in all, "
                f"too few for {self.ranks.size} ranks"
            )
        self.device = device
        self._read_data(data, checked)
        self._teacher_files = own_files(self.plan)
        self._make_models(self.plan)
        self._seed = torch.initial_seed()  # the run's, which s3prl has set
        self.__dict__["parallel"] = self.model
        self._step, self._last_batch = 0, (0, -1)  # (epoch, index) of the newest batch trained on
        self.log = StepLog(self.loader, self.ranks)
        self._silent = 0  # batches in a row of which nothing could be read
        self.checkpoint_validation: CheckpointValidation | None = None
        if self.validation is not None:
            modules = self.model, self.objective
            self.checkpoint_validation = CheckpointValidation(
                self.validation, self._held_out_losses, self.objective.heads, modules, device, self._release_teachers
            )

    def _read_data(self, data: DataConfig, checked: CheckedModel) -> None:
        """The loaders of what is trained on and of what is held out, each with its target cache."""
        table = read_lengths(data)
        held_out = read_held_out(data, table)
        self.cache, self.valid_cache = open_caches(checked.plan, table, held_out, data)
        longest, distorter = self.config.task.sequence_length, checked.distorter
        select = partial(ShardedPlan, ranks=self.ranks) if self.ranks.size > 1 else None
        self.loader, self.batches = make_loader(table, data, longest, distorter, self.cache, select)
        # a cache has windows of all of it
        heard = heard_in_words(table.samples, longest) if self.cache is None else ""
        utterances, batches = len(table.paths), len(self.batches)
        logger.info("[ekd] %d utterances, %.1f h%s; %d batches an epoch", utterances, table.hours, heard, batches)
        if heard and self.ranks.writes:  # all ranks know it
            tell_of_crops(table, longest)
        self.validation: Validation | None = None
        if held_out is not None:
            self.validation = Validation(held_out, data, longest, distorter, self.valid_cache, self.ranks)
            heard = heard_in_words(held_out.samples, longest, "each checkpoint") if self.valid_cache is None else ""
            logger.info("[ekd] validation: %d utterances, %.2f h%s", len(held_out.paths), held_out.hours, heard)

    def _make_models(self, plan: TeacherPlan) -> None:
        """The student and its teachers, which are not loaded where every target is in a cache."""
        self.model = Student(self.config.student, plan.target_sets)
        caches = [cache for cache in (self.cache, self.valid_cache) if cache is not None]
        encoders = {} if caches and all(cache.complete for cache in caches) else load_teachers(plan)
        drop_upstreams()  # a full cache asks for their shape and weights alone
        start = load_initialiser(plan, encoders)
        if start is not None:
            ekd = self.config.ekd
            copied = initialise_student(self.model.encoder, start.encoder, ekd.initialise_layers, ekd.initialise_parts)
            logger.info("[ekd] student starts from %s: %s", ekd.initialise_from, ", ".join(copied))
        if start is not None and start.heads:
            heads = {target.name: self.model.heads[target.name] for target in plan.target_sets}
            taken = initialise_heads(heads, plan.target_sets, start.heads, start.head_sets)
            fresh = [name for name in heads if name not in taken]
            logger.info("[ekd] heads from there: %s; fresh: %s", ", ".join(taken) or "none", ", ".join(fresh) or "none")
        frozen = freeze(plan, encoders)

        def behind(cache: TargetCache | None) -> FrozenTeachers | CachedTeachers:
            return frozen if cache is None else CachedTeachers(plan, cache, frozen)

        self.teachers = behind(self.cache)
        self.__dict__["valid_teachers"] = behind(self.valid_cache)  # no submodule: the same encoders again
        logger.info(
            "[ekd] student %.2f M parameters + %.2f M in %d heads; teachers %.1f M, frozen",
            count_parameters(self.model.encoder) / 1e6,
            count_parameters(self.model.heads) / 1e6,
            len(self.objective.heads),
            count_parameters(self.teachers) / 1e6,
        )

    # ------------------------------------------------------------------------------------------ s3prl's interface

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Batches of equal-length crops; of several ranks, each gets its share of every batch."""
        # The runner asks once, weights loaded and on the device. No submodule: .model is saved under its own names.
        self.__dict__["parallel"] = self.ranks.parallel(self.model)
        return self.loader

    def forward(
        self, data: Batch, records: dict[str, Any], global_step: int, log_step: int, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """One batch: scalar loss, and the runner's records with what a log step shows."""
        self._step, self._last_batch = global_step, (data.epoch, data.index)
        self.ranks.own_random_draws(self._seed, data.epoch, data.index)
        self.log.note(data)
        wave = data.wave.to(self.device, non_blocking=True)  # (B, N)
        share = self.ranks.share(data.clips, wave.device)
        nothing_read = data.is_placeholder if share is None else share.empty
        if nothing_read:
            return self._nothing_read(data, wave), records
        self._silent = 0
        due = self.log.is_due(global_step, log_step)
        loss, heads = self._losses(data, wave, self.parallel, self.teachers, due, share)
        if heads is not None:
            validating = 0.0 if self.checkpoint_validation is None else self.checkpoint_validation.take_seconds()
            records["ekd"] = self.log.values(global_step, loss, heads, validating)
        return loss, records

    def on_before_zero_grad(self) -> None:
        """Nothing to do: the runner asks for it."""

    def log_records(
        self, records: Mapping[str, Any], logger: Any, prefix: str, global_step: int, **kwargs: Any
    ) -> None:
        """Write the newest log values."""
        if self.checkpoint_validation is not None:
            self.checkpoint_validation.tensorboard = logger, prefix
        values = records.get("ekd")
        if values and self.ranks.writes:  # the runner also logs its very last step, which need not be a log step
            self.log.write(values, logger, prefix, global_step)

    def step_end(self) -> dict[str, Any]:
        """What the next batch changes of a run's state, kept at the end of a step, for a run that ends in a later one.

        Of this rank alone. ``step``: the runner's number of the step; ``objective``: running statistics of targets and
        gradients; ``random``: in a list, since earlier versions kept the state of each rank.
        """
        return {
            "step": self._step,
            "last_batch": list(self._last_batch),
            "skipped_files": self.log.skipped,
            "objective": {name: deepcopy(value) for name, value in self.objective.state_dict().items()},
            "random": [random_state()],
        }

    def add_state_to_save(self, all_states: dict[str, Any]) -> dict[str, Any]:
        """Add the student and all that makes a resumed run go on as if it had never stopped."""
        end = self.step_end()
        end["skipped_files"] = int(self.ranks.sums([self.log.skipped], self.device)[0])
        # The runner saves its progress bar, which is one behind the step just finished; resuming would repeat it.
        all_states["Step"] += 1
        self.add_state_of(all_states, end)
        if self.checkpoint_validation is not None:
            self.checkpoint_validation.before_saving(all_states["Step"], all_states["Args"].expdir)
        return all_states

    def add_state_of(self, all_states: dict[str, Any], end: Mapping[str, Any]) -> dict[str, Any]:
        """:meth:`add_state_to_save` for the step that ended with :meth:`step_end`, by rank 0 alone."""
        all_states[CHECKPOINT_KEY] = student_state(self.model, self.config, self.plan.target_sets, self._own_objective)
        all_states["Upstream_Config"] = self.config.model_dump(mode="json")
        if self.cache is not None:
            self.cache.flush()
        all_states["EKD_Resume"] = {name: value for name, value in end.items() if name != "step"} | {
            "teachers": self._teacher_files, "ranks": self.ranks.size, "scaler": scaler_state()
        }  # fmt: skip
        return all_states

    def load_model(self, all_states: Mapping[str, Any]) -> None:
        """Continue from a checkpoint: weights, position in the data, random states, loss scale."""
        part = all_states.get(CHECKPOINT_KEY)
        if part is None:
            raise EkdError(f"the checkpoint was not written by `run_pretrain.py -u ekd`: it has no {CHECKPOINT_KEY!r}")
        self.model.encoder.load_state_dict(part["encoder"])
        self.model.heads.load_state_dict(part["heads"])
        if self.model.mask is not None:
            self.model.mask.load_state_dict(part["mask"])
        self.log.metrics.resumed_at = all_states["Step"]
        if self.checkpoint_validation is not None:
            self.checkpoint_validation.lines.resumed_at = all_states["Step"]
        resume = all_states.get("EKD_Resume")
        if resume is None:
            return
        check_same(self.plan, resume.get("teachers", {}), self._teacher_files)
        began, now = part.get("objective"), self._own_objective
        if began != now:
            began, now = began or Objective.__name__, now or Objective.__name__
            raise EkdError(
                f"the run began with the loss {began}, and this is {now}: go on by the command it began with"
            )
        epoch, index = resume["last_batch"]
        self._last_batch, self.log.skipped = (epoch, index), resume["skipped_files"] if self.ranks.writes else 0
        self.batches.resume_after(epoch, index)
        self.objective.resume(resume.get("objective", {}))
        before = resume.get("ranks", len(resume["random"]))  # earlier versions kept the state of each rank
        if before != self.ranks.size and self.ranks.writes:
            logger.warning("[ekd] %d ranks go on where %d left off: dropout draws differ", self.ranks.size, before)
        if self.ranks.writes:
            set_random_state(resume["random"][0])
        load_state_on_create(resume["scaler"])

    # ---------------------------------------------------------------------------------------------------- inside

    @property
    def _own_objective(self) -> str | None:
        """The class that a script brought; None is this package's."""
        return None if self.objective_class is Objective else self.objective_class.__name__

    def _nothing_read(self, data: Batch, silence: Tensor) -> Tensor:
        """A loss of zero that every weight has a part in, for a batch without a single clip.

        Raises:
            EkdError: it is the last of many in a row.
        """
        if self.cache is not None:
            self.cache.mark_unreadable(data.unread)
        self._silent += 1
        if self._silent == SILENT_LIMIT:
            last = f"; the last: {data.skipped[-1]}" if data.skipped else ""
            raise EkdError(f"of {SILENT_LIMIT} batches in a row not one file can be read{last}")
        _, predictions = self.parallel(silence)
        return 0.0 * torch.stack([prediction.float().mean() for prediction in predictions.values()]).sum()

    def _losses(
        self,
        data: Batch,
        wave: Tensor,
        student: nn.Module,
        teachers: FrozenTeachers | CachedTeachers,
        log: bool,
        share: Share | None = None,
    ) -> tuple[Tensor, dict[str, dict[str, float]] | None]:
        """The objective of a batch, whose ``wave`` is on the device: the (global) loss, and log values with ``log``."""
        heard = wave if data.distinct_teacher_wave is None else data.teacher_wave.to(self.device, non_blocking=True)
        targets = teachers(heard, data) if isinstance(teachers, CachedTeachers) else teachers(heard)
        with self._student_autocast(wave.device):
            out, predictions = student(wave)
        hidden = [out.states[number] for number in self.model.reads]
        with torch.autocast(wave.device.type, enabled=False):  # the loss is fp32
            loss, heads = self.objective(predictions, hidden, targets, log, share)
            return loss if share is None else share.loss(loss), heads

    def _held_out_losses(self, batch: Batch) -> tuple[Tensor, dict[str, dict[str, float]]]:
        """The objective of a batch of held-out speech and its log values."""
        wave = batch.wave.to(self.device, non_blocking=True)
        loss, heads = self._losses(batch, wave, self.model, self.valid_teachers, log=True)
        assert heads is not None  # asked for
        return loss, heads

    def _release_teachers(self) -> None:
        """At the end of a pass over held-out speech, those that were asked for what its cache lacked."""
        if isinstance(self.valid_teachers, CachedTeachers):
            self.valid_teachers.release()

    def _student_autocast(self, device: torch.device) -> Any:
        """bf16 where asked for or, under ``auto``, where the GPU has it; the runner's own fp16 goes first."""
        if torch.is_autocast_enabled(device.type):
            return nullcontext()
        precision = self.config.ekd.precision
        automatic = (
            precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        if precision == "bf16" or automatic:
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()
