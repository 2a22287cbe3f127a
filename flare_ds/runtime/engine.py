"""A two-stream model that is ready to run, and what of it trains: the same for who asks, whoever holds the base.

    RunningModel           answers: whole in this process, or in the shards of all ranks
    Engine                 also learns; of these there are two
      WholeEngine            every rank holds the base; the gradients are averaged    `flare_ds.runtime.whole`
      ShardedEngine          the ranks share the base (DeepSpeed's ZeRO-3)            `flare_ds.runtime.sharded`

Which one is opened, and when, says `flare_ds.runtime.opening`.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from flare_ds.adapters.inject import check_adapter
from flare_ds.batches.collate import Batch
from flare_ds.config import Config, TrainConfig
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
Kind = Literal["adapter", "exp_avg", "exp_avg_sq"]
MOMENTS: tuple[Kind, ...] = ("exp_avg", "exp_avg_sq")
KINDS: tuple[Kind, ...] = ("adapter", *MOMENTS)
"""What a trained matrix and its optimizer hold, as AdamW names it."""


@dataclass
class RunningModel:
    """A model that is ready to run.

    Attributes:
        root: what forwards go through: DeepSpeed's engine, or the model itself where every rank holds it whole.
        model: the two-stream model inside it.
        zero_init: keeps transformers loading under zero.Init; must live as long as the model. None: it is whole.
        of_sources: label scores that the frozen base gave the sources of rows, by cache, split and number of rows.
    """

    root: "DeepSpeedEngine | TwoStreamModel"
    model: TwoStreamModel
    zero_init: HfDeepSpeedConfig | None = None
    of_sources: dict[tuple[Path, str, int], list[list[float]]] = field(default_factory=dict)

    @property
    def sharded(self) -> bool:
        """Whether a forward is a collective: then all ranks must run equally many."""
        return self.root is not self.model

    @property
    def device(self) -> torch.device:
        """Where a batch has to be."""
        return device() if self.sharded else self.model.base.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name, in the model's order."""
        return trainable_parameters(self.model)


class Engine(RunningModel, ABC):
    """A running model that learns; every method is called by all ranks, equally often.

    Attributes:
        name: in the records.
        optimizer: torch's own; a group's learning rate is `ratio` times the schedule's.
    """

    name: ClassVar[str]
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def accumulate(self, batch: Batch, *, targets: int, last: bool) -> Tensor:
        """Forward and backward of a micro-batch; waits for nothing.

        Args:
            batch: this rank's rows, on its device.
            targets: what the loss of the whole step, over all ranks and micro-batches, is the mean over.
            last: whether it is the step's last micro-batch, behind which the ranks' gradients are put together.

        Returns:
            The loss summed over the batch's answers, on the device: a number.
        """

    @abstractmethod
    def step(self, rate: float) -> float | None:
        """Clip what was accumulated by its global norm, and update the adapter.

        Args:
            rate: the schedule's.

        Returns:
            The norm before clipping; None: it was not finite, so the step was applied on no rank.
        """

    @abstractmethod
    def tensors(self, kind: Kind) -> dict[str, Tensor]:
        """Whole fp32 matrices by parameter name, in the host's memory of rank 0; on other ranks nothing."""

    @abstractmethod
    def restore(self, moments: Mapping[Kind, Mapping[str, Tensor]], updates: int) -> None:
        """Give the optimizer the moments, by kind and parameter name, that it had after so many updates."""

    def _set_rates(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["ratio"]


def make_optimizer(train: TrainConfig, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over the adapter; see `Engine.optimizer`."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(train.learning_rate_ratio if "lora_B" in name else 1.0, []).append(parameter)
    return torch.optim.AdamW(
        [{"params": group, "ratio": ratio} for ratio, group in groups.items()],
        lr=train.learning_rate,
        weight_decay=train.weight_decay,
    )


def whole_model(
    config: Config, *, label_tokens: list[list[int]], adapter: AdapterSource | None, device: torch.device
) -> TwoStreamModel:
    """Load the whole base onto one device, with the adapter as in `open_model`.

    Raises:
        ConfigError: see `build_model`.
    """
    assert not is_deepspeed_zero3_enabled(), "a sharded model is open: the base would be sharded too"
    choose_attention_kernels()
    return filled_model(config, label_tokens=label_tokens, adapter=adapter).to(device)


def open_whole(
    config: Config, *, label_tokens: list[list[int]], adapter: AdapterSource | None, device: torch.device
) -> RunningModel:
    """Load the whole base onto one device, to be asked; see `whole_model`."""
    model = whole_model(config, label_tokens=label_tokens, adapter=adapter, device=device)
    model.requires_grad_(False)
    return RunningModel(model, model)


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
    torch.cuda.empty_cache()  # does nothing where no GPU was used


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with requires_grad, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count_trainable(model: nn.Module) -> int:
    """Trained elements, whole parameters counted however they are stored."""
    return sum(full_numel(parameter) for parameter in trainable_parameters(model).values())
