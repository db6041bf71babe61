"""config_model.yaml as checked models: ``ekd`` (teachers, targets, loss), ``student``, ``task`` and ``distortion``."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from s3prl_ekd.checked import Checked
from s3prl_ekd.config.distillation import BalanceConfig, DroppingConfig, MaskConfig, TargetsConfig
from s3prl_ekd.config.distortion import DistortionConfig
from s3prl_ekd.shape import BASE_CONV, ConvNorm
from s3prl_ekd.spelling import repeated

MIN_SAMPLES = 4_000
"""Shortest clip of pretraining: 0.25 s, 12 frames. A shorter one would cut its whole batch down to it."""

Mode = Literal["layerwise_average", "layerwise_concat", "multi_head"]
TeacherPrecision = Literal["fp32", "bf16", "fp16"]
CachePrecision = Literal["fp16", "bf16"]


class TeacherConfig(Checked):
    """One frozen teacher."""

    name: str
    """Label in logs, head names and checkpoints; letters, digits and underscores."""
    source: str = Field(min_length=1)
    """embedded:NAME for a small teacher of this package, an s3prl hub name, a checkpoint file (s3prl-converted or
    fairseq), a transformers folder, hf:OWNER/NAME for one on the Hugging Face Hub, s3prl:NAME for any other upstream of
    s3prl, or random:SOURCE for a source's shape without its weights (docs/teachers.md)."""
    layers: list[int] = Field(default=[4, 8, 12], min_length=1)
    """Hidden states to predict; l is the output of transformer layer l, 0 the input of layer 1."""

    @field_validator("name")
    @classmethod
    def _is_a_label(cls, name: str) -> str:
        if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is None:
            raise ValueError(f"expected letters, digits and underscores, a letter first, found {name!r}")
        return name

    @model_validator(mode="after")
    def _distinct(self) -> TeacherConfig:
        if len(set(self.layers)) != len(self.layers) or min(self.layers) < 0:
            raise ValueError(f"layers {self.layers} must be distinct and not negative")
        return self


class EkdConfig(Checked):
    """The distillation: teachers, targets, loss, precision."""

    mode: Mode = "multi_head"
    """layerwise_average: one head set predicts the mean of the teachers; layerwise_concat: one head set predicts their
    states concatenated on the channel axis; multi_head: one head set per teacher (docs/method.md)."""
    teachers: list[TeacherConfig] = Field(min_length=1)
    """One to N frozen teachers."""
    initialise_from: str | None = None
    """The model from which the student's conv stack, projection, positional convolution and first layers are copied:
    the name of a teacher, or any other source (hub name, file, folder, hf:OWNER/NAME); or a trained student, by its
    states-N.ckpt or experiment folder (the newest checkpoint), whose heads are copied too where the new student has a
    head set of the same name, layers and width; null: random weights."""
    cosine_weight: float = Field(default=1.0, ge=0)
    """Weight (lambda) of the term -log sigmoid(cos), added to L1."""
    l1_weight: float = Field(default=1.0, ge=0)
    """Weight of L1; 0 leaves the cosine term alone. Beyond the paper, where it is 1."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the student; auto: bf16 autocast on a GPU that has bf16, otherwise fp32. ``runner.fp16: true``
    takes precedence (fp16 autocast with loss scaling)."""
    teacher_precision: TeacherPrecision = "fp32"
    """Arithmetic of the teachers; fp32 uses TF32 matrix products on a GPU."""
    initialise_layers: Literal["first", "spread"] | list[int] = "first"
    """Which layers of ``initialise_from`` are copied: the first ones, every k-th beginning with the first, or a list
    of layers counted from 1, one for each student layer."""
    initialise_parts: Literal["all", "conv_stack"] = "all"
    """all: as ``initialise_from`` says; conv_stack: the convolutions alone, of any teacher that has the student's, also
    of another width and with WavLM's attention; the rest begins with random weights."""
    student_layers: list[int] | None = None
    """Layer to layer: the student's hidden states that predict the teachers' ``layers``, by position, the last one
    among them; null: its last state predicts all, as in the paper (docs/beyond.md)."""
    targets: TargetsConfig = TargetsConfig()
    """Beyond the paper, as are the keys from here to residual_heads (docs/beyond.md): scale of the targets, and which
    output of a layer is the target."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Weight of each head set (teacher name, average, concat, a_minus_b); 1 where not given."""
    teacher_dropping: DroppingConfig | None = None
    """Absent: every clip learns from every teacher."""
    balance: BalanceConfig | None = None
    """Absent: ``weights`` multiply the losses. Present: ``weights`` are shares of the gradient."""
    residual_heads: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = []
    """Pairs [a, b] of teachers; each pair adds a head set that predicts the difference a - b."""
    cache_targets: str | None = None
    """Folder that stores the teachers' states, for small corpora (docs/target_cache.md); null computes them at every
    step. With a cache, utterances are cut into fixed windows instead of random crops."""
    cache_precision: CachePrecision = "fp16"
    """Number format of the cache. fp16 has 8 times finer steps; bf16 can hold values beyond 65,504."""

    @model_validator(mode="after")
    def _names(self) -> EkdConfig:
        doubled = repeated([teacher.name for teacher in self.teachers])
        if doubled is not None:
            raise ValueError(f"two teachers are called {doubled!r}")
        if self.initialise_from is None and self.initialise_layers != "first":
            raise ValueError("initialise_layers: has no effect while initialise_from is null")
        if self.initialise_from is None and self.initialise_parts != "all":
            raise ValueError("initialise_parts: has no effect while initialise_from is null")
        if self.initialise_parts == "conv_stack" and self.initialise_layers != "first":
            raise ValueError("initialise_layers: has no effect with initialise_parts: conv_stack")
        if not self.l1_weight and not self.cosine_weight:
            raise ValueError(
                "l1_weight: with cosine_weight it is 0 too, so there is no loss; one of them must be above 0"
            )
        return self

    @model_validator(mode="after")
    def _layer_to_layer(self) -> EkdConfig:
        if self.student_layers is None:
            return self
        for teacher in self.teachers:
            if len(teacher.layers) != len(self.student_layers):
                layers = f"the layers {teacher.layers} of {teacher.name}"
                raise ValueError(f"student_layers: {self.student_layers} for {layers}; expected one for each")
        if self.balance is not None and len(set(self.student_layers)) > 1:
            raise ValueError("balance: weighs gradients at one state of the student's; student_layers names several")
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
    conv_norm: ConvNorm = "group"
    """group: GroupNorm after the first convolution only; layer: LayerNorm after each, as in HuBERT Large and XLS-R.
    This key and the next three are for a student that starts from such a model (docs/beyond.md)."""
    conv_bias: bool = False
    """Whether the convolutions have a bias, as in XLS-R."""
    pre_norm: bool = False
    """Norms before attention and feed-forward, and one after the last layer, as in Large models; else after both."""
    normalize: bool = False
    """Whether the student hears each clip at zero mean and unit variance, as Large models do."""
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
    feature_grad_mult: float = Field(default=0.1, ge=0)
    """Factor on the gradient that reaches the conv stack; 0 keeps its weights as they start, and saves the pass back
    through it."""
    mask: MaskConfig | None = None
    """Absent: the student sees every frame."""


class TaskConfig(Checked):
    """What one training example is."""

    sequence_length: int = Field(default=250_000, ge=0)
    """Longest crop, in samples at 16 kHz (250,000 is 15.6 s), at least 4,000; 0 does not crop."""

    @model_validator(mode="after")
    def _long_enough(self) -> TaskConfig:
        if 0 < self.sequence_length < MIN_SAMPLES:
            least = f"expected {MIN_SAMPLES} (0.25 s) or more, or 0"
            raise ValueError(f"sequence_length: {self.sequence_length} samples; {least}")
        return self


class ModelConfig(Checked):
    """config_model.yaml."""

    ekd: EkdConfig
    student: StudentConfig = StudentConfig()
    task: TaskConfig = TaskConfig()
    distortion: DistortionConfig | None = None
    """Absent: teachers and student hear the clips as they are."""

    @model_validator(mode="after")
    def _frozen(self) -> ModelConfig:
        if not self.student.feature_grad_mult and self.ekd.initialise_from is None:
            raise ValueError(
                "student.feature_grad_mult: 0 would keep a conv stack of random weights; name what it starts from "
                "(ekd.initialise_from)"
            )
        return self

    @model_validator(mode="after")
    def _reads(self) -> ModelConfig:
        reads, depth = self.ekd.student_layers, self.student.layers
        if reads is not None and (min(reads) < 0 or max(reads) != depth):
            raise ValueError(
                f"ekd.student_layers: {reads} of a student of {depth} layers; expected numbers from 0 to {depth}, "
                f"{depth} among them, since layers above the last one read would not be trained"
            )
        return self

    @model_validator(mode="after")
    def _cacheable(self) -> ModelConfig:
        setup = "clean_teacher" if self.distortion is None else self.distortion.setup
        if self.ekd.cache_targets is not None and setup != "clean_teacher":
            raise ValueError(
                f"ekd.cache_targets: with distortion.setup: {setup} teachers hear different audio in every epoch, so "
                "their targets cannot be stored; use setup: clean_teacher, or null here"
            )
        return self
