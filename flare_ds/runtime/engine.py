"""A two-stream model that is ready to run: whole in this process, or inside the DeepSpeed engine that shards it."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from flare_ds.adapters.inject import check_adapter
from flare_ds.config import Config
from flare_ds.models.attention_kernels import choose_attention_kernels
from flare_ds.models.mixup import check_mixup
from flare_ds.models.partitioned import full_numel
from flare_ds.models.probe import check_streams
from flare_ds.models.two_stream import TwoStreamModel, build_model
from flare_ds.runtime.process_group import device
from flare_ds.runtime.rank_zero import agreed

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

AdapterSource = Callable[[dict[str, nn.Parameter]], dict[str, Tensor]]


@dataclass
class RunningModel:
    """A model that is ready to run.

    Attributes:
        root: what forwards go through: the engine, or the model itself where every rank holds it whole.
        model: the two-stream model inside it.
        zero_init: keeps transformers loading under zero.Init; must live as long as the model. None: it is whole.
    """

    root: "DeepSpeedEngine | TwoStreamModel"
    model: TwoStreamModel
    zero_init: HfDeepSpeedConfig | None = None

    @property
    def sharded(self) -> bool:
        """Whether a forward is a collective: then all ranks must run equally many."""
        return self.root is not self.model

    @property
    def engine(self) -> "DeepSpeedEngine":
        """The engine that also backwards and steps; there is one unless the model is whole."""
        assert self.sharded
        return self.root

    @property
    def device(self) -> torch.device:
        """Where a batch has to be."""
        return device() if self.sharded else self.model.base.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name, in the model's order."""
        return trainable_parameters(self.model)


def open_whole(
    config: Config, *, label_tokens: list[list[int]], adapter: AdapterSource | None, device: torch.device
) -> RunningModel:
    """Load the whole base onto one device, to be asked; the adapter as in `open_model`.

    Raises:
        ConfigError: see `build_model`.
    """
    assert not is_deepspeed_zero3_enabled(), "a sharded model is open: the base would be sharded too"
    choose_attention_kernels()
    model = filled_model(config, label_tokens=label_tokens, adapter=adapter)
    model.requires_grad_(False)
    return RunningModel(model.to(device), model)


def filled_model(config: Config, *, label_tokens: list[list[int]], adapter: AdapterSource | None) -> TwoStreamModel:
    """Build the model, and put the adapter's values in, if there are any yet."""
    model = build_model(config, label_tokens=label_tokens)
    if adapter is not None:
        parameters = trainable_parameters(model)
        values = agreed(partial(adapter, parameters))
        for name, parameter in parameters.items():
            parameter.data.copy_(values[name])
    return model


def check_model(config: Config, shape: PreTrainedModel) -> None:
    """Refuse what cannot be built on a base, before that is loaded.

    Args:
        config: the run's settings.
        shape: the base on the meta device.

    Raises:
        ConfigError: see `check_adapter`, `check_mixup` and `check_streams`.
    """
    if config.recipe.trains:
        check_adapter(shape, config)
    if config.recipe.fuses == "mixup":
        check_mixup(shape, config.mixup)
    check_streams(shape, config)


def make_room() -> None:
    """Let a model that nobody holds any more go, so that another can be opened, sharded or whole."""
    gc.collect()  # an engine and its hooks hold one another
    unset_hf_deepspeed_config()


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with requires_grad, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count_trainable(model: nn.Module) -> int:
    """Trained elements, whole parameters counted however they are stored."""
    return sum(full_numel(parameter) for parameter in trainable_parameters(model).values())
