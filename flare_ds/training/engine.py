"""The DeepSpeed engine around a two-stream model: sharded base, trainable adapter, real ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import deepspeed
import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor, nn
from transformers.integrations import HfDeepSpeedConfig

from flare_ds.adapters.inject import check_adapter
from flare_ds.config import Config
from flare_ds.models.loading import load_shape
from flare_ds.models.partitioned import full_numel
from flare_ds.models.two_stream import TwoStreamModel, build_model
from flare_ds.training.ds_config import resolve_ds_config
from flare_ds.training.process_group import join_process_group, world_size

AdapterSource = Callable[[dict[str, nn.Parameter]], dict[str, Tensor]]


@dataclass
class RunningModel:
    """A model under its engine.

    Attributes:
        engine: what forwards, backwards and steps go through.
        model: the two-stream model inside it.
        zero_init: keeps transformers loading under zero.Init; must live as long as the model.
    """

    engine: DeepSpeedEngine
    model: TwoStreamModel
    zero_init: HfDeepSpeedConfig

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name, in the model's order."""
        return trainable_parameters(self.model)


def open_model(
    config: Config,
    *,
    label_tokens: list[list[int]],
    labels: tuple[str, ...],
    adapter: AdapterSource | None = None,
    train: bool = True,
) -> RunningModel:
    """Load the base sharded, add the adapter, start the engine.

    Args:
        config: the run's settings.
        label_tokens: token ids of each label word.
        labels: the label words.
        adapter: gives the values to start from, by parameter name; None: a fresh adapter.
        train: whether an optimizer is made; without, the engine only shards and gathers.

    Raises:
        ConfigError: see `check_adapter`, `resolve_ds_config` and `build_model`.
    """
    join_process_group()
    shape = load_shape(config.model)
    if config.method != "zero_shot":
        check_adapter(shape, config.adapter, fused=config.method == "flare")
    settings = resolve_ds_config(config, shape, world_size())
    zero_init = HfDeepSpeedConfig(settings)
    model = build_model(config, label_tokens=label_tokens, labels=labels)
    parameters = trainable_parameters(model)
    if adapter is not None:
        values = adapter(parameters)
        for name, parameter in parameters.items():
            parameter.data.copy_(values[name])
    if not train:
        model.requires_grad_(False)
    optimizer = make_optimizer(config, parameters) if train else None
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return RunningModel(engine, model, zero_init)


def make_optimizer(config: Config, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over the adapter; the learning rate is set before every step."""
    return torch.optim.AdamW(parameters.values(), lr=config.train.learning_rate, weight_decay=config.train.weight_decay)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with requires_grad, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count_trainable(model: nn.Module) -> int:
    """Trained elements, whole parameters counted however they are stored."""
    return sum(full_numel(parameter) for parameter in trainable_parameters(model).values())
