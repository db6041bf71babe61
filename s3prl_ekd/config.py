"""Both YAML files of a pretraining run as checked models: s3prl's config_model.yaml and config_runner.yaml.

Unknown keys, wrong types and impossible values are errors of one line that name file and key. A model file may start
from another one (``base: config_model.yaml``) and change a few keys; mappings merge, lists and values replace.
Whether teachers have the layers asked for, and whether the audio is there, is checked by their own rooms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from s3prl_ekd.checked import Checked, check_values, read_yaml
from s3prl_ekd.data.recipe import DistortionConfig
from s3prl_ekd.distill.options import BalanceConfig, DroppingConfig, MaskConfig, TargetsConfig
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.shape import BASE_CONV
from s3prl_ekd.spelling import did_you_mean
from s3prl_ekd.variants import packaged, variant_file


class TeacherConfig(Checked):
    """One frozen teacher."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    """Label in logs, head names and checkpoints; letters, digits and underscores."""
    source: str = Field(min_length=1)
    """embedded:NAME for a small teacher of this package, an s3prl hub name, a checkpoint file (s3prl-converted or
    fairseq), a transformers folder, s3prl:NAME for any other upstream of s3prl, or random:SOURCE for a source's shape
    without its weights (docs/teachers.md)."""
    layers: list[int] = Field(default=[4, 8, 12], min_length=1)
    """Hidden states to predict; l is the output of transformer layer l, 0 the input of layer 1."""

    @model_validator(mode="after")
    def _distinct(self) -> TeacherConfig:
        if len(set(self.layers)) != len(self.layers) or min(self.layers) < 0:
            raise ValueError(f"layers {self.layers} must be distinct and not negative")
        return self


class EkdConfig(Checked):
    """The distillation: teachers, targets, loss, precision."""

    mode: Literal["layerwise_average", "layerwise_concat", "multi_head"] = "multi_head"
    """How several teachers become targets (paper, section 3)."""
    teachers: list[TeacherConfig] = Field(min_length=1)
    """One to N frozen teachers."""
    initialise_from: str | None = None
    """Whose conv stack, projection, positional convolution and first layers start the student: the name of a teacher,
    or any other source (hub name, file, folder); null starts from random weights."""
    cosine_weight: float = Field(default=1.0, ge=0)
    """Weight (lambda) of -log sigmoid(cos) beside L1."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the student; auto is bf16 autocast on a GPU that has it, fp32 elsewhere. The runner's own
    ``fp16: true`` takes precedence (fp16 autocast with loss scaling)."""
    teacher_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the teachers (TF32 matrix products on a GPU when fp32)."""
    initialise_layers: Literal["first", "spread"] | list[int] = "first"
    """Which layers of ``initialise_from`` start the student's: the first ones, every k-th from the first one on, or
    a list of layers counted from 1, one for each student layer."""
    targets: TargetsConfig = TargetsConfig()
    """Beyond the paper: scale of the targets, and what is tapped (docs/beyond.md, as all that follows)."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Weight of a head set (teacher name, average, concat, a_minus_b); 1 where not given."""
    teacher_dropping: DroppingConfig | None = None
    """Absent: every clip learns from every teacher."""
    balance: BalanceConfig | None = None
    """Absent: weights act on losses; present: they are shares of the gradient."""
    residual_heads: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = []
    """Pairs [a, b] of teachers whose difference gets a head set of its own."""
    cache_targets: str | None = None
    """Folder that keeps the teachers' states, computed once, for small corpora (docs/target_cache.md); null computes
    them anew at every step. Utterances are then cut into fixed windows instead of random crops."""
    cache_precision: Literal["fp16", "bf16"] = "fp16"
    """How they are stored. fp16 has 8 times finer steps, bf16 room for numbers beyond 65,504."""

    @model_validator(mode="after")
    def _names(self) -> EkdConfig:
        names = [teacher.name for teacher in self.teachers]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"two teachers are called {doubled[0]!r}")
        if self.initialise_from is None and self.initialise_layers != "first":
            raise ValueError("initialise_layers: has no effect while initialise_from is null")
        return self


class StudentConfig(Checked):
    """The student: a shallow encoder of the same family. Defaults: DistilHuBERT's, 23,491,200 parameters."""

    layers: int = Field(default=2, ge=1)
    """Transformer layers."""
    width: int = Field(default=768, ge=1)
    """Channels of every hidden state."""
    ffn_width: int = Field(default=3072, ge=1)
    """Channels inside each feed-forward block."""
    heads: int = Field(default=12, ge=1)
    """Attention heads."""
    conv_layers: list[list[int]] = [list(layer) for layer in BASE_CONV]
    """[channels, kernel, stride] of each convolution, in samples of its input."""
    pos_conv_kernel: int = Field(default=128, ge=1)
    """Kernel of the positional convolution, in frames."""
    pos_conv_groups: int = Field(default=16, ge=1)
    """Channel groups of the positional convolution."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """After the positional convolution, each attention and each feed-forward block."""
    attention_dropout: float = Field(default=0.1, ge=0, lt=1)
    """On attention weights."""
    activation_dropout: float = Field(default=0.1, ge=0, lt=1)
    """After the GELU inside each feed-forward block."""
    feature_grad_mult: float = Field(default=0.1, gt=0)
    """Factor on the gradient that reaches the conv stack."""
    mask: MaskConfig | None = None
    """Absent: the student sees every frame."""


class TaskConfig(Checked):
    """What one training example is."""

    sequence_length: int = Field(default=250_000, ge=0)
    """Longest crop, in samples at 16 kHz (250,000 is 15.6 s), at least 4,000; 0 does not crop."""

    @model_validator(mode="after")
    def _long_enough(self) -> TaskConfig:
        if 0 < self.sequence_length < 4_000:  # data/lengths.py leaves shorter clips out
            raise ValueError(f"sequence_length: {self.sequence_length} samples; expected 4000 (0.25 s) or more, or 0")
        return self


class ModelConfig(Checked):
    """config_model.yaml."""

    ekd: EkdConfig
    student: StudentConfig = StudentConfig()
    task: TaskConfig = TaskConfig()
    distortion: DistortionConfig | None = None
    """Absent: teachers and student hear the clips as they are."""

    @model_validator(mode="after")
    def _cacheable(self) -> ModelConfig:
        if self.ekd.cache_targets is not None and self.distortion is not None:
            setup = self.distortion.setup
            if setup != "clean_teacher":
                raise ValueError(
                    f"ekd.cache_targets: under distortion.setup: {setup} teachers hear other audio in every epoch, so "
                    "nothing can be kept; use setup: clean_teacher, or null here"
                )
        return self


class DataConfig(Checked):
    """``pretrain_expert.datarc`` of config_runner.yaml."""

    num_workers: int = Field(default=4, ge=0)
    """Worker processes that read audio; two or three suffice for one GPU."""
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
    seed: int = Field(default=0, ge=0)
    """Seed of batch order and crops; the order depends on (seed, epoch) alone, not on workers."""

    @model_validator(mode="after")
    def _distinct(self) -> DataConfig:
        doubled = sorted({name for name in self.sets if self.sets.count(name) > 1})
        if doubled:
            raise ValueError(f"sets: {doubled[0]!r} is named twice; its utterances would count twice")
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
    """Steps from one log line to the next."""
    save_step: int = Field(ge=1)
    """Steps from one checkpoint to the next."""
    max_keep: int = Field(ge=1)
    """Checkpoints kept."""
    fp16: bool = False
    """true: fp16 autocast with loss scaling for the student, in place of ekd.precision."""

    @model_validator(mode="after")
    def _shorter_than_total(self) -> RunnerSection:
        for key in ("log_step", "save_step"):
            if getattr(self, key) >= self.total_steps:
                raise ValueError(f"{key}: {getattr(self, key)} must be below total_steps: {self.total_steps}")
        return self


class PretrainExpertSection(Checked):
    """``pretrain_expert`` of config_runner.yaml."""

    datarc: DataConfig


OPTIMIZER_KEYS = {
    "AdamW_with_schedule": ("warmup_proportion", "betas", "eps"),
    "Lamb_with_schedule": ("warmup_proportion", "betas", "eps"),
    "BertAdam_with_schedule": ("warmup_proportion",),
    "Adam": (),
    "AdamW": (),
}
"""What s3prl's optimizers read beside name and lr; TorchOptim hands on whatever it gets."""


class OptimizerSection(BaseModel):
    """``optimizer`` of config_runner.yaml; further keys go to the optimizer that ``name`` selects."""

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
        known = OPTIMIZER_KEYS.get(self.name)
        for key, value in (self.model_extra or {}).items():
            if known is not None and key not in known:
                has = f"has {', '.join(known)}" if known else "has no further keys"
                raise ValueError(f"{key}: {self.name} {has}{did_you_mean(key, known)}")
            kinds = [type(one) for one in value] if isinstance(value, (list, tuple)) else []
            if key == "betas" and not (len(kinds) == 2 and set(kinds) <= {int, float}):
                raise ValueError(f"betas: expected two numbers, as in [0.9, 0.98], found {value!r}")
        if self.name == "TorchOptim" and not isinstance((self.model_extra or {}).get("torch_optim_name"), str):
            raise ValueError("torch_optim_name: TorchOptim needs it: the name of a class of torch.optim, as AdamW")
        return self


class RunnerConfig(Checked):
    """config_runner.yaml."""

    runner: RunnerSection
    optimizer: OptimizerSection
    pretrain_expert: PretrainExpertSection
    scheduler: dict[str, Any] | None = None
    """s3prl's optional learning-rate scheduler, for optimizers without one of their own."""


def load_model_config(
    source: str | Path | Mapping[str, Any], file: str = "config_model.yaml", changes: Mapping[str, Any] | None = None
) -> ModelConfig:
    """Read and check a model configuration.

    Args:
        source: a YAML file, or the dictionary that a checkpoint holds (then ``file`` names it in messages).
        changes: keys that replace those of a YAML file, as a file on top of it would.

    Raises:
        EkdError: file and key, and what was expected.
    """
    if isinstance(source, Mapping):
        return check_values(ModelConfig, dict(source), file)
    path = Path(source)
    config = check_values(ModelConfig, _merge(_read_with_base(path), changes or {}), str(path))
    for teacher in config.ekd.teachers:
        teacher.source = _absolute(teacher.source)
    if config.ekd.initialise_from not in (None, *(teacher.name for teacher in config.ekd.teachers)):
        config.ekd.initialise_from = _absolute(config.ekd.initialise_from)
    if config.distortion is not None:
        _make_sources_absolute(config.distortion)
    if config.ekd.cache_targets is not None:  # it need not exist yet
        config.ekd.cache_targets = str(Path(config.ekd.cache_targets).expanduser().resolve())
    return config


def _absolute(source: str) -> str:
    """A path from the current folder made absolute, so that a run goes on from any folder; names stay names.

    Also the path behind ``random:`` and at the end of ``s3prl:NAME:``.
    """
    match = re.match(r"random:|s3prl:[^:]+:", source)
    prefix = match.group() if match else ""
    path = Path(source.removeprefix(prefix)).expanduser()
    return f"{prefix}{path.resolve()}" if path.exists() else source


def _make_sources_absolute(distortion: DistortionConfig) -> None:
    """Of noise and room responses; a noise source's weight has its name."""
    additive, other = distortion.additive, distortion.non_additive
    if additive is not None:
        additive.weights = {_absolute(s) if s in additive.noise else s: w for s, w in additive.weights.items()}
        additive.noise = [_absolute(source) for source in additive.noise]
    if other is not None:
        other.reverb = [_absolute(source) for source in other.reverb]


def check_runner_config(values: Mapping[str, Any], file: str) -> RunnerConfig:
    """Check the runner configuration after s3prl has read it and applied overrides (``-o``)."""
    return check_values(RunnerConfig, dict(values), file)


def check_data_config(values: Mapping[str, Any], file: str = "config_runner.yaml") -> DataConfig:
    """Check ``pretrain_expert.datarc`` alone, which is all that s3prl hands to a pretrain expert."""
    return check_values(DataConfig, dict(values), file, prefix="pretrain_expert.datarc")


def _read_with_base(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise EkdError(f"{path}: base: expected the name of a YAML file, found {base!r}")
    # s3prl copies the file into the experiment folder, where a relative base is gone or is the copy itself:
    # the packaged file of that name is the fallback
    seen = (*seen, path.resolve())
    candidates = [path.parent / base, packaged(Path(base).name), variant_file(Path(base).stem)]
    found = next((file for file in candidates if file.is_file() and file.resolve() not in seen), None)
    if found is None:
        raise EkdError(f"{path}: base: no file {base!r} beside it or among the packaged configurations")
    return _merge(_read_with_base(found, seen), values)


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
