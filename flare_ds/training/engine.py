"""Opening a two-stream model to run: sharded under the DeepSpeed engine, or for an evaluation whole on every rank.

Decoding under ZeRO-3 gathers the base for every token. Where the base fits into each rank's memory,
evaluate.whole_model loads it there once, and no collective is left in a forward.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import deepspeed
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.utils import groups
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from flare_ds.adapters.inject import check_adapter
from flare_ds.config import Config
from flare_ds.models.mixup import check_mixup
from flare_ds.models.partitioned import full_numel
from flare_ds.models.probe import check_streams
from flare_ds.models.two_stream import TwoStreamModel, build_model
from flare_ds.training.ds_config import resolve_ds_config
from flare_ds.training.memory import check_whole_model
from flare_ds.training.process_group import device, join_process_group
from flare_ds.training.rank_zero import agreed

AdapterSource = Callable[[dict[str, nn.Parameter]], dict[str, Tensor]]


@dataclass
class RunningModel:
    """A model that is ready to run.

    Attributes:
        root: what forwards go through: the engine, or the model itself where every rank holds it whole.
        model: the two-stream model inside it.
        zero_init: keeps transformers loading under zero.Init; must live as long as the model. None: it is whole.
    """

    root: DeepSpeedEngine | TwoStreamModel
    model: TwoStreamModel
    zero_init: HfDeepSpeedConfig | None = None

    @property
    def sharded(self) -> bool:
        """Whether a forward is a collective: then all ranks must run equally many."""
        return self.root is not self.model

    @property
    def engine(self) -> DeepSpeedEngine:
        """The engine that also backwards and steps; there is one unless the model is whole."""
        assert self.sharded
        return self.root

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name, in the model's order."""
        return trainable_parameters(self.model)


def open_model(
    config: Config,
    *,
    shape: PreTrainedModel,
    label_tokens: list[list[int]],
    adapter: AdapterSource | None = None,
    train: bool = True,
) -> RunningModel:
    """Load the base, add the adapter, start the engine (none for an evaluation with evaluate.whole_model).

    Args:
        config: the run's settings.
        shape: the base on the meta device.
        label_tokens: token ids of each label word.
        adapter: gives the values to start from, by parameter name; None: a fresh adapter.
        train: whether an optimizer is made; without, the engine only shards and gathers.

    Raises:
        ConfigError: see `check_adapter`, `check_mixup`, `check_streams`, `resolve_ds_config` and `build_model`.
        HostError: evaluate.whole_model, but the base does not fit.
    """
    join_process_group()
    agreed(partial(check_model, config, shape))
    settings = agreed(partial(resolve_ds_config, config, shape))
    whole = config.evaluate.whole_model and not train
    if whole:
        agreed(partial(check_whole_model, config, shape))
        assert not is_deepspeed_zero3_enabled(), "a sharded model is open: the base would be sharded too"
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # hpZ's, of an earlier model: DeepSpeed makes no second one
    zero_init = None if whole else HfDeepSpeedConfig(settings)
    model = build_model(config, label_tokens=label_tokens)
    parameters = trainable_parameters(model)
    if adapter is not None:
        values = agreed(partial(adapter, parameters))
        for name, parameter in parameters.items():
            parameter.data.copy_(values[name])
    if not train:
        model.requires_grad_(False)
    if whole:
        return RunningModel(model.to(device()), model)
    optimizer = make_optimizer(config, parameters) if train else None
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return RunningModel(engine, model, zero_init)


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
