"""A two-stream model under the DeepSpeed engine: its base in ZeRO-3 shards, one on each rank.

Only `flare_ds.runtime.opening` imports this module, and only when a model is to be sharded.
"""

from functools import partial

import deepspeed
import torch
from deepspeed.utils import groups
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig

from flare_ds.config import Config
from flare_ds.runtime.ds_config import resolve_ds_config
from flare_ds.runtime.engine import AdapterSource, RunningModel, filled_model, trainable_parameters
from flare_ds.runtime.rank_zero import agreed


def open_sharded(
    config: Config,
    *,
    shape: PreTrainedModel,
    label_tokens: list[list[int]],
    adapter: AdapterSource | None,
    train: bool,
) -> RunningModel:
    """Load the base in shards, add the adapter, start the engine; for the arguments see `open_model`.

    Raises:
        ConfigError: see `resolve_ds_config` and `build_model`.
    """
    settings = agreed(partial(resolve_ds_config, config, shape))
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # hpZ's, of an earlier model: DeepSpeed makes no second one
    zero_init = HfDeepSpeedConfig(settings)
    model = filled_model(config, label_tokens=label_tokens, adapter=adapter)
    parameters = trainable_parameters(model)
    if not train:
        model.requires_grad_(False)
    optimizer = make_optimizer(config, parameters) if train else None
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return RunningModel(engine, model, zero_init)


def make_optimizer(config: Config, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over the adapter; before every step a group's learning rate is set to `ratio` times the schedule's."""
    train = config.train
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(train.learning_rate_ratio if "lora_B" in name else 1.0, []).append(parameter)
    return torch.optim.AdamW(
        [{"params": group, "ratio": ratio} for ratio, group in groups.items()],
        lr=train.learning_rate,
        weight_decay=train.weight_decay,
    )
