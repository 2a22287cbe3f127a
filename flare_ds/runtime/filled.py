"""Models with their adapters' values in them: opened whole as they are, or given to DeepSpeed to share out."""

from collections.abc import Sequence

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from flare_ds.config import Config
from flare_ds.models.attention_kernels import choose_attention_kernels
from flare_ds.models.joint import JointModel, build_joint_model
from flare_ds.models.partitioned import gathered
from flare_ds.models.two_stream import TwoStreamModel, build_model
from flare_ds.runtime.engine import AdapterSource, RunningModel
from flare_ds.runtime.optimizer import Learner
from flare_ds.runtime.rank_zero import agreed


def learners_of(model: TwoStreamModel | JointModel, configs: Sequence[Config]) -> list[Learner]:
    """What each cell of a model trains of it."""
    return [Learner(config.train, cell.trained()) for config, cell in zip(configs, model.cells, strict=True)]


def whole_model(
    configs: Sequence[Config],
    *,
    label_tokens: list[list[int]],
    adapters: Sequence[AdapterSource | None],
    device: torch.device,
) -> TwoStreamModel | JointModel:
    """Load the whole base onto one device, with the adapters of cells; see `filled_model`."""
    assert not is_deepspeed_zero3_enabled(), "a sharded model is open: the base would be sharded too"
    choose_attention_kernels()
    return filled_model(configs, label_tokens=label_tokens, adapters=adapters, device=device).to(device)


def open_whole(
    config: Config, *, label_tokens: list[list[int]], adapter: AdapterSource | None, device: torch.device
) -> RunningModel:
    """Load the whole base onto one device, to be asked; see `whole_model`."""
    model = whole_model([config], label_tokens=label_tokens, adapters=[adapter], device=device)
    assert isinstance(model, TwoStreamModel)
    model.requires_grad_(False)
    return RunningModel(model, model)


def filled_model(
    configs: Sequence[Config],
    *,
    label_tokens: list[list[int]],
    adapters: Sequence[AdapterSource | None],
    device: torch.device | None = None,
) -> TwoStreamModel | JointModel:
    """Build the model of one cell, or the joint one of several, and put in the adapters' values that there are yet.

    What is fresh beside the base may lie on the host yet; for the arguments see `open_model` and `load_base`.
    """
    first, *others = configs
    if others:
        model: TwoStreamModel | JointModel = build_joint_model(configs, label_tokens=label_tokens, device=device)
    else:
        model = build_model(first, label_tokens=label_tokens, device=device)
    for cell, adapter in zip(model.cells, adapters, strict=True):
        if adapter is not None:
            put_adapter(cell, adapter)
    return model


@torch.no_grad()
def put_adapter(cell: TwoStreamModel, adapter: AdapterSource) -> None:
    """Give a cell's adapter other values; its optimizer, if it has one, is of no use any more; a collective."""
    parameters = cell.trained()
    values = agreed(adapter, parameters)
    with gathered(parameters.values(), modified=True):
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
