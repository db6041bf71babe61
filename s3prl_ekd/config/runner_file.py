"""config_runner.yaml as checked models: s3prl's keys of steps and optimizer, and the data of this package's task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from s3prl_ekd.checked import Checked, check_values
from s3prl_ekd.config.model_file import ModelConfig
from s3prl_ekd.spelling import did_you_mean, repeated


class DataConfig(Checked):
    """``pretrain_expert.datarc`` of config_runner.yaml."""

    num_workers: int = Field(default=4, ge=0)
    """Worker processes that read audio; two or three suffice for one GPU. No more are started than there are CPUs."""
    train_batch_size: int = Field(default=24, ge=1)
    """Utterances a batch; all are cropped to the shortest of the batch, never padded."""
    batch_seconds: float | None = Field(default=None, gt=0)
    """Instead of a fixed count: as many utterances as fill this many seconds of audio."""
    max_timestep: int = 0
    """s3prl's filter, in samples: > 0 drops longer utterances, < 0 drops shorter ones, 0 keeps all."""
    libri_root: str
    """Folder that the paths of the length CSVs start from."""
    file_path: str
    """Folder of the length CSVs (`s3prl-ekd prepare` writes them)."""
    sets: list[str] = Field(min_length=1)
    """Names of the length CSVs, without .csv."""
    valid_sets: list[str] = []
    """Names of the length CSVs of held-out speech. The validation loss is measured on it at every checkpoint."""
    valid_minutes: float | None = Field(default=30.0, gt=0)
    """Minutes of held-out speech used at most, spread over the CSVs; null uses all of it."""
    seed: int = Field(default=0, ge=0)
    """Seed of batch order and crops, those of held-out speech too; the order depends on (seed, epoch) alone, not on
    workers. Where the key is absent, `--seed` sets it if it is given."""

    @model_validator(mode="after")
    def _distinct(self) -> DataConfig:
        for key, names in (("sets", self.sets), ("valid_sets", self.valid_sets)):
            doubled = repeated(names)
            if doubled is not None:
                raise ValueError(f"{key}: {doubled!r} is named twice; its utterances would count twice")
        trained = sorted(set(self.sets) & set(self.valid_sets))
        if trained:
            raise ValueError(f"valid_sets: {trained[0]!r} is in sets too, so it is trained on; take it out of one")
        return self


class RunnerSection(Checked):
    """``runner`` of config_runner.yaml: s3prl's own keys."""

    n_epochs: int = -1
    """> 0 sets the number of steps from passes over the data; s3prl's schedule still uses total_steps."""
    total_steps: int = Field(ge=2)
    """Optimiser steps."""
    gradient_clipping: float = Field(gt=0, allow_inf_nan=True)
    """Largest norm of the gradient; .inf clips nothing."""
    gradient_accumulate_steps: int = Field(default=1, ge=1)
    """Batches a step."""
    log_step: int = Field(ge=1)
    """Steps from one log line to the next; fewer than total_steps."""
    save_step: int = Field(ge=1)
    """Steps from one checkpoint to the next; fewer than total_steps."""
    max_keep: int = Field(ge=1)
    """Checkpoints kept, besides ``dev-best.ckpt``."""
    fp16: bool = False
    """true: fp16 autocast with loss scaling for the student, in place of ekd.precision."""

    @model_validator(mode="after")
    def _shorter_than_total(self) -> RunnerSection:
        for key in ("log_step", "save_step"):
            if getattr(self, key) >= self.total_steps:
                total = f"must be below total_steps: {self.total_steps}"
                raise ValueError(f"{key}: {getattr(self, key)} {total} (-o config.runner.{key}=N)")
        return self


class PretrainExpertSection(Checked):
    """``pretrain_expert`` of config_runner.yaml."""

    datarc: DataConfig


MODEL = "upstream_config"
"""What keys of the model file begin with in ``-o``: the long name of ``-g``, as s3prl's ``config`` is ``-c``'s."""
ELSEWHERE = dict.fromkeys(ModelConfig.model_fields, "config_model.yaml (-g)") | {
    "downstream_expert": "a task's configuration (run_downstream.py -c)"
}
"""Sections of other files -> where they belong."""
OPTIMIZER_KEYS = {
    "AdamW_with_schedule": ("warmup_proportion", "betas", "eps"),
    "Lamb_with_schedule": ("warmup_proportion", "betas", "eps"),
    "BertAdam_with_schedule": ("warmup_proportion",),
    "Adam": (),
    "AdamW": (),
}
"""What s3prl's optimizers read beside name and lr; TorchOptim hands on whatever it gets."""


class OptimizerSection(BaseModel):
    """``optimizer`` of config_runner.yaml; keys beyond the two below go to the optimizer that ``name`` selects. The
    ``..._with_schedule`` optimizers take ``warmup_proportion`` (share of total_steps); AdamW and Lamb with schedule
    also take ``betas`` and ``eps``. TorchOptim takes ``torch_optim_name``, a class of torch.optim, and its arguments.
    """

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)

    name: Literal[
        "AdamW_with_schedule", "Lamb_with_schedule", "BertAdam_with_schedule", "Adam", "AdamW", "TorchOptim"
    ]  # fmt: skip
    """One of s3prl's."""
    lr: float = Field(gt=0)
    """Peak learning rate."""

    @model_validator(mode="after")
    def _known_keys(self) -> OptimizerSection:
        """s3prl's functions swallow what they do not know, or fail on it when the teachers are loaded."""
        given = self.model_extra or {}
        known = OPTIMIZER_KEYS.get(self.name, given)
        for key in given:
            if key not in known:
                has = f"has {', '.join(known)}" if known else "has no further keys"
                raise ValueError(f"{key}: {self.name} {has}{did_you_mean(key, known)}")
        betas = given.get("betas", [0.9, 0.98])
        numbers = [type(one) in (int, float) for one in betas] if isinstance(betas, (list, tuple)) else []
        if numbers != [True, True]:
            raise ValueError(f"betas: expected two numbers, as in [0.9, 0.98], found {betas!r}")
        if self.name == "TorchOptim" and not isinstance(given.get("torch_optim_name"), str):
            raise ValueError("torch_optim_name: TorchOptim needs it: the name of a class of torch.optim, as AdamW")
        return self


class RunnerConfig(Checked):
    """config_runner.yaml."""

    runner: RunnerSection
    optimizer: OptimizerSection
    pretrain_expert: PretrainExpertSection
    scheduler: dict[str, Any] | None = None
    """s3prl's optional learning-rate scheduler, for optimizers without one of their own."""


OVERRIDES = dict.fromkeys(RunnerConfig.model_fields, "config") | dict.fromkeys(ModelConfig.model_fields, MODEL)
"""Sections of both files -> what the keys of ``-o`` for them begin with."""


def check_runner_config(values: Mapping[str, Any], file: str) -> RunnerConfig:
    """Check the runner configuration after s3prl has read it and applied overrides (``-o``)."""
    return check_values(RunnerConfig, dict(values), file, elsewhere=ELSEWHERE)


def check_data_config(values: Mapping[str, Any]) -> DataConfig:
    """Check ``pretrain_expert.datarc`` alone, which is all that s3prl hands to a pretrain expert."""
    return check_values(DataConfig, dict(values), "config_runner.yaml", prefix="pretrain_expert.datarc")
