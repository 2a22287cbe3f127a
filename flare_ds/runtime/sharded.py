"""The engine in which the ranks share the base: DeepSpeed's ZeRO-3.

Only `flare_ds.runtime.opening` imports this module, and only when a model is to be sharded.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    groups,
    logger,
    safe_get_local_fp32_param,
    safe_get_local_grad,
    safe_get_local_optimizer_state,
    safe_set_local_grad,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig

from flare_ds.config import Config
from flare_ds.models.joint import JointModel
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runtime.ds_config import resolve_ds_config
from flare_ds.runtime.engine import MOMENTS, AdapterSource, Engine, Kind, RunningModel, is_bounded
from flare_ds.runtime.filled import filled_model, learners_of
from flare_ds.runtime.gathers import gathers
from flare_ds.runtime.letting_go import remember
from flare_ds.runtime.optimizer import CellsAdamW
from flare_ds.runtime.process_group import added_up, rank, world_size
from flare_ds.runtime.rank_zero import agreed
from flare_ds.tracking.figures import GATHERED


class ShardedEngine(Engine):
    """Trains a model whose base lies in shards; the adapter's fp32 values and moments do as well."""

    name = "zero3"
    root: deepspeed.DeepSpeedEngine

    def tensors(self, kind: Kind, cell: int = 0) -> dict[str, Tensor]:
        """See `Engine.tensors`; one collective."""
        if kind == "adapter":
            return dict(self._gathered(safe_get_local_fp32_param, cell))
        return dict(self._gathered(partial(safe_get_local_optimizer_state, optim_state_key=kind), cell))

    def restore(self, moments: Mapping[Kind, Mapping[str, Tensor]], updates: int, cell: int = 0) -> None:
        """See `Engine.restore`."""
        self.begin(cell, updates)
        for name, parameter in self.learners[cell].parameters.items():
            for kind in MOMENTS:
                safe_set_local_optimizer_state(parameter, _share(moments[kind][name], parameter), kind)

    def gathered(self) -> dict[str, int]:
        """See `Engine.gathered`; what the optimizer and the adapters gather is among it."""
        return {name: gathers()[name] for name in GATHERED}

    def begin(self, cell: int, updates: int = 0) -> None:
        """Make the moments of a cell, which are 0: AdamW does so in the first step, but a state may be saved before."""
        zero = self.root.optimizer
        for number, flat in enumerate(zero.fp32_partitioned_groups_flat):
            if self.optimizer.param_groups[zero.sub_group_to_group_id[number]]["cell"] == cell:
                self.optimizer.state[flat] = {
                    "step": torch.tensor(updates, dtype=torch.float32),
                    **{kind: torch.zeros_like(flat) for kind in MOMENTS},
                }

    @contextmanager
    def _micro_step(self, last: bool) -> Iterator[None]:
        self.root.set_gradient_accumulation_boundary(last)
        yield
        if not last:
            self.root.step()  # counts the micro-step

    def _backward(self, loss: Tensor) -> None:
        self.root.backward(loss)

    def _norms(self, cells: list[int]) -> list[float]:
        """See `Engine`; gradients without a bounded norm go: DeepSpeed would apply no cell's step."""
        of_cells = [list(self.learners[cell].parameters.values()) for cell in cells]
        squares = [_sum_of_squares([safe_get_local_grad(p) for p in parameters]) for parameters in of_cells]
        norms = added_up(torch.stack(squares)).sqrt().tolist()
        for norm, parameters in zip(norms, of_cells, strict=True):
            for parameter in () if is_bounded(norm) else parameters:
                safe_set_local_grad(parameter, torch.zeros_like(safe_get_local_grad(parameter)))
        return norms

    def _update(self) -> None:
        self.root.step()

    def _gathered(self, share_of: Callable[[nn.Parameter], Tensor], cell: int) -> Iterator[tuple[str, Tensor]]:
        """Whole matrices on rank 0, put together from every rank's shares, which are sent as one."""
        parameters = self.learners[cell].parameters
        sizes = [_share_size(parameter) for parameter in parameters.values()]
        mine = torch.cat([share_of(parameter).flatten() for parameter in parameters.values()])
        everyone = [torch.empty_like(mine) for _ in range(world_size())] if rank() == 0 else None
        dist.gather(mine, everyone)
        if everyone is None:
            return
        of_parameters = zip(*(shares.cpu().split(sizes) for shares in everyone), strict=True)
        for (name, parameter), shares in zip(parameters.items(), of_parameters, strict=True):
            shape = getattr(parameter, "ds_shape")  # noqa: B009 - DeepSpeed's attribute, unknown to torch's types
            yield name, torch.cat(shares)[: shape.numel()].view(shape)


def open_sharded(
    config: Config,
    *,
    shape: PreTrainedModel,
    label_tokens: list[list[int]],
    adapter: AdapterSource | None,
) -> RunningModel:
    """Load the base in shards, to be asked; for the arguments see `open_model`."""
    settings, model, zero_init = _sharded_model([config], shape, label_tokens, [adapter])
    assert isinstance(model, TwoStreamModel)
    model.requires_grad_(False)
    root, *_ = deepspeed.initialize(model=model, config=settings)
    remember(root, zero_init)
    return RunningModel(root, model, zero_init)


def open_sharded_engine(
    configs: Sequence[Config],
    *,
    shape: PreTrainedModel,
    label_tokens: list[list[int]],
    adapters: Sequence[AdapterSource | None],
) -> ShardedEngine:
    """Load the base in shards, to be trained; see `open_sharded` and `open_engine`."""
    settings, model, zero_init = _sharded_model(configs, shape, label_tokens, adapters)
    learners = learners_of(model, configs)
    optimizer = CellsAdamW(learners)
    logger.addFilter(_is_news)
    root, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    remember(root, zero_init)
    engine = ShardedEngine(root, model, learners, optimizer, zero_init)
    for cell in range(len(learners)):
        engine.begin(cell)
    return engine


def _is_news(record: logging.LogRecord) -> bool:
    """Whether it is not the warning of an untested optimizer: it is torch's AdamW, but DeepSpeed goes by the class."""
    return "untested optimizer" not in record.getMessage()


def _sharded_model(
    configs: Sequence[Config],
    shape: PreTrainedModel,
    label_tokens: list[list[int]],
    adapters: Sequence[AdapterSource | None],
) -> tuple[dict, TwoStreamModel | JointModel, HfDeepSpeedConfig]:
    settings = agreed(resolve_ds_config, configs, shape)
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # hpZ's, of an earlier model: DeepSpeed makes no second one
    zero_init = HfDeepSpeedConfig(settings)
    return settings, filled_model(configs, label_tokens=label_tokens, adapters=adapters), zero_init


def _sum_of_squares(gradients: list[Tensor]) -> Tensor:
    """Of all elements, in fp64; a few kernels for hundreds of matrices."""
    return torch.stack(torch._foreach_norm(gradients, 2, torch.float64)).square().sum()


def _share_size(parameter: nn.Parameter) -> int:
    """Elements of a rank's share, padded alike on every rank."""
    return getattr(parameter, "ds_tensor").numel()  # noqa: B009


def _share(whole: Tensor, parameter: nn.Parameter) -> Tensor:
    """This rank's share of a whole matrix, padded as DeepSpeed pads the last rank's."""
    size = _share_size(parameter)
    padded = nn.functional.pad(whole.flatten(), (0, size * world_size() - whole.numel()))
    return padded[rank() * size : (rank() + 1) * size]
