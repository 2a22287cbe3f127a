"""The DeepSpeed JSON, with what depends on the model and the run filled in.

A shipped JSON says how to shard and in which precision; `"auto"` stands where the value follows from the base:

    stage3_max_reuse_distance            1.2 layers   a layer stays gathered between its source and its target use
    stage3_max_live_parameters           2.5 layers
    stage3_prefetch_bucket_size          1 layer
    stage3_param_persistence_threshold   just over the largest adapter matrix: adapters are never partitioned away

The micro-batch size and the clipping always come from the YAML; micro-steps are counted by the trainer.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.models.decoder import decoder_layers
from flare_ds.models.quantized import stored_size


def resolve_ds_config(config: Config, shape: PreTrainedModel, world_size: int) -> dict[str, Any]:
    """The DeepSpeed configuration of this run.

    Args:
        config: the run's settings.
        shape: the base on the meta device.
        world_size: number of ranks.

    Raises:
        ConfigError: the JSON cannot be read, or its precision is at odds with `model.dtype`.
    """
    settings = _read(config.deepspeed)
    bf16 = bool(settings.get("bf16", {}).get("enabled", False))
    if bf16 != (config.model.dtype == "bfloat16"):
        raise ConfigError(
            f"model.dtype={config.model.dtype!r}, but bf16.enabled={str(bf16).lower()} in {config.deepspeed}",
            fix="use a DeepSpeed JSON of the model's precision: see ds_configs/README.md",
        )
    zero = settings.setdefault("zero_optimization", {})
    zero.update({key: value for key, value in _sizes(config, shape).items() if zero.get(key) == "auto"})
    settings.update(
        train_micro_batch_size_per_gpu=config.train.micro_batch_size,
        gradient_accumulation_steps=1,  # how many micro-steps a step has differs: the trainer says which is the last
        gradient_clipping=config.train.max_grad_norm,
    )
    settings.pop("train_batch_size", None)
    return settings


def _read(path: str) -> dict[str, Any]:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read deepspeed={path!r}: {error.strerror}", fix="give one of ds_configs/*.json"
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"deepspeed={path!r} is not valid JSON: {error}", fix="mend the place named above") from error


def _sizes(config: Config, shape: PreTrainedModel) -> dict[str, int]:
    layer = max(stored_size(layer, config.model).elements for layer in decoder_layers(shape))
    widest = max(max(p.shape) for layer in decoder_layers(shape) for p in layer.parameters())
    return {
        "stage3_max_reuse_distance": int(1.2 * layer),
        "stage3_max_live_parameters": int(2.5 * layer),
        "stage3_prefetch_bucket_size": layer,
        "stage3_param_persistence_threshold": config.adapter.r * widest + 1,
    }
