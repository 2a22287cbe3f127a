"""ZeRO-3 parameters: telling whether one is partitioned, partitioning it, and seeing it whole for a moment."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether DeepSpeed holds only this rank's share of the parameter."""
    return hasattr(parameter, "ds_id")


def partition(module: nn.Module) -> None:
    """Shard a module that was built whole, as zero.Init would have; nothing happens without a live ZeRO-3 config."""
    if is_deepspeed_zero3_enabled():
        import deepspeed

        deepspeed.zero.Init(module=module, config_dict_or_path=deepspeed_config())


def gathered(parameters: Iterable[nn.Parameter], *, modified: bool = False) -> AbstractContextManager[object]:
    """Make the parameters whole inside the block; a collective, entered by every rank.

    Args:
        parameters: partitioned or not.
        modified: whether rank 0 changes them inside; its values then become everybody's.
    """
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not partitioned:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if modified else None)


class Passes:
    """Several passes through one layer in a forward, of which ZeRO-3 is to take each for the only one.

    A module's weights are let go when the backward has come to as many of its inputs as its last call had: with several
    calls the first backward is taken for the end, and no later one, so that in the end all of the base is whole. So
    what was counted is noted behind each pass, and put back where its backward begins.

    Weights that a recomputation needs are let go with the module whose backward began last. That must be the layer, not
    a module that gets its inputs by name, the end of whose backward is never seen: it has nothing to fetch for it.

    Args:
        layer: the layer; it is called once itself.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.modules = [module for module in layer.modules() if module is not layer]
        self.containers = [module for module in self.modules if not [*module.parameters(recurse=False)]]

    def behind(self, state: Tensor) -> Tensor:
        """The state as it is; stands behind a pass, and does nothing where no backward follows."""
        if not torch.is_grad_enabled():
            return state
        counts = [(module, vars(module)[_INPUTS]) for module in self.modules if _INPUTS in vars(module)]
        if not counts:
            return state
        for module in self.containers:
            if not vars(module).get(_BORROWED):
                setattr(module, _BACKWARDS, _NEVER)
        return _Behind.apply(state, counts)


_INPUTS, _BACKWARDS = "ds_grads_remaining", "applied_pre_backward_ref_cnt"
"""DeepSpeed's counts: of inputs whose backward is to come, and of outputs behind which a backward is to begin."""
_BORROWED = "_external_params"
"""Weights of others that a module reads itself."""
_NEVER = -(2**60)


class _Behind(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, counts: list[tuple[nn.Module, int]]) -> Tensor:
        ctx.counts = counts
        return state.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        for module, count in ctx.counts:
            setattr(module, _INPUTS, count)
        return gradient, None


def full_numel(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter, however it is stored."""
    return getattr(parameter, "ds_numel", parameter.numel())
