"""One YAML describes one run: typed, strict, with `key=value` overrides.

    method:     one of flare_ds.methods                 source:   where the source states come from
    model:      which base, in which precision          adapter:  the LoRA and how the source is fused into it
    task:       what data, which languages              mixup:    the mixing layer (x_mixup)
    translate:  the machine translation of a side       train:    steps, batch, learning rate, validation
                                                        evaluate: how test rows are scored
                                                        generate: how answers are decoded
                                                        tracking: where the run can be watched

Relative paths are relative to the directory the command is run in. `flare_ds.settings` reads a file into a `Config`.
"""

from flare_ds.config.adapter import AdapterConfig, MixupConfig, SourceConfig
from flare_ds.config.data import ModelConfig, TaskConfig, TranslateConfig
from flare_ds.config.run import Config
from flare_ds.config.training import EvaluateConfig, GenerateConfig, TrackingConfig, TrainConfig

__all__ = [
    "AdapterConfig",
    "Config",
    "EvaluateConfig",
    "GenerateConfig",
    "MixupConfig",
    "ModelConfig",
    "SourceConfig",
    "TaskConfig",
    "TrackingConfig",
    "TrainConfig",
    "TranslateConfig",
]
