"""The engine in which every rank holds the whole base: plain PyTorch, for bases that fit.

Only the adapter's gradients cross between ranks, once a step (torch's DistributedDataParallel). A process alone joins
no group, and DeepSpeed is not imported.
"""

import math
import warnings
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from flare_ds.batches.collate import Batch
from flare_ds.config import TrainConfig
from flare_ds.models.loss import share_of_mean
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runtime.engine import MOMENTS, Engine, Kind, make_optimizer
from flare_ds.runtime.process_group import rank, world_size


class WholeEngine(Engine):
    """Trains a whole model.

    Args:
        model: on this rank's device, with the same adapter on every rank.
        train: the optimisation.
    """

    name = "whole"

    def __init__(self, model: TwoStreamModel, train: TrainConfig) -> None:
        super().__init__(model, model)
        self.parameters = self.trainable()
        self.optimizer, self.max_norm = make_optimizer(train, self.parameters), train.max_grad_norm
        # A matrix that no row of a step reached has moments and a decay like the others, as under DeepSpeed.
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.averaged = _averaged(model) if world_size() > 1 else None

    def accumulate(self, batch: Batch, *, targets: int, last: bool) -> Tensor:
        """See `Engine.accumulate`."""
        forward = self.averaged or self.model
        with nullcontext() if last or self.averaged is None else self.averaged.no_sync():
            loss: Tensor = forward(batch, with_loss=True)
            share_of_mean(loss, step_targets=targets, world_size=world_size()).backward()
        return loss.detach()

    def step(self, rate: float) -> float | None:
        """See `Engine.step`."""
        self._set_rates(rate)
        norm = clip_grad_norm_(self.parameters.values(), self.max_norm).item()
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        return norm if math.isfinite(norm) else None

    def tensors(self, kind: Kind) -> dict[str, Tensor]:
        """See `Engine.tensors`."""
        if rank():
            return {}
        return {name: self._held(parameter, kind).to("cpu", copy=True) for name, parameter in self.parameters.items()}

    def restore(self, moments: Mapping[Kind, Mapping[str, Tensor]], updates: int) -> None:
        """See `Engine.restore`."""
        for name, parameter in self.parameters.items():
            own = {kind: moments[kind][name].to(parameter.device, copy=True) for kind in MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(updates)), **own}

    def _held(self, parameter: nn.Parameter, kind: Kind) -> Tensor:
        if kind == "adapter":
            return parameter.detach()
        return self.optimizer.state[parameter].get(kind, torch.zeros_like(parameter, requires_grad=False))


def _averaged(model: TwoStreamModel) -> DistributedDataParallel:
    """The model with gradients that are averaged over the ranks.

    A row may leave matrices out (an expert that no token chose), and nothing frozen has to be sent.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 renames broadcast_buffers
        return DistributedDataParallel(
            model,
            broadcast_buffers=False,
            init_sync=False,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )
