"""ZeRO-3 parameters: telling whether one is partitioned, partitioning it, and seeing it whole for a moment."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from torch import nn
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


def full_numel(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter, however it is stored."""
    return getattr(parameter, "ds_numel", parameter.numel())
