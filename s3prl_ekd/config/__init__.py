"""Both YAML files of a pretraining run as checked models: s3prl's config_model.yaml and config_runner.yaml.

Unknown keys, wrong types and impossible values are errors of one line that name file and key. Whether teachers have the
layers asked for, and whether the audio is there, is checked where teachers and audio are read.
"""

from s3prl_ekd.config.distillation import MaskConfig, TargetsConfig
from s3prl_ekd.config.distortion import AdditiveConfig, DistortionConfig, NonAdditiveConfig
from s3prl_ekd.config.loading import load_model_config
from s3prl_ekd.config.model_file import (
    MIN_SAMPLES,
    CachePrecision,
    EkdConfig,
    Mode,
    ModelConfig,
    StudentConfig,
    TeacherConfig,
    TeacherPrecision,
)
from s3prl_ekd.config.runner_file import (
    MODEL,
    OVERRIDES,
    DataConfig,
    RunnerConfig,
    check_data_config,
    check_runner_config,
)

__all__ = [
    "MIN_SAMPLES",
    "MODEL",
    "OVERRIDES",
    "CachePrecision",
    "Mode",
    "TeacherPrecision",
    "AdditiveConfig",
    "DataConfig",
    "DistortionConfig",
    "EkdConfig",
    "MaskConfig",
    "ModelConfig",
    "NonAdditiveConfig",
    "RunnerConfig",
    "StudentConfig",
    "TargetsConfig",
    "TeacherConfig",
    "check_data_config",
    "check_runner_config",
    "load_model_config",
]
